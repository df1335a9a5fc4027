from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path

import pytest
import soundfile
from datasets import DatasetDict
from PIL import Image
from speech_image_retrieval.corpora.scenes import COLOURS, SHAPES, all_scenes
from speech_image_retrieval.corpora.schema import SPLITS, CorpusError, load_corpus
from speech_image_retrieval.corpora.spoken_shapes import build_spoken_shapes, split_scenes
from speech_image_retrieval.corpora.synthesis import SPEAKERS

SIZES = {"train_scenes": 40, "validation_scenes": 9, "test_scenes": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoken_shapes") / "corpus"
    build_spoken_shapes(folder, **SIZES, num_proc=2)
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path) -> DatasetDict:
    return load_corpus(folder)


def test_sizes_are_those_asked_for(corpus: DatasetDict):
    assert {name: len(split) for name, split in corpus.items()} == {"train": 80, "validation": 9, "test": 10}
    assert {name: len(set(split["image_id"])) for name, split in corpus.items()} == {
        "train": 40,
        "validation": 9,
        "test": 10,
    }


def test_nothing_but_the_corpus_is_left_behind(folder: Path):
    assert list(folder.parent.iterdir()) == [folder]


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(corpus: DatasetDict, tmp_path: Path):
    again = build_spoken_shapes(tmp_path / "again", **SIZES, num_proc=1)
    for name in SPLITS:
        assert list(again[name]) == list(corpus[name])


def test_another_seed_gives_other_scenes(corpus: DatasetDict, tmp_path: Path):
    other = build_spoken_shapes(tmp_path / "other", seed=1, train_scenes=6, validation_scenes=2, test_scenes=2)
    assert set(other["train"]["image_id"]) != set(corpus["train"]["image_id"][:12])


def test_splits_share_no_scene_no_caption_and_no_speaker(corpus: DatasetDict):
    for column in ("image_id", "caption_id", "speaker"):
        values = [set(split[column]) for split in corpus.values()]
        assert len(set.union(*values)) == sum(map(len, values)), column


def test_splits_share_no_voice_variant_under_another_accent():
    variants = [{voice.variant for voice in voices} for voices in SPEAKERS.values()]
    assert len(set.union(*variants)) == sum(map(len, variants))


def test_caption_ids_are_unique_and_an_image_id_is_one_picture(corpus: DatasetDict):
    for split in corpus.values():
        assert len(set(split["caption_id"])) == len(split)
        pictures = {(row["image_id"], row["image"]["bytes"]) for row in split}
        assert len(pictures) == len(set(split["image_id"]))


def test_the_captions_of_a_picture_are_converse_and_by_different_speakers(corpus: DatasetDict):
    rows = list(corpus["train"])
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["speaker"] != other["speaker"]
        said = ["below" in row["text"] or "right" in row["text"] for row in (one, other)]
        assert sorted(said) == [False, True]


def test_training_has_every_colour_shape_and_relation(corpus: DatasetDict):
    words = {word for text in corpus["train"]["text"] for word in text.split()}
    assert words >= {*COLOURS, *SHAPES, "above", "below", "left", "right"}


def test_speech_and_pictures_decode_and_have_the_promised_form(corpus: DatasetDict):
    for row in [row for split in corpus.values() for row in split]:
        info = soundfile.info(io.BytesIO(row["audio"]["bytes"]))
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert 1 < info.duration < 3.2
        with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (96, 96))


def test_language_is_the_accent_of_the_speaker(corpus: DatasetDict):
    for row in corpus["test"]:
        assert row["speaker"].startswith(f"{row['language']}+")
        assert row["language"] in {voice.language for voice in SPEAKERS["test"]}


def test_a_small_training_split_holds_every_word():
    for seed in range(20):
        scenes = split_scenes({"train": 18, "validation": 1, "test": 1}, seed)["train"]
        words = frozenset().union(*(scene.words for scene in scenes))
        assert words == {*COLOURS, *SHAPES, "vertical", "horizontal"}


def test_every_scene_can_be_used_and_not_one_more():
    everything = split_scenes({"train": 8062, "validation": 1, "test": 1}, seed=0)
    assert Counter(scene for scenes in everything.values() for scene in scenes) == Counter(all_scenes())
    with pytest.raises(CorpusError, match="8,064 different scenes"):
        split_scenes({"train": 8063, "validation": 1, "test": 1}, seed=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_scenes": 8046}, "there are 8,064 different scenes"),
        ({"test_scenes": 0}, "Each split needs one at least"),
        ({"validation_scenes": -1}, "Each split needs one at least"),
        ({"captions_per_scene": 0}, "it can be 1 to 24"),
        ({"captions_per_scene": 25}, "it can be 1 to 24"),
    ],
)
def test_impossible_sizes_are_refused_and_nothing_is_written(wrong: dict, message: str, tmp_path: Path):
    with pytest.raises(CorpusError, match=message):
        build_spoken_shapes(tmp_path / "corpus", **{**SIZES, **wrong})
    assert not any(tmp_path.iterdir())


def test_without_espeak_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(CorpusError, match=r"pip install speech-image-retrieval\[demo\]"):
        build_spoken_shapes(tmp_path / "corpus", **SIZES)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CorpusError, match="not a corpus"):
        build_spoken_shapes(tmp_path, **SIZES)
    assert (tmp_path / "notes.txt").read_text() == "mine"
