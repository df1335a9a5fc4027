"""What must not be published is refused, whatever it is called."""

from __future__ import annotations

import gzip
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from speech_image_retrieval.hub_cards.content import check_content, is_pickle
from speech_image_retrieval.hub_cards.refusal import PublishError


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


def test_what_training_exports_may_be_published(folder: Path):
    check_content(folder)


@pytest.mark.parametrize(
    "name",
    ["optimizer.bin", "optimizers.safetensors", "objective.safetensors", "random.safetensors", "trainer_state.json"],
)
def test_training_state_is_refused(folder: Path, name: str):
    shutil.copyfile(folder / "model.safetensors", folder / name)
    with pytest.raises(PublishError, match=f"{name} in .* is training state.*not the run"):
        check_content(folder)


def test_checkpoints_are_refused(folder: Path):
    (folder / "checkpoints" / "checkpoint-10").mkdir(parents=True)
    with pytest.raises(PublishError, match=r"checkpoints in .* is training state"):
        check_content(folder)


@pytest.mark.parametrize("suffix", ["bin", "pt", "pkl", "ckpt", "pth", "npz"])
def test_what_loaders_unpickle_is_refused_by_its_name(folder: Path, suffix: str):
    (folder / f"weights.{suffix}").write_bytes(b"whatever it holds")
    with pytest.raises(PublishError, match=r"pickle.*safetensors only"):
        check_content(folder)


@pytest.mark.parametrize("name", ["config.json", "media.py", "notes.txt", "README.md", "picture.png"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_under_every_name_and_protocol(folder: Path, name: str, protocol: int):
    (folder / name).write_bytes(pickle.dumps({"weights": [1.5, "text"]}, protocol=protocol))
    with pytest.raises(PublishError, match=f"{name} in .* pickle"):
        check_content(folder)


def test_archives_that_may_hold_pickles_are_refused(folder: Path):
    torch.save({"weights": torch.ones(2)}, folder / "notes.txt")
    with pytest.raises(PublishError, match=r"notes\.txt in .* pickle"):
        check_content(folder)
    (folder / "notes.txt").write_bytes(gzip.compress(pickle.dumps([1])))
    with pytest.raises(PublishError, match=r"notes\.txt in .* pickle"):
        check_content(folder)


def test_a_pickle_does_not_pass_for_safetensors(folder: Path):
    (folder / "model.safetensors").write_bytes(pickle.dumps(list(range(1000))))
    with pytest.raises(PublishError, match=r"model\.safetensors in .* is no \.safetensors file"):
        check_content(folder)


def test_something_behind_the_tensors_is_refused(folder: Path):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(pickle.dumps("payload"))
    with pytest.raises(PublishError, match=r"model\.safetensors in .* is no \.safetensors file"):
        check_content(folder)


def test_text_is_no_pickle(exported: Path, tmp_path: Path):
    assert not [path.name for path in exported.rglob("*") if path.suffix != ".safetensors" and is_pickle(path)]
    (tmp_path / "empty.txt").touch()
    assert not is_pickle(tmp_path / "empty.txt")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{", r"is no \.json file"),
        ("media.py", b"def", r"is no \.py file"),
        ("photo.png", b"GIF89", r"is no \.png file"),
        ("voice.wav", b"RIFF", r"is no \.wav file"),
        ("run.sh", b"#!/bin/sh", "of a kind that no published model holds"),
        ("notes.txt", b"\xff\xfe\x00", r"is no \.txt file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(folder: Path, name: str, content: bytes, words: str):
    (folder / name).write_bytes(content)
    with pytest.raises(PublishError, match=f"{name} in .* {words}"):
        check_content(folder)


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("a token")
    (folder / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(PublishError, match=r"notes\.txt in .* is a link to .*secret\.txt, outside"):
        check_content(folder)
    (folder / "notes.txt").unlink()
    (folder / "examples").symlink_to(tmp_path)
    with pytest.raises(PublishError, match=r"examples in .* is a link"):
        check_content(folder)


def test_links_within_the_folder_may_stay(folder: Path):
    (folder / "notes.json").symlink_to("config.json")
    check_content(folder)
