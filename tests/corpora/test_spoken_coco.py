from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from speech_image_retrieval.corpora.building import Built, build_from_files
from speech_image_retrieval.corpora.schema import CorpusError
from speech_image_retrieval.corpora.spoken_coco import OTHER_SPLIT, read_spoken_coco

from . import fixture_trees as trees

SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def release(root: Path) -> None:
    trees.write_release(root / "SpokenCOCO")


def karpathy(root: Path) -> None:
    trees.write_karpathy(root / "SpokenCOCO")


def unrolled(root: Path) -> None:
    trees.write_unrolled(root / "SpokenCOCO")


def ksplit(root: Path) -> None:
    trees.write_ksplit(root / "SpokenCOCO")


def ksplit_unpacked_as_it_is(root: Path) -> None:
    trees.write_ksplit(root / "SpokenCOCO" / "ksplit")


def merged(root: Path) -> None:
    trees.write_merged(root / "dataset.json")


def merged_without_karpathys_split(root: Path) -> None:
    trees.write_merged(root / "dataset.json", keys=["split_spokencoco"])


LAYOUTS = [release, karpathy, unrolled, ksplit, ksplit_unpacked_as_it_is, merged, merged_without_karpathys_split]


def write_tree(root: Path, layout: Callable[[Path], None], pictures: str = "") -> Path:
    layout(root)
    trees.write_spoken_coco_recordings(root / "SpokenCOCO")
    trees.write_coco_pictures(root / pictures)
    return root


def build(root: Path, out: Path, *further: Path) -> Built:
    return build_from_files(read_spoken_coco([root, *further]), out, num_proc=1)


def rows_by_id(built: Built) -> dict[str, dict[str, Any]]:
    return {row["caption_id"]: {**row, "split": split} for split, rows in built.corpus.items() for row in rows}


def edit(path: Path, change: Callable[[dict], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(layout: Callable[[Path], None], tmp_path: Path):
    root = write_tree(tmp_path / "root", layout)
    built = build(root, tmp_path / "out")
    assert built.report["rows"] == {"train": 15, "validation": 5, "test": 11}
    assert built.report["read"] == {}
    rows = rows_by_id(built)
    assert len(rows) == 31
    for caption in trees.COCO:
        spoken = caption.spoken_coco
        text = spoken["text"] if "merged" not in layout.__name__ else f"Caption {caption.sentid} of picture "
        row = rows[spoken["uttid"]]
        assert row["split"] == SPLITS[caption.split]
        assert row["image_id"] == str(caption.coco_id)
        assert row["text"].startswith(text)
        assert (row["speaker"], row["language"]) == (spoken["speaker"], "en")
        assert row["image"] == {"bytes": None, "path": str(root / caption.image)}
        assert row["audio"] == {"bytes": None, "path": str(root / "SpokenCOCO" / spoken["wav"])}


def test_pictures_of_the_test_split_may_have_six_captions(tmp_path: Path):
    built = build(write_tree(tmp_path / "root", release), tmp_path / "out")
    ids = [row["image_id"] for row in built.corpus["test"]]
    assert {image_id: ids.count(image_id) for image_id in ids} == {"391895": 6, "42": 5}


def test_the_archive_alone_is_split_by_the_ids_of_the_package(tmp_path: Path):
    reading = read_spoken_coco([write_tree(tmp_path, release)])
    assert any("picture ids that come with this package" in note for note in reading.notes)


def test_the_archive_is_split_by_karpathys_file_if_it_is_there(tmp_path: Path):
    root = write_tree(tmp_path / "root", release)
    file = tmp_path / "karpathy" / "dataset_coco.json"
    trees.write_karpathys_file(file)
    edit(file, lambda values: values["images"][0].update(split="val"))
    built = build(root, tmp_path / "out", tmp_path / "karpathy")
    assert built.report["rows"] == {"train": 10, "validation": 10, "test": 11}
    assert any(str(file) in note for note in built.report["notes"])
    assert built.report["read"][OTHER_SPLIT] == {"count": 1, "first": ["9 is in validation, by Karpathy in train"]}


def test_a_file_of_karpathys_without_a_picture_is_refused(tmp_path: Path):
    root = write_tree(tmp_path / "root", release)
    trees.write_karpathys_file(root / "dataset_coco.json")
    edit(root / "dataset_coco.json", lambda values: values["images"].pop())
    with pytest.raises(CorpusError, match=r"dataset_coco\.json has no picture 42"):
        build(root, tmp_path / "out")


def test_pictures_may_lie_in_speechclips_folder_or_under_another_source(tmp_path: Path):
    root = write_tree(tmp_path / "root", ksplit, pictures="mscoco_img")
    rows = rows_by_id(build(root, tmp_path / "out"))
    assert all("/mscoco_img/" in row["image"]["path"] for row in rows.values())
    apart = trees.write_spoken_coco_recordings(tmp_path / "apart" / "SpokenCOCO")
    release(tmp_path / "apart")
    rows = rows_by_id(build(apart, tmp_path / "out2", root / "mscoco_img"))
    assert all("/mscoco_img/" in row["image"]["path"] for row in rows.values())


def test_speech_of_coco_in_folders_of_the_same_name_does_not_hide_the_pictures(tmp_path: Path):
    trees.write_speech_coco(tmp_path / "root")
    root = write_tree(tmp_path / "root", release, pictures="pictures")
    rows = rows_by_id(build(root, tmp_path / "out"))
    assert all("/pictures/" in row["image"]["path"] for row in rows.values())


@pytest.mark.parametrize(
    ("layouts", "read"),
    [
        ([release, merged], "dataset.json"),
        ([release, merged, ksplit], "SpokenCOCO_ksplit_train.json"),
        ([ksplit, unrolled], "SpokenCOCO_train_unrolled_karpathy.json"),
        ([unrolled, karpathy, release], "SpokenCOCO_train_karpathy.json"),
    ],
)
def test_of_several_layouts_one_is_read(layouts: list[Callable[[Path], None]], read: str, tmp_path: Path):
    root = write_tree(tmp_path / "root", layouts[0])
    for layout in layouts[1:]:
        layout(root)
    built = build(root, tmp_path / "out")
    assert built.report["rows"] == {"train": 15, "validation": 5, "test": 11}
    assert read in built.report["notes"][0]
    assert any(note.startswith("Also there and not read: ") for note in built.report["notes"])


def test_a_dataset_json_of_flickr8k_is_passed_over(tmp_path: Path):
    root = write_tree(tmp_path / "root", release)
    trees.write_json(root / "dataset.json", {"images": [{"filename": "1.jpg", "split": "train", "sentences": []}]})
    assert len(rows_by_id(build(root, tmp_path / "out"))) == 31
    (root / "dataset.json").write_text("no json")
    assert len(rows_by_id(build(root, tmp_path / "out"))) == 31


def test_files_unrolled_from_cocos_own_split_are_refused(tmp_path: Path):
    root = write_tree(tmp_path / "root", unrolled)
    captions = [caption for caption in trees.COCO if caption.folder == "val2014"]
    data = [{"image": caption.image, "caption": caption.spoken_coco} for caption in captions]
    trees.write_json(root / "SpokenCOCO/SpokenCOCO_val_unrolled_karpathy.json", {"data": data})
    with pytest.raises(CorpusError, match="Picture 325114 is in train and in validation of"):
        build(root, tmp_path / "out")


@pytest.mark.parametrize("there", ["SpokenCOCO_train.json", "SpokenCOCO_test_karpathy.json", "other.json"])
def test_no_whole_layout_is_an_error_that_tells_what_is_there(there: str, tmp_path: Path):
    trees.write_json(tmp_path / there, {"data": []})
    with pytest.raises(CorpusError) as error:
        read_spoken_coco([tmp_path])
    assert "SpokenCOCO_val.json" in str(error.value)
    assert "SpokenCOCO_ksplit_test.json" in str(error.value)
    assert f"Found instead:\n  {tmp_path}: {there}" in str(error.value)
    assert ("of these only" in str(error.value)) == (there != "other.json")


@pytest.mark.parametrize("key", ["image", "captions", "wav", "uttid", "text", "speaker"])
@pytest.mark.parametrize("layout", [release, unrolled])
def test_a_missing_key_is_named(layout: Callable[[Path], None], key: str, tmp_path: Path):
    root = write_tree(tmp_path / "root", layout)
    name = "SpokenCOCO_train.json" if layout is release else "SpokenCOCO_train_unrolled_karpathy.json"

    def drop(values: dict) -> None:
        entry = values["data"][1]
        caption = entry["captions"][2] if layout is release else entry["caption"]
        entry.pop("captions", entry.pop("caption", None)) if key == "captions" else None
        entry.pop(key, None)
        caption.pop(key, None)

    edit(root / "SpokenCOCO" / name, drop)
    missed = "wav" if key == "captions" else key
    with pytest.raises(CorpusError, match=rf"{name}, entry 2 of 'data'.* no '{missed}'"):
        build(root, tmp_path / "out")


@pytest.mark.parametrize("key", ["filename", "sentences", "uttid", "wav", "raw"])
def test_a_missing_key_of_the_merged_file_is_named(key: str, tmp_path: Path):
    root = write_tree(tmp_path / "root", merged)

    def drop(values: dict) -> None:
        values["images"][1]["sentences"][2].pop(key, None)
        values["images"][1].pop(key, None)

    edit(root / "dataset.json", drop)
    with pytest.raises(CorpusError, match=rf"dataset\.json, entry 2 of 'images'.* no (list )?'{key}'"):
        build(root, tmp_path / "out")


@pytest.mark.parametrize("path", ["../../secret.wav", "/etc/passwd"])
@pytest.mark.parametrize("key", ["image", "wav"])
def test_paths_that_lead_out_of_the_corpus_are_refused(key: str, path: str, tmp_path: Path):
    root = write_tree(tmp_path / "root", release)

    def change(values: dict) -> None:
        entry = values["data"][0]
        (entry if key == "image" else entry["captions"][0])[key] = path

    edit(root / "SpokenCOCO/SpokenCOCO_train.json", change)
    with pytest.raises(CorpusError, match=rf"SpokenCOCO_train\.json, entry 1 of 'data'.*'{key}'.*leads out"):
        build(root, tmp_path / "out")


def test_a_picture_of_another_name_is_refused(tmp_path: Path):
    root = write_tree(tmp_path / "root", release)
    file = root / "SpokenCOCO/SpokenCOCO_train.json"
    edit(file, lambda values: values["data"][0].update(image="train2014/cat.jpg"))
    with pytest.raises(CorpusError, match=r"SpokenCOCO_train\.json, entry 1 of 'data': 'train2014/cat\.jpg' is no"):
        build(root, tmp_path / "out")


def test_an_unknown_split_is_refused(tmp_path: Path):
    root = write_tree(tmp_path / "root", merged)
    edit(root / "dataset.json", lambda values: values["images"][0].update(split_karpathy="dev"))
    with pytest.raises(CorpusError, match="entry 1 of 'images': 'split_karpathy' is 'dev'"):
        build(root, tmp_path / "out")


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path):
    root = write_tree(tmp_path / "root", release)
    file = root / "SpokenCOCO/SpokenCOCO_val.json"
    file.write_text(file.read_text()[:-100])
    with pytest.raises(CorpusError, match=r"SpokenCOCO_val\.json: no valid JSON after entry \d of 'data'"):
        build(root, tmp_path / "out")


def test_a_missing_recording_is_named_where_it_should_be(tmp_path: Path):
    root = write_tree(tmp_path / "root", release)
    missing = root / "SpokenCOCO" / trees.COCO[7].spoken_coco["wav"]
    missing.unlink()
    with pytest.raises(CorpusError, match=f"missing file:\n.*{missing}"):
        build(root, tmp_path / "out")
