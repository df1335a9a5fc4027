from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from speech_image_retrieval import SpeechImageRetrievalPipeline
from speech_image_retrieval.hub_cards.gallery import write_gallery
from speech_image_retrieval.modeling.shipped_gallery import GALLERY_FOLDERS
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from speech_image_retrieval.retrieval.sources import Item
from speech_image_retrieval.training.export import export_model
from transformers import pipeline

from ..retrieval.tiny_gallery import tiny_model, tiny_processor, write_picture, write_recording

HUB_CARDS = Path(__file__).parents[2] / "hub_cards"


@dataclass(frozen=True)
class Media:
    """Files to search with and to be found."""

    pictures: list[Path]
    recordings: list[Path]


@dataclass(frozen=True)
class Published:
    """A folder as it is published, its pipeline, and the indexes that its galleries are of."""

    folder: Path
    pipe: SpeechImageRetrievalPipeline
    pictures: SpeechImageIndex
    recordings: SpeechImageIndex

    @staticmethod
    def items(files: Sequence[Path]) -> Iterator[Item]:
        for number, path in enumerate(files):
            yield Item(str(path), "tests", path.name, path, "1", 1, str(path), text=f"text {number}")


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


@pytest.fixture(scope="session")
def published(exported: Path, media: Media, tmp_path_factory) -> Published:
    folder = tmp_path_factory.mktemp("published") / "tiny"
    shutil.copytree(exported, folder)
    pipe = pipeline(model=str(folder), pipeline_class=SpeechImageRetrievalPipeline, device="cpu")
    indexes = []
    for modality, files in (("image", media.pictures), ("speech", media.recordings)):
        index = SpeechImageIndex.create(folder.parent / modality, pipe.model, pipe.processor, modality)
        index.add(Published.items(files))
        write_gallery(index, folder / GALLERY_FOLDERS[modality], score_rule="sim+sic")
        indexes.append(index)
    return Published(folder, pipe, *indexes)
