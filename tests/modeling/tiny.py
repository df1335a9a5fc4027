"""Tiny models of every kind of backbone, and random batches for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from speech_image_retrieval import SpeechImageRetrievalConfig, SpeechImageRetrievalModel
from torch import Tensor
from transformers import (
    Blip2VisionConfig,
    HubertConfig,
    PreTrainedConfig,
    ResNetConfig,
    ViTConfig,
    Wav2Vec2BertConfig,
    WhisperConfig,
)

WIDTH = 16
IMAGE_SIZE = 16


def hubert() -> HubertConfig:
    return HubertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        conv_dim=(8,) * 7,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        layerdrop=0.0,
        mask_time_prob=0.0,
    )


def whisper() -> WhisperConfig:
    return WhisperConfig(
        d_model=WIDTH,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=2 * WIDTH,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=WIDTH,
        num_mel_bins=8,
        max_source_positions=32,
        vocab_size=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


def wav2vec2_bert() -> Wav2Vec2BertConfig:
    return Wav2Vec2BertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        feature_projection_input_dim=8,
        conv_depthwise_kernel_size=7,
        layerdrop=0.0,
        mask_time_prob=0.0,
    )


def blip2_vision() -> Blip2VisionConfig:
    return Blip2VisionConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        image_size=IMAGE_SIZE,
        patch_size=8,
        initializer_range=0.02,
    )


def resnet() -> ResNetConfig:
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


def vit() -> ViTConfig:
    return ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )


KINDS: dict[str, tuple[Callable[[], PreTrainedConfig], Callable[[], PreTrainedConfig], int]] = {
    "hubert-blip2": (hubert, blip2_vision, 0),
    "whisper-resnet": (whisper, resnet, 1),
    "wav2vec2bert-vit": (wav2vec2_bert, vit, 0),
}


def tiny_config(kind: str, **changes) -> SpeechImageRetrievalConfig:
    speech, vision, num_image_layers = KINDS[kind]
    multimodal = {
        "hidden_size": WIDTH,
        "num_speech_layers": 1,
        "num_image_layers": num_image_layers,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "initializer_range": 0.1,
    }
    values = {"projection_dim": 8, "temperature": 0.1, "multimodal_config": multimodal, **changes}
    return SpeechImageRetrievalConfig(speech_config=speech(), vision_config=vision(), **values)


def tiny_model(kind: str, **changes) -> SpeechImageRetrievalModel:
    torch.manual_seed(0)
    return SpeechImageRetrievalModel(tiny_config(kind, **changes)).eval()


def tiny_batch(kind: str, lengths: tuple[int, ...] = (10, 7, 4)) -> dict[str, Tensor]:
    """Speech of so many units, 400 samples or 4 feature frames each, padded, and as many images."""
    generator = torch.Generator().manual_seed(1)
    unit, features = {"hubert-blip2": (400, ()), "whisper-resnet": (4, (8,)), "wav2vec2bert-vit": (4, (8,))}[kind]
    longest = max(lengths) * unit
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None] * unit).long()
    speech = torch.randn(len(lengths), longest, *features, generator=generator)
    speech = speech * mask[..., None] if features else speech * mask
    if kind == "whisper-resnet":
        speech = speech.transpose(1, 2)
    name = "input_features" if features else "input_values"
    pixels = torch.randn(len(lengths), 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return {name: speech, "attention_mask": mask, "pixel_values": pixels}
