from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import DatasetDict
from hypothesis import settings
from PIL import Image
from speech_image_retrieval.corpora.schema import save_corpus, split_from_rows
from speech_image_retrieval.training import run_model
from speech_image_retrieval.training.arguments import TrainingArguments, arguments_from_dict

# The machine may be busy training while the tests run.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

RATE = 16_000
_SPEECH = {
    "model_type": "hubert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 8, 8],
    "conv_stride": [8, 8, 5],
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": True,
    "mask_time_prob": 0.3,
    "mask_time_length": 2,
    "mask_feature_prob": 0.1,
    "mask_feature_length": 2,
    "layerdrop": 0.0,
}
_VISION = {
    "model_type": "blip_2_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "initializer_range": 0.02,
}
_MULTIMODAL = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_speech_layers": 1,
    "num_hidden_layers": 1,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
}
_PROCESSOR = {
    "max_seconds": 1.0,
    "feature_extractor": {"type": "Wav2Vec2FeatureExtractor", "return_attention_mask": True},
    "image_processor": {"type": "BlipImageProcessorPil", "size": {"height": 32, "width": 32}},
}


def tone(hertz: float, seconds: float) -> bytes:
    """A WAV file."""
    stream = io.BytesIO()
    soundfile.write(
        stream, 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE), RATE, format="WAV"
    )
    return stream.getvalue()


def square(colour: tuple[int, int, int]) -> bytes:
    """A PNG file."""
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(stream, "PNG")
    return stream.getvalue()


def _rows(split: str, images: int, captions: int):
    for image in range(images):
        colour = (40 * image % 256, (255 - 30 * image) % 256, 17 * (image + len(split)) % 256)
        for caption in range(captions):
            yield {
                "image": {"bytes": square(colour), "path": None},
                "audio": {
                    "bytes": tone(200 + 150 * image + 11 * caption, 0.12 + 0.04 * ((3 * image + caption) % 5)),
                    "path": None,
                },
                "image_id": f"{split}-{image}",
                "caption_id": f"{split}-{image}-{caption}",
                "text": None,
                "speaker": None,
                "language": None,
            }


@pytest.fixture(scope="session")
def make_corpus(tmp_path_factory) -> Callable[..., Path]:
    """Writes a corpus of tones for coloured squares."""

    def make(images: int = 6, captions: int = 2) -> Path:
        folder = tmp_path_factory.mktemp("corpora") / "tones"
        sizes = {"train": (images, captions), "validation": (3, 2), "test": (3, 2)}
        splits = {
            name: split_from_rows(_rows, split=name, images=size[0], captions=size[1]) for name, size in sizes.items()
        }
        save_corpus(DatasetDict(splits), folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tones(make_corpus) -> Path:
    """Twelve spoken captions of six pictures to train on, and six of three to validate and to test on."""
    return make_corpus()


@pytest.fixture(scope="session")
def make_arguments(tones) -> Callable[..., TrainingArguments]:
    """Arguments of a tiny run with everything random and stateful switched on."""

    def make(output_dir: Path, **changes: Any) -> TrainingArguments:
        values = {
            "corpus": str(tones),
            "output_dir": str(output_dir),
            "model": {
                "projection_dim": 8,
                "speech_config": _SPEECH,
                "vision_config": _VISION,
                "multimodal_config": _MULTIMODAL,
            },
            "processor": _PROCESSOR,
            "num_epochs": 3,
            "batch_size": 2,
            "gradient_accumulation_steps": 2,
            "group_size": 2,
            "group_start_step": 3,
            "learning_rate": 3e-3,
            "muon_learning_rate": 1e-2,
            "warmup_steps": 2,
            "alpha_warmup_steps": 4,
            "queue_size": 7,
            "momentum": 0.9,
            "mixed_precision": "no",
            "log_every_steps": 1,
            "validation_rerank_top_k": 2,
            "rerank_top_k": 2,
        }
        return arguments_from_dict({**values, **changes})

    return make


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    # They take a quarter of a tiny run; runs of fixtures that serve a module draw them, and test_log.py does.
    monkeypatch.setattr(run_model, "draw_curves", lambda log, picture: None)


@pytest.fixture(autouse=True)
def _one_thread():
    # Sums must not be divided differently from one run to the next.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
