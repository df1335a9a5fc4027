from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from speech_image_retrieval import SpeechImageRetrievalPipeline
from speech_image_retrieval.training.export import export_model

from ..retrieval.tiny_gallery import tiny_model, tiny_processor, write_picture, write_recording


@dataclass(frozen=True)
class Media:
    """Files to search with and to be found."""

    pictures: list[Path]
    recordings: list[Path]


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> Media:
    folder = tmp_path_factory.mktemp("media")
    pictures = [write_picture(folder / f"{number}.png", seed=number) for number in range(9)]
    return Media(pictures, [write_recording(folder / f"{number}.wav", seed=number) for number in range(7)])


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """A tiny model as training exports it, without a gallery."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export_model(tiny_model(), tiny_processor(), folder)
    return folder


@pytest.fixture(scope="session")
def pipe() -> SpeechImageRetrievalPipeline:
    return SpeechImageRetrievalPipeline(model=tiny_model(), processor=tiny_processor(), device="cpu")
