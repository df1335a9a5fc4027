from __future__ import annotations

import re
from pathlib import Path

import pytest
from speech_image_retrieval.corpora.locating import (
    DEPTH,
    MediaFolders,
    checked_relative,
    find_files,
    find_matching,
    nothing_found,
    walk,
)
from speech_image_retrieval.corpora.schema import CorpusError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_files_are_found_nearest_a_source_first(tmp_path: Path):
    touch(tmp_path / "a/deep/er/one.json")
    near = touch(tmp_path / "b/c/one.json")
    two = touch(tmp_path / "a/two.json")
    found = find_files([tmp_path / "a", tmp_path / "b"], ["one.json", "two.json", "three.json"])
    assert found == {"one.json": near, "two.json": two}


def test_names_are_exact(tmp_path: Path):
    touch(tmp_path / "._one.json")
    touch(tmp_path / "one.json.gz")
    (tmp_path / "one.json").mkdir()
    assert find_files([tmp_path], ["one.json"]) == {}


def test_depth_is_bounded(tmp_path: Path):
    deepest = touch(tmp_path.joinpath(*"abcde"[:DEPTH], "one.json"))
    touch(tmp_path.joinpath(*"abcdef", "two.json"))
    assert find_files([tmp_path], ["one.json", "two.json"]) == {"one.json": deepest}


def test_what_is_below_folders_of_media_is_not_looked_through(tmp_path: Path):
    touch(tmp_path / "wavs/val/one.json")
    beside = touch(tmp_path / "wavs/two.json")
    assert find_files([tmp_path], ["one.json", "two.json"]) == {"two.json": beside}
    # As a source itself it is.
    assert find_files([tmp_path / "wavs"], ["one.json"])
    assert tmp_path / "wavs" in walk([tmp_path])


def test_a_folder_of_thousands_of_files_is_taken_for_media_unless_it_is_a_source(tmp_path: Path):
    for number in range(1100):
        touch(tmp_path / "pictures" / f"{number}.jpg")
    touch(tmp_path / "pictures/zz/one.json")
    assert find_files([tmp_path], ["one.json"]) == {}
    assert find_files([tmp_path / "pictures"], ["one.json"])
    assert find_matching([tmp_path], re.compile(r"1\.jpg")) == []


def test_links_in_a_circle_end(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").symlink_to(tmp_path, target_is_directory=True)
    assert list(walk([tmp_path])) == [tmp_path, tmp_path / "a"]


def test_files_are_found_by_a_pattern_once_a_name(tmp_path: Path):
    near = touch(tmp_path / "part-1.jsonl")
    touch(tmp_path / "copy/part-1.jsonl")
    other = touch(tmp_path / "copy/part-2.jsonl")
    touch(tmp_path / "part-1.jsonl.gz")
    assert find_matching([tmp_path], re.compile(r"part-\d\.jsonl")) == [near, other]


@pytest.mark.parametrize("sources", [["nowhere"], [], ["file"]])
def test_a_source_that_is_no_folder_is_refused(sources: list[str], tmp_path: Path):
    touch(tmp_path / "file")
    with pytest.raises(CorpusError, match="folder"):
        find_files([tmp_path / source for source in sources], ["one.json"])


def test_the_error_tells_what_was_looked_for_and_what_is_there(tmp_path: Path):
    touch(tmp_path / "a/other.json")
    (tmp_path / "a/folder").mkdir()
    (tmp_path / "b").mkdir()
    message = str(nothing_found("Corpus", [tmp_path / "a", tmp_path / "b"], ["one.json"]))
    assert "one.json" in message
    assert f"{tmp_path / 'a'}: folder/, other.json" in message
    assert f"{tmp_path / 'b'}: nothing" in message


def test_media_are_relative_to_the_folder_that_has_them(tmp_path: Path):
    touch(tmp_path / "b/data/train/1.jpg")
    touch(tmp_path / "a/val/2.jpg")
    folders = MediaFolders([tmp_path / "a", tmp_path / "b"])
    assert folders.path("train/1.jpg") == tmp_path / "b/data/train/1.jpg"
    assert folders.path("train/missing.jpg") == tmp_path / "b/data/train/missing.jpg"
    assert folders.path("val/2.jpg") == tmp_path / "a/val/2.jpg"


def test_likely_folders_come_first(tmp_path: Path):
    touch(tmp_path / "train/1.jpg")
    touch(tmp_path / "copy/train/1.jpg")
    assert MediaFolders([tmp_path], [tmp_path / "copy"]).path("train/1.jpg") == tmp_path / "copy/train/1.jpg"


def test_kinds_of_media_lie_apart(tmp_path: Path):
    touch(tmp_path / "training/1.jpg")
    touch(tmp_path / "validation/2.jpg")
    folders = MediaFolders([tmp_path])
    assert folders.path("1.jpg", "training") == tmp_path / "training/1.jpg"
    assert folders.path("2.jpg", "validation") == tmp_path / "validation/2.jpg"


def test_missing_media_are_missed_in_a_folder_of_that_name(tmp_path: Path):
    (tmp_path / "data/train").mkdir(parents=True)
    folders = MediaFolders([tmp_path])
    assert folders.place("train/1.jpg") is None
    assert folders.path("train/1.jpg") == tmp_path / "data/train/1.jpg"
    assert folders.path("other/1.jpg") == tmp_path / "other/1.jpg"


@pytest.mark.parametrize("path", ["../a.wav", "wavs/../../a.wav", "/etc/passwd", "wavs/.."])
def test_paths_that_lead_out_of_the_corpus_are_refused(path: str):
    with pytest.raises(CorpusError, match=r"x\.json, entry 3.*leads out"):
        checked_relative(path, "x.json, entry 3")


def test_other_paths_are_taken_as_they_are():
    assert checked_relative("wavs/..a/b..wav", "x.json") == "wavs/..a/b..wav"
