"""A tiny model, and folders of pictures and recordings for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from speech_image_retrieval import (
    SpeechImageRetrievalConfig,
    SpeechImageRetrievalModel,
    SpeechImageRetrievalProcessor,
)
from transformers import BlipImageProcessorPil, Wav2Vec2FeatureExtractor

RATE = 16_000


def tiny_model(seed: int = 0) -> SpeechImageRetrievalModel:
    torch.manual_seed(seed)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    speech = {
        "model_type": "hubert",
        "conv_dim": [8, 8],
        "conv_kernel": [10, 8],
        "conv_stride": [10, 8],
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    }
    config = SpeechImageRetrievalConfig(
        speech_config={**shape, **speech},
        vision_config={**shape, "model_type": "vit", "image_size": 16, "patch_size": 8},
        multimodal_config={**shape, "num_speech_layers": 1, "initializer_range": 0.5},
        projection_dim=4,
        rerank_temperature=0.3,  # not the learned one
    )
    return SpeechImageRetrievalModel(config).eval()


def tiny_processor() -> SpeechImageRetrievalProcessor:
    image_processor = BlipImageProcessorPil(size={"height": 16, "width": 16})
    return SpeechImageRetrievalProcessor(Wav2Vec2FeatureExtractor(), image_processor, max_seconds=2.0)


def save_tiny(folder: Path, seed: int = 0) -> Path:
    tiny_model(seed).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def write_picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_recording(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    soundfile.write(path, draw.normal(0, 0.1, round(draw.uniform(0.2, 0.6) * RATE)), RATE)
    return path


def picture_folder(folder: Path, count: int) -> Path:
    for number in range(count):
        write_picture(folder / f"{number % 3}" / f"{number:03}.png", seed=number)
    return folder


def recording_folder(folder: Path, count: int) -> Path:
    for number in range(count):
        write_recording(folder / f"{number:03}.wav", seed=number)
    return folder
