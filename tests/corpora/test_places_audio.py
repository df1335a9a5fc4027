from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from speech_image_retrieval.corpora.building import Built, build_from_files
from speech_image_retrieval.corpora.media_facts import EMPTY, NO_SAMPLES, UNREADABLE
from speech_image_retrieval.corpora.places_audio import NO_SPEAKER, NO_TEXT, read_places_audio
from speech_image_retrieval.corpora.schema import CorpusError

from . import fixture_trees as trees

DRAWN = {"abbey1", "abbey11", "abbey25"}
WRITE_2017 = [trees.write_places_2017, trees.write_places_2017_tables]


def build(out: Path, *sources: Path) -> Built:
    return build_from_files(read_places_audio(sources), out, num_proc=1)


def rows_by_id(built: Built) -> dict[str, dict[str, Any]]:
    return {row["caption_id"]: {**row, "split": split} for split, rows in built.corpus.items() for row in rows}


def edit(path: Path, change: Callable[[dict], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def expected(root: Path, name: str, split: str) -> dict[str, Any]:
    entry = trees.places_entry(name)
    return {
        "image": {"bytes": None, "path": str(root / "images256" / entry["image"])},
        "audio": {"bytes": None, "path": str(root / entry["wav"])},
        "image_id": entry["image"],
        "caption_id": entry["uttid"],
        "text": entry["asr_text"],
        "speaker": entry["speaker"],
        "language": "en",
        "split": split,
    }


@pytest.fixture
def root_2020(tmp_path: Path) -> Path:
    trees.write_places_2020(tmp_path / "root")
    return tmp_path / "root"


def test_the_release_of_2020(root_2020: Path, tmp_path: Path):
    built = build(tmp_path / "out", root_2020)
    names = {"dev_seen": "validation", "test_seen": "test", "dev_unseen": "test_dev_unseen"}
    wanted = [
        expected(root_2020, name, names.get(split, split)) for split, own in trees.PLACES_2020.items() for name in own
    ]
    assert rows_by_id(built) == {row["caption_id"]: row for row in wanted}
    assert built.report["rows"] == {"train": 3, "validation": 2, "test": 2, "test_unseen": 1, "test_dev_unseen": 1}
    assert built.report["read"] == {}


def test_the_unseen_splits_may_be_absent(root_2020: Path, tmp_path: Path):
    for split in ("dev_unseen", "test_unseen"):
        (root_2020 / f"metadata/{split}_2020.json").unlink()
    assert build(tmp_path / "out", root_2020).report["rows"] == {"train": 3, "validation": 2, "test": 2}


@pytest.mark.parametrize("write", WRITE_2017)
def test_the_release_of_2017_has_its_val_as_test_and_draws_validation(write: Callable[[Path], None], tmp_path: Path):
    root = tmp_path / "root"
    write(root)
    built = build(tmp_path / "out", root)
    wanted = [
        expected(root, name, "test" if split == "val" else "validation" if name in DRAWN else "train")
        for split, names in trees.PLACES_2017.items()
        for name in names
    ]
    assert rows_by_id(built) == {row["caption_id"]: row for row in wanted}
    assert built.report["rows"] == {"train": 27, "validation": 3, "test": 2}
    assert any("no test split" in note and "hash" in note for note in built.report["notes"])


def test_of_several_releases_the_latest_is_read(root_2020: Path, tmp_path: Path):
    for write in WRITE_2017:
        write(root_2020)
    reading = read_places_audio([root_2020])
    assert "the release of 2020" in reading.notes[0]
    assert reading.notes[1].count("the release of 2017") == 2


def test_the_tables_may_lack_speakers_and_transcripts(tmp_path: Path):
    root = tmp_path / "root"
    trees.write_places_2017_tables(root)
    (root / "metadata/utt2spk").unlink()
    (root / "metadata/utt2ASR").unlink()
    built = build(tmp_path / "out", root)
    assert {(row["speaker"], row["text"]) for row in rows_by_id(built).values()} == {(None, None)}
    assert {kind: found["count"] for kind, found in built.report["read"].items()} == {NO_TEXT: 32, NO_SPEAKER: 32}


def test_an_utterance_without_a_transcript_is_kept_and_reported(tmp_path: Path):
    root = tmp_path / "root"
    trees.write_places_2017_tables(root)
    uttid = trees.places_entry("abbey7")["uttid"]
    table = root / "metadata/utt2ASR"
    table.write_text("".join(line for line in table.open() if not line.startswith(uttid)) + f"{uttid}\n")
    built = build(tmp_path / "out", root)
    assert rows_by_id(built)[uttid]["text"] is None
    assert built.report["read"] == {NO_TEXT: {"count": 1, "first": [uttid]}}


@pytest.mark.parametrize("table", ["utt2wav", "utt2image"])
def test_an_utterance_that_a_table_lacks_is_refused(table: str, tmp_path: Path):
    root = tmp_path / "root"
    trees.write_places_2017_tables(root)
    uttid = trees.places_entry("abbey7")["uttid"]
    file = root / "metadata" / table
    file.write_text("".join(line for line in file.open() if not line.startswith(uttid)))
    with pytest.raises(CorpusError, match=f"{table} has no value for {uttid}"):
        build(tmp_path / "out", root)


def test_an_empty_table_is_refused(tmp_path: Path):
    trees.write_places_2017_tables(tmp_path / "root")
    (tmp_path / "root/metadata/utt2wav").write_text("")
    with pytest.raises(CorpusError, match="utt2wav is empty"):
        build(tmp_path / "out", tmp_path / "root")


@pytest.mark.parametrize(("table", "key"), [("utt2wav", "wavs"), ("utt2image", "a/abbey")])
def test_paths_of_the_tables_that_lead_out_are_refused(table: str, key: str, tmp_path: Path):
    trees.write_places_2017_tables(tmp_path / "root")
    file = tmp_path / "root/metadata" / table
    file.write_text(file.read_text().replace(f" {key}", f" ../{key}"))
    with pytest.raises(CorpusError, match=rf"{table}, A1abbey0-GSUN_abbey0: the path '\.\./.*leads out"):
        build(tmp_path / "out", tmp_path / "root")


@pytest.mark.parametrize(("text", "speaker"), [("text", "spk"), ("caption", "speaker")])
def test_other_spellings_of_transcript_and_speaker(text: str, speaker: str, root_2020: Path, tmp_path: Path):
    for split in trees.PLACES_2020:

        def respell(values: dict) -> None:
            for entry in values["data"]:
                entry[text] = entry.pop("asr_text")
                entry[speaker] = entry.pop("speaker")

        edit(root_2020 / f"metadata/{split}_2020.json", respell)
    row = rows_by_id(build(tmp_path / "out", root_2020))["A1dam0-GSUN_dam0"]
    assert row == expected(root_2020, "dam0", "test")


def test_an_unknown_spelling_is_reported(root_2020: Path, tmp_path: Path):
    edit(root_2020 / "metadata/train_2020.json", lambda values: values["data"][0].pop("asr_text"))
    edit(root_2020 / "metadata/train_2020.json", lambda values: values["data"][1].pop("speaker"))
    assert build(tmp_path / "out", root_2020).report["read"] == {
        NO_TEXT: {"count": 1, "first": ["A1abbey0-GSUN_abbey0"]},
        NO_SPEAKER: {"count": 1, "first": ["A1abbey1-GSUN_abbey1"]},
    }


def test_base_paths_that_exist_are_used(tmp_path: Path):
    here = tmp_path / "root"
    trees.write_places_2020(here)
    elsewhere = tmp_path / "elsewhere"
    for split, names in trees.PLACES_2020.items():
        bases = {"image_base_path": str(elsewhere / "pictures"), "audio_base_path": str(elsewhere)}
        trees.write_json(here / f"metadata/{split}_2020.json", trees.places_json(names, **bases))
        trees.write_places_media(elsewhere, names, images="pictures")
    for row in rows_by_id(build(tmp_path / "out", here)).values():
        assert row["image"]["path"] == str(elsewhere / "pictures" / row["image_id"])
        assert row["audio"]["path"].startswith(str(elsewhere / "wavs"))


def test_pictures_and_recordings_may_be_under_other_sources(tmp_path: Path):
    for split, names in trees.PLACES_2020.items():
        trees.write_json(tmp_path / f"splits/{split}_2020.json", trees.places_json(names))
        trees.write_places_media(tmp_path / "media", names, images="data/vision/images256")
    built = build(tmp_path / "out", tmp_path / "splits", tmp_path / "media")
    assert len(rows_by_id(built)) == 9


def test_broken_recordings_are_a_known_defect(root_2020: Path, tmp_path: Path):
    empty, no_samples, unreadable = (root_2020 / trees.places_entry(f"abbey{number}")["wav"] for number in range(3))
    trees.write_places_media(root_2020, ["abbey3"])
    edit(
        root_2020 / "metadata/train_2020.json",
        lambda values: values["data"].append(trees.places_entry("abbey3")),
    )
    empty.write_bytes(b"")
    soundfile.write(no_samples, np.zeros(0, np.float32), trees.RATE)
    unreadable.write_bytes(b"RIFF....no recording")
    built = build(tmp_path / "out", root_2020)
    assert built.corpus["train"]["caption_id"] == ["A1abbey3-GSUN_abbey3"]
    left_out = {kind: found["count"] for kind, found in built.report["left_out"].items()}
    assert left_out == {EMPTY: 1, NO_SAMPLES: 1, UNREADABLE: 1}


def test_a_missing_recording_is_no_known_defect(root_2020: Path, tmp_path: Path):
    (root_2020 / trees.places_entry("abbey0")["wav"]).unlink()
    with pytest.raises(CorpusError, match="1 x missing file"):
        build(tmp_path / "out", root_2020)


@pytest.mark.parametrize("key", ["uttid", "wav", "image"])
def test_a_missing_key_is_named(key: str, root_2020: Path, tmp_path: Path):
    edit(root_2020 / "metadata/test_seen_2020.json", lambda values: values["data"][1].pop(key))
    with pytest.raises(CorpusError, match=rf"test_seen_2020\.json, entry 2 of 'data': no '{key}'"):
        build(tmp_path / "out", root_2020)


@pytest.mark.parametrize("key", ["wav", "image"])
def test_paths_that_lead_out_of_the_corpus_are_refused(key: str, root_2020: Path, tmp_path: Path):
    edit(root_2020 / "metadata/test_seen_2020.json", lambda values: values["data"][1].update({key: "/etc/passwd"}))
    with pytest.raises(CorpusError, match=rf"test_seen_2020\.json, entry 2 of 'data': '{key}'.*leads out"):
        build(tmp_path / "out", root_2020)


def test_a_file_that_is_cut_off_is_refused(root_2020: Path, tmp_path: Path):
    file = root_2020 / "metadata/train_2020.json"
    file.write_text(file.read_text()[:-30])
    with pytest.raises(CorpusError, match=r"train_2020\.json: no valid JSON"):
        build(tmp_path / "out", root_2020)


@pytest.mark.parametrize("there", ["train_2020.json", "train.json", "utt2wav"])
def test_no_whole_release_is_an_error_that_tells_what_is_there(there: str, tmp_path: Path):
    (tmp_path / there).write_text("{}")
    with pytest.raises(CorpusError) as error:
        read_places_audio([tmp_path])
    for name in ("dev_seen_2020.json", "val.json", "acl_2017_val_uttids"):
        assert name in str(error.value)
    assert f"{tmp_path}: {there}" in str(error.value)
