from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from speech_image_retrieval.corpora.building import Built, build_from_files
from speech_image_retrieval.corpora.schema import CorpusError
from speech_image_retrieval.corpora.speech_coco import NO_JSON, OTHER_NAME, read_speech_coco

from . import fixture_trees as trees

SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
SOME = trees.COCO[3]


def build(out: Path, *sources: Path) -> Built:
    return build_from_files(read_speech_coco(sources), out, num_proc=1)


def rows_by_id(built: Built) -> dict[str, dict[str, Any]]:
    return {row["caption_id"]: {**row, "split": split} for split, rows in built.corpus.items() for row in rows}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    trees.write_speech_coco(tmp_path / "root/CORPUS-MSCOCO")
    return trees.write_coco_pictures(tmp_path / "root")


def test_a_row_is_one_synthesised_caption(root: Path, tmp_path: Path):
    built = build(tmp_path / "out", root)
    assert built.report["rows"] == {"train": 15, "validation": 5, "test": 11}
    assert built.report["read"] == {}
    rows = rows_by_id(built)
    for caption in trees.COCO:
        assert rows[caption.speech_coco] == {
            "image": {"bytes": None, "path": str(root / caption.image)},
            "audio": {
                "bytes": None,
                "path": str(root / f"CORPUS-MSCOCO/{caption.folder}/wav/{caption.speech_coco}.wav"),
            },
            "image_id": str(caption.coco_id),
            "caption_id": caption.speech_coco,
            "text": f"caption {caption.sentid} of um picture {caption.coco_id}",
            "speaker": "Bronwen",
            "language": "en",
            "split": SPLITS[caption.split],
        }


@pytest.mark.parametrize("folder", ["", "CORPUS", "dataset/CORPUS-MSCOCO", "train2014"])
def test_the_archive_may_be_unpacked_anywhere(folder: str, tmp_path: Path):
    speech = trees.write_speech_coco(tmp_path / "root" / folder)
    pictures = trees.write_coco_pictures(tmp_path / "coco/images")
    built = build(tmp_path / "out", speech if folder == "train2014" else tmp_path / "root", pictures)
    assert built.report["rows"] == {"train": 15, "validation": 5, "test": 11}


def test_speech_and_pictures_may_be_in_the_same_folders(tmp_path: Path):
    trees.write_speech_coco(tmp_path / "root")
    trees.write_coco_pictures(tmp_path / "root")
    assert len(rows_by_id(build(tmp_path / "out", tmp_path / "root"))) == 31


def test_the_parts_may_be_apart(root: Path, tmp_path: Path):
    (root / "CORPUS-MSCOCO/val2014").rename(tmp_path / "val2014")
    assert len(rows_by_id(build(tmp_path / "out", root, tmp_path / "val2014"))) == 31


def test_a_missing_part_is_an_error_that_tells_what_is_there(root: Path):
    shutil.rmtree(root / "CORPUS-MSCOCO/val2014")
    with pytest.raises(CorpusError) as error:
        read_speech_coco([root])
    assert "val2014/ with json/ and wav/ in it" in str(error.value)
    assert "train2014/ with" not in str(error.value)
    assert f"{root}: CORPUS-MSCOCO/, train2014/, val2014/" in str(error.value)


def test_a_speaker_who_is_not_in_the_json_is_in_the_name(root: Path, tmp_path: Path):
    file = root / f"CORPUS-MSCOCO/{SOME.folder}/json/{SOME.speech_coco}.json"
    trees.write_json(file, {"synthesisedCaption": "um a cat"})
    row = rows_by_id(build(tmp_path / "out", root))[SOME.speech_coco]
    assert (row["speaker"], row["text"]) == ("Bronwen", "um a cat")


def test_what_has_no_json_or_another_name_is_left_out_and_reported(root: Path, tmp_path: Path):
    folder = root / "CORPUS-MSCOCO" / SOME.folder
    (folder / "json" / f"{SOME.speech_coco}.json").unlink()
    (folder / "json" / "translations.json").write_text("{}")
    (folder / "json" / ".DS_Store").write_text("")
    built = build(tmp_path / "out", root)
    assert built.report["rows"]["train"] == 14
    assert built.report["read"] == {
        NO_JSON: {"count": 1, "first": [str(folder / "wav" / f"{SOME.speech_coco}.wav")]},
        OTHER_NAME: {"count": 1, "first": [str(folder / "json/translations.json")]},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no valid JSON"), ('{"speed": 1.0', "no valid JSON"), ('{"speed": 1.0}', "no 'synthesisedCaption'")],
)
def test_a_json_that_is_broken_is_refused(content: str, message: str, root: Path, tmp_path: Path):
    (root / f"CORPUS-MSCOCO/{SOME.folder}/json/{SOME.speech_coco}.json").write_text(content)
    with pytest.raises(CorpusError, match=rf"{SOME.speech_coco}\.json: {message}"):
        build(tmp_path / "out", root)


def test_a_recording_that_is_missing_is_refused(root: Path, tmp_path: Path):
    (root / f"CORPUS-MSCOCO/{SOME.folder}/wav/{SOME.speech_coco}.wav").unlink()
    with pytest.raises(CorpusError, match=f"1 of 31 spoken captions.*\n1 x missing file:\n  {SOME.speech_coco}"):
        build(tmp_path / "out", root)


def test_the_text_is_kept_as_it_is_spelt(root: Path, tmp_path: Path):
    file = root / f"CORPUS-MSCOCO/{SOME.folder}/json/{SOME.speech_coco}.json"
    facts = json.loads(file.read_text())
    trees.write_json(file, facts | {"synthesisedCaption": " A café, uh,  with “quotes”. "})
    assert rows_by_id(build(tmp_path / "out", root))[SOME.speech_coco]["text"] == " A café, uh,  with “quotes”. "
