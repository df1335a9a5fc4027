from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from speech_image_retrieval.retrieval.index import SpeechImageIndex

from ..retrieval.tiny_gallery import save_tiny
from .hostile_files import recording
from .served_page import MAX_MEGABYTES, NOTE, Visitor, build_index, served


class Page(NamedTuple):
    """A page that is served, and the indexes behind it."""

    address: str
    folder: Path
    pictures: SpeechImageIndex
    recordings: SpeechImageIndex


@pytest.fixture(scope="session")
def page(tmp_path_factory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("served")
    model = save_tiny(folder / "model")
    pictures = build_index(folder / "pictures", folder / "index", "image", count=8)
    recordings = build_index(folder / "recordings", folder / "speech", "speech", count=5)
    options = ["--model", model, "--top-k", 6, "--rerank-top-k", 4, "--max-megabytes", MAX_MEGABYTES, "--note", NOTE]
    temporary = tmp_path_factory.mktemp("temporary")
    with served(folder / "index", folder / "speech", *options, temporary=temporary) as address:
        yield Page(address, folder, pictures, recordings)
        Visitor(address, "leaves a file").upload("left.wav", recording(0.3))
        assert list(temporary.glob("sir-app-*/files/*/*"))
    assert not list(temporary.glob("sir-app-*")), "uploads outlive the page"
