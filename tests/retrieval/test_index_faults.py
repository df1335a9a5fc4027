from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from speech_image_retrieval.retrieval.index_table import IndexInfo, IndexProblem, create_table, damage_explained
from speech_image_retrieval.retrieval.sources import FolderSource

from ..fresh_process import run_script
from .tiny_gallery import picture_folder, tiny_model, tiny_processor

SCRIPT = Path(__file__).with_name("interrupted_updates.py")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """Two folders of pictures, `one` and `two`; `killed`, of one, by writers that were killed; `shared`, of both."""
    root = tmp_path_factory.mktemp("interrupted")
    folders = [picture_folder(root / name, 40) for name in ("one", "two")]
    script = f"""
        import runpy, sys
        sys.path.insert(0, {str(SCRIPT.parent)!r})
        runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    finished = run_script(script, root / "killed", root / "shared", *folders, env=environment)
    assert finished.returncode == 0, finished.stderr
    return root


def contents(index: SpeechImageIndex) -> dict[str, dict]:
    columns = ["id", "fingerprint", "embedding", "token_count", "states", "preview"]
    rows = [row for batch in index.rows(columns) for row in batch.to_pylist()]
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def assert_same(one: SpeechImageIndex, other: SpeechImageIndex) -> None:
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    for item_id, row in first.items():
        twin = second[item_id]
        assert all(row[name] == twin[name] for name in ("fingerprint", "token_count", "preview"))
        np.testing.assert_allclose(row["embedding"], twin["embedding"], atol=1e-6)
        states, others = (np.frombuffer(part["states"], np.float16).astype(float) for part in (row, twin))
        np.testing.assert_allclose(states, others, atol=2e-3)


def test_an_index_that_was_killed_21_times_ends_like_an_uninterrupted_one(interrupted: Path, tmp_path: Path):
    folder = FolderSource(interrupted / "one", "image")
    killed = SpeechImageIndex.open(interrupted / "killed", tiny_model(), tiny_processor())
    assert len(contents(killed)), "some writes were finished"
    killed.update_from(folder)
    whole = SpeechImageIndex.create(tmp_path / "whole", tiny_model(), tiny_processor())
    whole.update_from(folder)
    assert len(whole) == 40
    assert_same(killed, whole)


def test_writers_at_once_lose_nothing_and_double_nothing(interrupted: Path):
    folders = [FolderSource(interrupted / name, "image") for name in ("one", "two")]
    ids = contents(SpeechImageIndex.open(interrupted / "shared")).keys()
    assert ids == {item.id for folder in folders for item in folder}


@pytest.fixture
def index(tmp_path: Path) -> SpeechImageIndex:
    index = SpeechImageIndex.create(tmp_path / "index", tiny_model(), tiny_processor())
    index.update_from(FolderSource(picture_folder(tmp_path / "pictures", 40), "image"))
    return index


def data_file(index: SpeechImageIndex) -> Path:
    (file,) = Path(index.uri, "items.lance", "data").glob("*.lance")
    return file


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def end_in_zeros(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))


@pytest.mark.parametrize("damage", [cut_off, end_in_zeros, Path.unlink])
def test_a_damaged_data_file_is_named(index: SpeechImageIndex, damage, tmp_path: Path):
    file = data_file(index)
    damage(file)
    reopened = SpeechImageIndex.open(index.uri, tiny_model(), tiny_processor())
    picture_folder(tmp_path / "pictures", 41)
    with pytest.raises(IndexProblem, match=rf"{file.name}.*build it again"):
        reopened.update_from(FolderSource(tmp_path / "pictures", "image"))
    with pytest.raises(IndexProblem, match=file.name):
        reopened.search([{"array": np.ones(8_000), "sampling_rate": 16_000}])


@pytest.mark.parametrize("column", ["embedding", "preview", "states"])
def test_rows_whose_bytes_changed_are_named(index: SpeechImageIndex, column: str):
    assert index.check() == []
    (row,) = [row for batch in index.rows(["id", column], "name = '0/003.png'") for row in batch.to_pylist()]
    value = row[column] if isinstance(row[column], bytes) else np.asarray(row[column], np.float32).tobytes()
    content = bytearray(data_file(index).read_bytes())
    content[content.index(value) + 2] ^= 1
    data_file(index).write_bytes(content)
    assert SpeechImageIndex.open(index.uri).check() == [row["id"]]


def test_an_index_of_an_older_format_says_what_to_do(tmp_path: Path):
    create_table(str(tmp_path), IndexInfo("image", 4, 8, "org/model", "0", True, format=4))
    with pytest.raises(IndexProblem, match=r"format 4, and this version reads format 5\. Delete it, or choose"):
        SpeechImageIndex.create(tmp_path, tiny_model(), tiny_processor())


def test_an_error_of_the_model_is_not_taken_for_damage(index: SpeechImageIndex, monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(index._model, "match", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        index.search([{"array": np.ones(8_000), "sampling_rate": 16_000}])


def test_a_full_disk_is_not_taken_for_damage(index: SpeechImageIndex):
    with pytest.raises(IndexProblem, match=r"cannot be read or written.*No space left"), damage_explained(index.uri):
        raise RuntimeError("lance error: LanceError(IO): No space left on device")


def test_no_index(tmp_path: Path):
    with pytest.raises(IndexProblem, match=r"holds no index\. Build one"):
        SpeechImageIndex.open(tmp_path / "nothing")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(IndexProblem, match="is not an index"):
        SpeechImageIndex.create(tmp_path, tiny_model(), tiny_processor())
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
