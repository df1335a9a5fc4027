"""What readers and the disk keep of an index that is written to meanwhile."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from speech_image_retrieval.retrieval import compaction, index_search
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from speech_image_retrieval.retrieval.sources import FolderSource

from .tiny_gallery import picture_folder, tiny_model, tiny_processor, write_picture

QUERY = {"array": np.random.default_rng(0).normal(0, 0.1, 8_000), "sampling_rate": 16_000}


@pytest.fixture
def pictures(tmp_path: Path) -> FolderSource:
    return FolderSource(picture_folder(tmp_path / "pictures", 12), "image")


@pytest.fixture
def index(tmp_path: Path, pictures: FolderSource) -> SpeechImageIndex:
    index = SpeechImageIndex.create(tmp_path / "index", tiny_model(), tiny_processor())
    index.update_from(pictures)
    return index


def keep_no_old_version(monkeypatch) -> None:
    monkeypatch.setattr(compaction, "_SUPERSEDED_KEPT", timedelta(0))
    monkeypatch.setattr(compaction, "_CLOCKS_DIFFER", timedelta(0))


def change_all(pictures: FolderSource) -> None:
    for number, item in enumerate(list(pictures)):
        write_picture(item.medium, seed=1_000 + number)


def do_once_before_reranking(monkeypatch, action) -> list[object]:
    """`action` happens between the coarse search and the re-ranking; what is returned grows with every re-ranking."""
    read, calls = index_search.candidate_states, []

    def meanwhile(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            action()
        return read(*arguments)

    monkeypatch.setattr(index_search, "candidate_states", meanwhile)
    return calls


@pytest.mark.parametrize(("minutes_ago", "kept_from"), [([60, 40, 1], 40), ([60, 7, 6], 6), ([2, 1], 2)])
def test_a_version_is_kept_until_it_was_superseded_for_a_while(minutes_ago: list[int], kept_from: int):
    now = datetime.now()

    class Table:
        def list_versions(self) -> list[dict]:
            return [{"timestamp": now - timedelta(minutes=minutes)} for minutes in minutes_ago]

    assert compaction._superseded_before(Table()) == now - timedelta(minutes=kept_from)


def test_a_search_whose_version_is_cleaned_away_begins_again(index, pictures, monkeypatch):
    other = SpeechImageIndex.open(index.uri, tiny_model(), tiny_processor())
    keep_no_old_version(monkeypatch)

    def change() -> None:
        change_all(pictures)
        other.update_from(pictures)

    calls = do_once_before_reranking(monkeypatch, change)
    (results,) = index.search([QUERY], top_k=12)
    assert {result.id for result in results} == {item.id for item in pictures} and len(calls) == 2


def test_a_thread_that_updates_leaves_the_search_of_another_its_version(index, pictures, monkeypatch):
    (before,) = index.search([QUERY], top_k=12)

    def change() -> None:
        change_all(pictures)
        assert index.update_from(pictures).changed == 12 == len(index)

    calls = do_once_before_reranking(monkeypatch, change)
    (results,) = index.search([QUERY], top_k=12)
    assert results == before and len(calls) == 1


def previews(index: SpeechImageIndex) -> list[bytes]:
    return [preview for batch in index.rows(["preview"]) for preview in batch["preview"].to_pylist()]


def on_disk(index: SpeechImageIndex, searched: list[bytes]) -> int:
    content = b"".join(file.read_bytes() for file in Path(index.uri, "items.lance", "data").iterdir())
    return sum(preview in content for preview in searched)


def test_what_an_update_deleted_leaves_the_disk_with_a_later_one(index, pictures, monkeypatch):
    before = previews(index)
    for item in list(pictures)[:10]:
        item.medium.unlink()
    assert index.update_from(pictures).deleted == 10
    assert on_disk(index, before) == 12, "a search may still read them"
    keep_no_old_version(monkeypatch)
    index.update_from(pictures)
    assert on_disk(index, before) == 2


def test_a_removed_source_leaves_the_disk_with_a_later_update(index, pictures, tmp_path: Path, monkeypatch):
    others = FolderSource(picture_folder(tmp_path / "others", 2), "image")
    for number, item in enumerate(list(others)):
        write_picture(item.medium, seed=2_000 + number)
    known = set(previews(index))
    index.update_from(others)
    removed = [preview for preview in previews(index) if preview not in known]
    index.remove(others.name)
    keep_no_old_version(monkeypatch)
    index.update_from(pictures)
    assert len(removed) == 2 and on_disk(index, removed) == 0


def test_updates_of_all_files_leave_no_old_ones(index, pictures, monkeypatch):
    keep_no_old_version(monkeypatch)
    for _ in range(3):
        change_all(pictures)
        index.update_from(pictures)
    assert len(list(Path(index.uri, "items.lance", "data").iterdir())) == 1
