from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from speech_image_retrieval.corpora.schema import (
    FEATURES,
    SPLITS,
    CorpusError,
    building_folder,
    check_replaceable,
    check_schema,
    load_corpus,
    save_corpus,
    split_from_rows,
)


def _rows(names: list[str], text: str | None = "a red circle"):
    for name in names:
        yield {
            "image": {"bytes": f"picture {name}".encode(), "path": None},
            "audio": {"bytes": f"speech {name}".encode(), "path": None},
            "image_id": name,
            "caption_id": f"{name}#0",
            "text": text,
            "speaker": None,
            "language": "en-GB",
        }


def _split(*names: str, **kwargs) -> Dataset:
    return split_from_rows(_rows, names=list(names), **kwargs)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _splits(prefix: str = "") -> dict[str, Dataset]:
    return {name: _split(f"{prefix}{name}-a", f"{prefix}{name}-b") for name in SPLITS}


def test_saved_corpus_reads_back_with_the_same_rows_and_types(tmp_path: Path):
    corpus = save_corpus(_splits(), tmp_path / "corpus")
    assert list(corpus) == list(SPLITS)
    assert corpus["train"].features == FEATURES
    assert list(corpus["test"]) == list(_rows(["test-a", "test-b"]))
    assert list(load_corpus(tmp_path / "corpus")["validation"]) == list(_rows(["validation-a", "validation-b"]))


def test_further_test_splits_are_saved_after_the_required_ones(tmp_path: Path):
    corpus = save_corpus({"test_unseen": _split("x"), **_splits(), "test_other": _split("y")}, tmp_path / "corpus")
    assert list(corpus) == [*SPLITS, "test_unseen", "test_other"]
    assert list(load_corpus(tmp_path / "corpus")["test_unseen"]) == list(_rows(["x"]))


def test_further_test_splits_are_checked_too():
    with pytest.raises(CorpusError, match="'test_unseen' is empty"):
        check_schema({**_splits(), "test_unseen": _split("x").select([])}, where="here")
    with pytest.raises(CorpusError, match="'test_unseen' needs the columns speaker"):
        check_schema({**_splits(), "test_unseen": _split("x").remove_columns("speaker")}, where="here")


def test_rows_keep_their_order_when_processes_share_them():
    names = [str(number) for number in range(7)]
    assert list(_split(*names, num_proc=3)) == list(_split(*names)) == list(_rows(names))


def test_rows_are_generated_anew_when_only_what_the_generator_calls_has_changed(monkeypatch: pytest.MonkeyPatch):
    assert _described("x")["text"][0] == "a red circle"
    monkeypatch.setattr(f"{__name__}._describe", lambda: "a blue square")
    assert _described("x")["text"][0] == "a blue square"


def _described(*names: str) -> Dataset:
    return split_from_rows(_described_rows, names=list(names))


def _described_rows(names: list[str]):
    yield from _rows(names, _describe())


def _describe() -> str:
    return "a red circle"


def test_rows_wait_in_the_folder_named_and_not_in_the_shared_cache(tmp_path: Path):
    split = _split("x", cache_dir=tmp_path)
    files = [Path(file["filename"]) for file in split.cache_files]
    assert files
    assert all(file.is_relative_to(tmp_path) for file in files)


def test_a_save_that_fails_leaves_the_older_corpus_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_corpus(_splits("old-"), tmp_path / "corpus")

    def fail_half_way(self, path, **_):
        (Path(path) / "train").mkdir(parents=True)
        (Path(path) / "dataset_dict.json").write_text('{"splits": ["train"]}')
        raise OSError("No space left on device")

    monkeypatch.setattr(datasets.DatasetDict, "save_to_disk", fail_half_way)
    with pytest.raises(OSError, match="No space left"):
        save_corpus(_splits("new-"), tmp_path / "corpus")
    assert load_corpus(tmp_path / "corpus")["train"]["image_id"][0] == "old-train-a"
    assert _names(tmp_path) == ["corpus"]


def test_a_save_that_fails_at_a_new_place_leaves_nothing_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.DatasetDict, "save_to_disk", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_corpus(_splits(), tmp_path / "corpus")
    with pytest.raises(CorpusError, match="sir corpus build"):
        load_corpus(tmp_path / "corpus")


def test_a_corpus_takes_the_place_of_an_older_one(tmp_path: Path):
    save_corpus(_splits("old-"), tmp_path / "corpus")
    save_corpus(_splits("new-"), tmp_path / "corpus")
    assert load_corpus(tmp_path / "corpus")["train"]["image_id"][:] == ["new-train-a", "new-train-b"]
    assert _names(tmp_path) == ["corpus"]


def test_an_open_corpus_can_be_saved_over_itself(tmp_path: Path):
    corpus = save_corpus(_splits(), tmp_path / "corpus")
    save_corpus({**corpus, "train": corpus["train"].select([1])}, tmp_path / "corpus")
    assert load_corpus(tmp_path / "corpus")["train"]["image_id"][:] == ["train-b"]


def test_what_is_not_a_corpus_is_not_replaced(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("four years")
    with pytest.raises(CorpusError, match="not a corpus"):
        save_corpus(_splits(), tmp_path)
    with pytest.raises(CorpusError, match="not a corpus"):
        check_replaceable(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "four years"


def test_building_folder_is_beside_the_target_and_goes_even_after_an_error(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), building_folder(tmp_path / "far" / "corpus") as folder:
        assert folder.parent == tmp_path / "far"
        raise KeyboardInterrupt
    assert _names(tmp_path / "far") == []


@pytest.mark.parametrize("name", SPLITS)
def test_missing_and_empty_splits_are_refused(name: str):
    splits = _splits()
    with pytest.raises(CorpusError, match=f"{name!r} is empty"):
        check_schema({**splits, name: splits[name].select([])}, where="here")
    del splits[name]
    with pytest.raises(CorpusError, match=f"here: split {name!r} is missing"):
        check_schema(splits, where="here")


def test_wrong_and_missing_columns_are_named():
    splits = _splits()
    with pytest.raises(CorpusError, match="'test' needs the columns speaker"):
        check_schema({**splits, "test": splits["test"].remove_columns("speaker")}, where="here")
    numbered = splits["train"].remove_columns("image_id").add_column("image_id", [1, 2])
    with pytest.raises(CorpusError, match="'train' needs the columns image_id"):
        check_schema({**splits, "train": numbered}, where="here")


@pytest.mark.parametrize("num_proc", [None, 2])
def test_an_error_of_the_generator_arrives_as_it_was_raised(num_proc: int | None):
    with pytest.raises(CorpusError, match=r"^b\.wav holds no sound; record it again$"):
        split_from_rows(_failing_rows, num_proc, names=["a", "b"])


def _failing_rows(names: list[str]):
    for row in _rows(names):
        if row["image_id"] == "b":
            raise CorpusError("b.wav holds no sound; record it again")
        yield row
