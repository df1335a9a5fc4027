"""Noise exchanges pictures between training captions and touches nothing else."""

import sys
from collections import Counter

import pytest
from speech_image_retrieval.corpora.schema import load_corpus, save_corpus, split_from_rows

from benchmarks import noisy_pairs

ROWS = [
    {
        "image": {"bytes": f"picture {number // 2}".encode(), "path": None},
        "audio": {"bytes": f"recording {number}".encode(), "path": None},
        "image_id": f"id {number // 2}",
        "caption_id": f"caption {number}",
        "text": f"text {number}",
        "speaker": f"speaker {number}",
        "language": f"en-{number}",
    }
    for number in range(100)
]


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    rows = split_from_rows(lambda: iter(ROWS))
    save_corpus({"train": rows, "validation": rows, "test": rows, "test_other": rows}, tmp_path / "corpus")

    def call(*options: str):
        command = ["noisy_pairs", str(tmp_path / "corpus"), *options, "--out", str(tmp_path / "noisy")]
        monkeypatch.setattr(sys, "argv", command)
        noisy_pairs.main()
        return {name: split.to_list() for name, split in load_corpus(tmp_path / "noisy").items()}

    return call


def _without_picture(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("image", "image_id")}


def test_the_share_of_the_captions_has_another_picture_and_all_else_is_as_it_was(mixed):
    splits = mixed("--share", "0.3")
    train = splits.pop("train")
    wrong = [new for new, old in zip(train, ROWS, strict=True) if new["image_id"] != old["image_id"]]
    assert 25 <= len(wrong) <= 30, "one that gets the picture of its own other caption is right"
    assert [_without_picture(row) for row in train] == [_without_picture(row) for row in ROWS]
    for row in train:
        assert row["image"]["bytes"].decode().removeprefix("picture ") == row["image_id"].removeprefix("id ")
    assert Counter(row["image_id"] for row in train) == Counter(row["image_id"] for row in ROWS)
    assert set(splits) == {"validation", "test", "test_other"}
    assert all(rows == ROWS for rows in splits.values())


def test_nothing_is_left_beside_the_corpora(mixed, tmp_path):
    before = sorted((tmp_path / "corpus").rglob("*"))
    mixed("--share", "0.3")
    assert sorted((tmp_path / "corpus").rglob("*")) == before
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "noisy"}


def test_nothing_and_everything_can_be_wrong(mixed):
    assert mixed("--share", "0")["train"] == ROWS
    everything = mixed("--share", "1")["train"]
    assert sum(new["image_id"] == old["image_id"] for new, old in zip(everything, ROWS, strict=True)) <= 5
    assert mixed("--share", "0.3", "--seed", "1") != mixed("--share", "0.3", "--seed", "0")


def test_a_share_that_is_none_is_refused(mixed):
    with pytest.raises(SystemExit):
        mixed("--share", "30")
