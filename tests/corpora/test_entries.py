from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from speech_image_retrieval.corpora.entries import Entry, json_file, json_lines, stream_entries, top_level_text
from speech_image_retrieval.corpora.schema import CorpusError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_entries_are_streamed(tmp_path: Path):
    path = write(tmp_path / "x.json", json.dumps({"data": [{"uttid": "u", "text": "word " * 200}] * 10_000}))
    tracemalloc.start()
    assert sum(1 for _ in stream_entries(path, "data")) == 10_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [{"a": 1}, {"a": ', r"x\.json: no valid JSON after entry 1 of 'data': .*EOF"),
        ('{"data": [{"a": 1}', r"x\.json: no valid JSON"),
        (b'{"data": [{"a": "\xff"}]}', r"x\.json: no valid JSON after entry 0 of 'data': .*UTF8"),
        ("", r"x\.json: no valid JSON"),
        ('{"other": [{"a": 1}]}', r"x\.json: there is no list 'data'"),
        ('[{"a": 1}]', r"x\.json: there is no list 'data'"),
        ('{"data": []}', r"x\.json: there is no list 'data'"),
        ('{"data": {"a": 1}}', r"x\.json: there is no list 'data'"),
        ('{"data": [{"a": 1}, 7]}', r"x\.json, entry 2 of 'data' should be an object with keys, not 7"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(content: str | bytes, message: str, tmp_path: Path):
    with pytest.raises(CorpusError, match=message):
        list(stream_entries(write(tmp_path / "x.json", content), "data"))


def test_what_is_wrong_with_a_line_is_told(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", '{"a": 1}\n\n{"a": \n')
    with pytest.raises(CorpusError, match=r"x\.jsonl, line 3: no valid JSON"):
        list(json_lines(path))
    with pytest.raises(CorpusError, match=r"x\.jsonl, line 1 should be an object"):
        list(json_lines(write(path, "[1]\n")))


def test_what_is_wrong_with_a_small_file_is_told(tmp_path: Path):
    with pytest.raises(CorpusError, match=r"x\.json: no valid JSON"):
        json_file(write(tmp_path / "x.json", ""))


def test_top_level_text_may_follow_the_data(tmp_path: Path):
    path = write(tmp_path / "x.json", '{"data": [{"image_base_path": "/no"}], "image_base_path": "/yes", "n": 3}')
    assert top_level_text(path, "image_base_path") == "/yes"
    assert top_level_text(path, "n") is None
    assert top_level_text(path, "audio_base_path") is None


def test_values_are_text():
    entry = Entry("x.json, entry 7", {"a": "x", "n": 12, "empty": "", "null": None, "list": [1], "yes": True})
    assert entry.text("a") == "x"
    assert entry.text("n") == "12"
    assert entry.text("empty") is entry.text("null") is entry.text("none") is None
    assert entry.text("none", "null", "a") == "x"
    assert entry.text_that_may_be_empty("empty") is None
    for key in ("list", "yes"):
        with pytest.raises(CorpusError, match=f"entry 7: '{key}' should be text"):
            entry.text(key)


@pytest.mark.parametrize("key", ["none", "null", "empty"])
def test_what_must_be_there_is_missed_by_name(key: str):
    entry = Entry("x.json, entry 7", {"a": "x", "empty": "", "null": None})
    with pytest.raises(CorpusError, match=rf"x\.json, entry 7: no '{key}'. Its keys: a, empty, null"):
        entry.required_text(key)


def test_nested_entries_say_where_they_are():
    entry = Entry("x.json, entry 7", {"captions": [{"a": "x"}, 3], "caption": {"a": "y"}})
    assert entry.entry("caption").where == "x.json, entry 7: 'caption'"
    with pytest.raises(CorpusError, match=r"x\.json, entry 7: 'captions', item 2 should be an object"):
        entry.entries("captions")
    with pytest.raises(CorpusError, match=r"x\.json, entry 7: no list 'caption'"):
        entry.entries("caption")
    with pytest.raises(CorpusError, match=r"x\.json, entry 7: 'none' should be an object with keys, not nothing"):
        entry.entry("none")


def test_paths_must_stay_inside():
    entry = Entry("x.json, entry 7", {"wav": "../a.wav"})
    with pytest.raises(CorpusError, match=r"x\.json, entry 7: 'wav': the path '\.\./a\.wav' leads out"):
        entry.relative_path("wav")
