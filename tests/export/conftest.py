from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from speech_image_retrieval import SpeechImageRetrievalConfig, SpeechImageRetrievalModel, SpeechImageRetrievalProcessor
from speech_image_retrieval.cli import app
from speech_image_retrieval.export.onnx_folder import export_onnx
from torch import Tensor
from transformers import BlipImageProcessorPil, WhisperFeatureExtractor
from typer.testing import CliRunner

from ..modeling.tiny import IMAGE_SIZE, WIDTH, blip2_vision, whisper
from ..retrieval.tiny_gallery import RATE, save_tiny, tiny_model, tiny_processor

_SIZE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}


class Exported(NamedTuple):
    folder: Path
    model: SpeechImageRetrievalModel
    processor: SpeechImageRetrievalProcessor

    def run(self, graph: str, **inputs: Tensor) -> dict[str, Tensor]:
        """The outputs of a graph by name."""
        session = onnxruntime.InferenceSession(self.folder / f"{graph}.onnx")
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, map(torch.from_numpy, outputs), strict=True))


@pytest.fixture(scope="package")
def exported(tmp_path_factory) -> Exported:
    """HuBERT, whose group norm reads over time, and a ViT, by the command."""
    folder = tmp_path_factory.mktemp("float32")
    save_tiny(folder / "model")
    done = CliRunner().invoke(app, ["export", str(folder / "model"), "--out", str(folder / "onnx")])
    assert done.exit_code == 0, done.output
    return Exported(folder / "onnx", tiny_model(), tiny_processor())


@pytest.fixture(scope="package")
def exported_int8(tmp_path_factory) -> Exported:
    """Whisper and BLIP-2 with a Q-Former, kept in bfloat16, in int8."""
    torch.manual_seed(0)
    layers = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": WIDTH}
    config = SpeechImageRetrievalConfig(
        speech_config=whisper().to_dict() | {"encoder_layers": 1},
        vision_config=blip2_vision().to_dict() | {"num_hidden_layers": 1},
        qformer_config=layers | {"encoder_hidden_size": WIDTH},
        num_query_tokens=3,
        multimodal_config=layers | {"num_speech_layers": 1, "num_image_layers": 1, "initializer_range": 0.1},
        projection_dim=8,
    )
    model = SpeechImageRetrievalModel(config).eval().bfloat16()
    extractor, image_processor = WhisperFeatureExtractor(feature_size=8), BlipImageProcessorPil(size=_SIZE)
    processor = SpeechImageRetrievalProcessor(extractor, image_processor, max_seconds=0.6)
    folder = tmp_path_factory.mktemp("int8") / "onnx"
    export_onnx(model, processor, folder, int8=True)
    return Exported(folder, model, processor)


@pytest.fixture
def speak() -> Callable[..., dict[str, Tensor]]:
    """Clips of so many seconds as the processor gives them."""

    def batch(processor: SpeechImageRetrievalProcessor, *seconds: float) -> dict[str, Tensor]:
        noise = np.random.default_rng(len(seconds))
        clips = [noise.normal(0, 0.1, round(length * RATE)) for length in seconds]
        return dict(processor(audio=clips, sampling_rate=RATE, return_tensors="pt"))

    return batch


@pytest.fixture
def draw() -> Callable[..., dict[str, Tensor]]:
    """So many pictures as the processor gives them."""

    def batch(processor: SpeechImageRetrievalProcessor, count: int) -> dict[str, Tensor]:
        pictures = np.random.default_rng(count).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
        return dict(processor(images=list(pictures), return_tensors="pt"))

    return batch
