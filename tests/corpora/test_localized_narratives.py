from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from speech_image_retrieval.corpora.building import Built, build_from_files
from speech_image_retrieval.corpora.localized_narratives import REPEATED, read_localized_narratives
from speech_image_retrieval.corpora.schema import CorpusError

from . import fixture_trees as trees

COCO_TRAIN = [f"{number}" for number in range(1000, 1020)]
COCO_DRAWN = {"1004", "1011"}


def build(out: Path, *sources: Path) -> Built:
    return build_from_files(read_localized_narratives(sources), out, num_proc=1)


def rows_by_id(built: Built) -> dict[str, dict[str, Any]]:
    return {row["caption_id"]: {**row, "split": split} for split, rows in built.corpus.items() for row in rows}


def coco_narrative(image_id: str, split: str, annotator: int = 93) -> dict[str, Any]:
    stated = f"coco_{split}/coco_{split}_{image_id}_{annotator}.ogg"
    return trees.narrative(f"mscoco_{split}2017", image_id, annotator, stated)


def write_recordings(root: Path, narratives: list[dict[str, Any]]) -> None:
    for values in narratives:
        trees.recording(root / "voice-recordings" / values["voice_recording"])


def write_coco(root: Path, naming: str = "2017") -> None:
    train = [coco_narrative(image_id, "train") for image_id in COCO_TRAIN]
    val = [coco_narrative("137576", "val"), coco_narrative("137576", "val", annotator=7)]
    for shard in range(4):
        name = f"coco_train_localized_narratives-{shard:05d}-of-00004"
        trees.write_narratives(root / "annotations", name, train[shard::4])
    trees.write_narratives(root / "annotations", "coco_val_localized_narratives", val)
    write_recordings(root, [*train, *val])
    for number, image_id in enumerate([*COCO_TRAIN, "137576"]):
        if naming == "2017":
            trees.picture(root / ("val2017" if image_id == "137576" else "train2017") / f"{int(image_id):012d}.jpg")
        else:
            # Some of what was for training in 2017 was for validation in 2014.
            folder = "val2014" if image_id == "137576" or number % 3 == 0 else "train2014"
            trees.picture(root / "images" / folder / f"COCO_{folder}_{int(image_id):012d}.jpg")


def renamed(corpus: str, split: str, image_id: str, digits: str, annotator: int) -> tuple[dict[str, Any], str]:
    """A narrative of Flickr30k or ADE20k, and where its recording is offered."""
    folder = f"{corpus}_{split}"
    values = trees.narrative(f"{corpus}_{split}", image_id, annotator, f"{folder}/{folder}_{digits}_3.ogg")
    return values, f"{folder}/{folder}_{digits.zfill(16)}_{annotator}.ogg"


def write_flickr30k(root: Path, as_stated: bool = False) -> None:
    for split, image_id in {"train": "1000092795", "val": "1018148011", "test": "1007129816"}.items():
        values, offered = renamed("flickr30k", split, image_id, image_id, annotator=12)
        trees.write_narratives(root, f"flickr30k_{split}_localized_narratives", [values])
        trees.recording(root / "voice-recordings" / (values["voice_recording"] if as_stated else offered))
        trees.picture(root / "flickr30k-images" / f"{image_id}.jpg")


def write_ade20k(root: Path) -> None:
    own = {
        "train": [f"ADE_train_{number:08d}" for number in range(1, 13)],
        "validation": ["ADE_val_00000001"],
    }
    for split, image_ids in own.items():
        lines = []
        for image_id in image_ids:
            values, offered = renamed("ade20k", split, image_id, image_id[-8:], annotator=5)
            trees.recording(root / "voice-recordings" / offered)
            folder = "training" if split == "train" else "validation"
            trees.picture(root / "ADEChallengeData2016/images" / folder / f"{image_id}.jpg")
            lines.append(values)
        trees.write_narratives(root, f"ade20k_{split}_localized_narratives", lines)


def write_open_images(root: Path, train_folder: str = "train") -> None:
    images = {"train": ("train_v6", "0a1"), "validation": ("validation", "1b2"), "test": ("test", "2c3")}
    for split, (name, image_id) in images.items():
        stated = f"open_images_{split}/open_images_{split}_{image_id}_8.ogg"
        suffix = "-00003-of-00010" if split == "train" else ""
        values = trees.narrative(f"open_images_{split}", image_id, 8, stated)
        trees.write_narratives(root, f"open_images_{name}_localized_narratives{suffix}", [values])
        trees.recording(root / "voice-recordings" / stated)
        trees.picture(root / "OpenImages" / (train_folder if split == "train" else split) / f"{image_id}.jpg")


@pytest.mark.parametrize("naming", ["2014", "2017"])
def test_coco(naming: str, tmp_path: Path):
    root = tmp_path / "root"
    write_coco(root, naming)
    built = build(tmp_path / "out", root)
    assert built.report["rows"] == {"train": 18, "validation": 2, "test": 2}
    rows = rows_by_id(built)
    assert {row["image_id"] for row in rows.values() if row["split"] == "validation"} == {
        f"coco/{image_id}" for image_id in COCO_DRAWN
    }
    assert {row["image_id"] for row in rows.values() if row["split"] == "test"} == {"coco/137576"}
    name = "val2017/000000137576.jpg" if naming == "2017" else "images/val2014/COCO_val2014_000000137576.jpg"
    assert rows["coco/137576/93"] == {
        "image": {"bytes": None, "path": str(root / name)},
        "audio": {"bytes": None, "path": str(root / "voice-recordings/coco_val/coco_val_137576_93.ogg")},
        "image_id": "coco/137576",
        "caption_id": "coco/137576/93",
        "text": "In this image there is 137576.",
        "speaker": "93",
        "language": "en",
        "split": "test",
    }
    assert any("coco has no test split" in note for note in built.report["notes"])


@pytest.mark.parametrize("as_stated", [False, True])
def test_flickr30k(as_stated: bool, tmp_path: Path):
    root = tmp_path / "root"
    write_flickr30k(root, as_stated)
    built = build(tmp_path / "out", root)
    assert built.report["rows"] == {"train": 1, "validation": 1, "test": 1}
    row = rows_by_id(built)["flickr30k/1007129816/12"]
    name = "flickr30k_test_1007129816_3" if as_stated else "flickr30k_test_0000001007129816_12"
    assert row["split"] == "test"
    assert row["image"]["path"] == str(root / "flickr30k-images/1007129816.jpg")
    assert row["audio"]["path"] == str(root / f"voice-recordings/flickr30k_test/{name}.ogg")
    assert len(built.report["notes"]) == 1


def test_ade20k(tmp_path: Path):
    root = tmp_path / "root"
    write_ade20k(root)
    built = build(tmp_path / "out", root)
    assert built.report["rows"] == {"train": 11, "validation": 1, "test": 1}
    row = rows_by_id(built)["ade20k/ADE_val_00000001/5"]
    assert row["split"] == "test"
    assert row["image"]["path"] == str(root / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg")
    assert row["audio"]["path"].endswith("ade20k_validation/ade20k_validation_0000000000000001_5.ogg")


@pytest.mark.parametrize("train_folder", ["train", "train_0", "validation"])
def test_open_images(train_folder: str, tmp_path: Path):
    root = tmp_path / "root"
    write_open_images(root, train_folder)
    built = build(tmp_path / "out", root)
    assert built.report["rows"] == {"train": 1, "validation": 1, "test": 1}
    row = rows_by_id(built)["open_images/0a1/8"]
    assert row["split"] == "train"
    assert row["image"]["path"] == str(root / f"OpenImages/{train_folder}/0a1.jpg")
    assert "Of open_images train, 1 of 10 shards are there." in built.report["notes"]


def test_a_folder_may_hold_several_corpora(tmp_path: Path):
    for write in (write_coco, write_flickr30k, write_ade20k, write_open_images):
        write(tmp_path / "root")
    built = build(tmp_path / "out", tmp_path / "root")
    assert built.report["rows"] == {"train": 31, "validation": 5, "test": 5}
    assert len(rows_by_id(built)) == 41
    corpora = {row["image_id"].split("/")[0] for row in rows_by_id(built).values()}
    assert corpora == {"coco", "flickr30k", "ade20k", "open_images"}


def test_recordings_and_pictures_may_be_under_other_sources(tmp_path: Path):
    write_coco(tmp_path / "root")
    (tmp_path / "root/voice-recordings").rename(tmp_path / "speech")
    (tmp_path / "pictures").mkdir()
    for folder in ("train2017", "val2017"):
        (tmp_path / "root" / folder).rename(tmp_path / "pictures" / folder)
    sources = [tmp_path / name for name in ("root", "speech", "pictures")]
    assert len(rows_by_id(build(tmp_path / "out", *sources))) == 22


def test_files_of_captions_or_transcripts_alone_are_passed_over(tmp_path: Path):
    write_coco(tmp_path / "root")
    for name in ("coco_train_captions", "coco_val_asr", "full_coco_train_localized_narratives"):
        (tmp_path / "root" / f"{name}.jsonl").write_text("{}\n")
    assert len(rows_by_id(build(tmp_path / "out", tmp_path / "root"))) == 22


def test_further_narratives_of_one_annotator_are_numbered(tmp_path: Path):
    write_coco(tmp_path / "root")
    file = tmp_path / "root/annotations/coco_val_localized_narratives.jsonl"
    file.write_text(file.read_text() + file.read_text())
    built = build(tmp_path / "out", tmp_path / "root")
    assert sorted(built.corpus["test"]["caption_id"]) == [
        "coco/137576/7",
        "coco/137576/7/2",
        "coco/137576/93",
        "coco/137576/93/2",
    ]
    assert built.report["read"][REPEATED]["count"] == 2


@pytest.mark.parametrize("key", ["image_id", "annotator_id", "caption", "voice_recording"])
def test_a_missing_key_is_named(key: str, tmp_path: Path):
    write_coco(tmp_path / "root")
    values = coco_narrative("137576", "val")
    del values[key]
    trees.write_narratives(
        tmp_path / "root/annotations", "coco_val_localized_narratives", [coco_narrative("1", "val"), values]
    )
    with pytest.raises(CorpusError, match=rf"coco_val_localized_narratives\.jsonl, line 2: no '{key}'"):
        build(tmp_path / "out", tmp_path / "root")


@pytest.mark.parametrize("key", ["image_id", "voice_recording"])
def test_paths_that_lead_out_of_the_corpus_are_refused(key: str, tmp_path: Path):
    write_flickr30k(tmp_path / "root")
    values, _ = renamed("flickr30k", "test", "1007129816", "1007129816", annotator=12)
    trees.write_narratives(
        tmp_path / "root", "flickr30k_test_localized_narratives", [values | {key: "../../secret_1_2.ogg"}]
    )
    with pytest.raises(CorpusError, match=rf"flickr30k_test_localized_narratives\.jsonl, line 1: '{key}'.*leads out"):
        build(tmp_path / "out", tmp_path / "root")


def test_a_picture_of_coco_without_a_number_is_refused(tmp_path: Path):
    write_coco(tmp_path / "root")
    trees.write_narratives(
        tmp_path / "root/annotations", "coco_val_localized_narratives", [coco_narrative("cat", "val")]
    )
    with pytest.raises(CorpusError, match="line 1: 'image_id' 'cat' is no number"):
        build(tmp_path / "out", tmp_path / "root")


def test_a_line_that_is_cut_off_is_refused(tmp_path: Path):
    write_coco(tmp_path / "root")
    file = tmp_path / "root/annotations/coco_val_localized_narratives.jsonl"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(CorpusError, match=r"coco_val_localized_narratives\.jsonl, line 2: no valid JSON"):
        build(tmp_path / "out", tmp_path / "root")


def test_nothing_there_is_an_error_that_tells_what_is(tmp_path: Path):
    (tmp_path / "coco_train_captions.jsonl").write_text("{}\n")
    with pytest.raises(CorpusError) as error:
        read_localized_narratives([tmp_path])
    assert "open_images_*_localized_narratives*.jsonl" in str(error.value)
    assert f"{tmp_path}: coco_train_captions.jsonl" in str(error.value)


def test_a_missing_recording_is_named_as_it_is_offered(tmp_path: Path):
    write_flickr30k(tmp_path / "root")
    missing = tmp_path / "root/voice-recordings/flickr30k_test/flickr30k_test_0000001007129816_12.ogg"
    missing.unlink()
    with pytest.raises(CorpusError, match=f"1 x missing file:\n.*{missing}"):
        build(tmp_path / "out", tmp_path / "root")
