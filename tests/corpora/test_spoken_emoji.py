from __future__ import annotations

import io
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import DatasetDict
from PIL import Image
from speech_image_retrieval.corpora import spoken_emoji
from speech_image_retrieval.corpora.emoji_artwork import Concept, find_packages, find_pictures, read_concepts
from speech_image_retrieval.corpora.flite import FLITE_SPEAKERS
from speech_image_retrieval.corpora.schema import CorpusError, load_corpus
from speech_image_retrieval.corpora.spoken_emoji import TRAIN_STYLES, build_spoken_emoji, hold_out
from speech_image_retrieval.corpora.synthesis import SPEAKERS

from .emoji_packages import CORNERS, EMOJI, Emoji, same_name, write_packages

CAPTIONS = 6
CONCEPTS = len(EMOJI) - 3  # without a flag, one that Fluent lacks, and one that looks like another


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def folder(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("flite"):
        pytest.skip("flite is not installed: apt-get install flite")
    folder = tmp_path_factory.mktemp("spoken_emoji") / "corpus"
    build_spoken_emoji(packages, folder, captions_per_concept=CAPTIONS, num_proc=2)
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path) -> DatasetDict:
    return load_corpus(folder)


def style_of(row: dict) -> str:
    with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
        return next(style for style, colour in CORNERS.items() if picture.getpixel((2, 2)) == colour)


def speakers(corpus: DatasetDict, split: str) -> set[str]:
    return set(corpus[split]["speaker"])


def test_splits_have_the_promised_sizes(corpus: DatasetDict):
    seen = CONCEPTS - 1
    assert {name: (len(set(split["image_id"])), len(split)) for name, split in corpus.items()} == {
        "train": (seen, CAPTIONS * seen),
        "validation": (seen, seen),
        "test": (seen, 2 * seen),
        "test_unseen_style": (seen, 2 * seen),
        "test_unseen_concept": (1, 2),
    }


def test_nothing_but_the_corpus_is_left_behind(folder: Path):
    assert list(folder.parent.iterdir()) == [folder]


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(corpus, packages, tmp_path):
    again = build_spoken_emoji(packages, tmp_path / "again", captions_per_concept=CAPTIONS, num_proc=1)
    assert list(again) == list(corpus)
    for name, split in corpus.items():
        assert list(again[name]) == list(split)


def test_held_out_concepts_are_not_in_training_and_validation(corpus: DatasetDict):
    unseen = set(corpus["test_unseen_concept"]["image_id"])
    names = {text.partition(", ")[0] for text in corpus["test_unseen_concept"]["text"]}
    for split in ("train", "validation", "test", "test_unseen_style"):
        assert unseen.isdisjoint(corpus[split]["image_id"])
        assert names.isdisjoint(text.partition(", ")[0] for text in corpus[split]["text"])


def words(text: str) -> str:
    return f" {' '.join(re.findall('[a-z0-9]+', text.lower()))} "


def held_out_names_said(corpus: DatasetDict, names: list[str]) -> set[tuple[str, str]]:
    """The names of held-out concepts and the captions of other concepts in which they are heard."""
    unseen = corpus["test_unseen_concept"]["text"]
    held_out = [name for name in names if any(text == name or text.startswith(f"{name}, ") for text in unseen)]
    assert held_out
    seen = {text for name, split in corpus.items() if name != "test_unseen_concept" for text in split["text"]}
    return {(name, text) for name in held_out for text in seen if words(name) in words(text)}


def names_of(packages: Path) -> list[str]:
    root = find_packages(packages)
    return [concept.name for concept in read_concepts(root, find_pictures(root))]


def test_names_of_held_out_concepts_are_said_of_no_other(corpus: DatasetDict, packages: Path):
    assert held_out_names_said(corpus, names_of(packages)) == set()


@pytest.mark.parametrize("seed", range(6))
def test_no_held_out_name_is_a_synonym_or_a_run_of_words_in_training(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(spoken_emoji.flite, "require_flite", lambda: None)
    monkeypatch.setattr(spoken_emoji, "_speak", lambda *_: np.zeros(1600))
    labels = ("nose", "pig nose", "watch", "apple watch", "heart", "couple: heart, man", "pen", "fly", "fly fishing")
    emoji = tuple(
        Emoji(label, code.upper(), same_name(code), (*(f"the {other}" for other in labels), *labels))
        for label, code in zip(labels, (f"1f60{number}" for number in range(len(labels))), strict=True)
    )
    packages = write_packages(tmp_path, emoji)
    corpus = build_spoken_emoji(packages, tmp_path / "corpus", seed=seed, captions_per_concept=24, num_proc=1)
    assert held_out_names_said(corpus, names_of(packages)) == set()
    assert any(", the " in text for text in corpus["train"]["text"]), "synonyms that name nothing held out stay"


def test_the_held_out_style_is_in_its_own_split_only(corpus: DatasetDict):
    styles = {name: Counter(map(style_of, split)) for name, split in corpus.items()}
    drawn = Counter(TRAIN_STYLES[number % len(TRAIN_STYLES)] for number in range(CAPTIONS))
    assert styles["train"] == {style: count * (CONCEPTS - 1) for style, count in drawn.items()}
    assert set(styles["test_unseen_style"]) == {"fluent"}
    for split in ("validation", "test", "test_unseen_concept"):
        assert set(styles[split]) == {"google"}


def test_no_voice_is_in_two_of_train_validation_and_the_tests(corpus: DatasetDict):
    tested = set.union(*(speakers(corpus, name) for name in corpus if name.startswith("test")))
    heard = [speakers(corpus, "train"), speakers(corpus, "validation"), tested]
    assert len(set.union(*heard)) == sum(map(len, heard))
    variants = [{name.partition("+")[2] for name in names} for names in heard]
    assert len(set.union(*variants)) == sum(map(len, variants))


def test_each_test_picture_is_named_by_both_synthesisers(corpus: DatasetDict):
    flite = {voice.name: voice.language for voice in FLITE_SPEAKERS}
    espeak = {voice.name: voice.language for voice in SPEAKERS["test"]}
    for name in ("test", "test_unseen_style", "test_unseen_concept"):
        rows = list(corpus[name])
        for one, other in zip(rows[::2], rows[1::2], strict=True):
            assert one["image_id"] == other["image_id"]
            assert one["language"] == espeak[one["speaker"]]
            assert other["language"] == flite[other["speaker"]]


def test_the_unseen_style_is_asked_for_with_the_recordings_of_test(corpus: DatasetDict):
    for column in ("audio", "image_id", "text"):
        assert corpus["test_unseen_style"][column][:] == corpus["test"][column][:]


def test_an_evaluation_split_has_one_picture_of_each_concept_and_caption_ids_are_unique(corpus: DatasetDict):
    for name, split in corpus.items():
        pictures = {(row["image_id"], row["image"]["bytes"]) for row in split}
        assert len(pictures) == len(set(split["image_id"])) * (len(TRAIN_STYLES) if name == "train" else 1)
    caption_ids = [caption_id for split in corpus.values() for caption_id in split["caption_id"]]
    assert len(set(caption_ids)) == len(caption_ids)


def test_the_training_captions_of_a_concept_are_by_different_voices(corpus: DatasetDict):
    by_concept = Counter(zip(corpus["train"]["image_id"], corpus["train"]["speaker"], strict=True))
    assert set(by_concept.values()) == {1}


def test_half_of_the_captions_have_a_synonym(corpus: DatasetDict):
    heart = [text for text in corpus["train"]["text"] if "heart" in text]
    assert sorted(heart) == ["red heart"] * 3 + ["red heart, love"] * 3
    said = {text for split in corpus.values() for text in split["text"]}
    assert {"okay hand", "keycap, hash"} <= said
    assert said <= {"O button, blood type", "keycap, hash", "keycap, hash, key"} | {
        f"{name}{end}"
        for name, *synonyms in (
            ("grinning face", "cheerful"),
            ("red heart", "love"),
            ("okay hand",),
            ("pinata", "candy", "fiesta"),
            ("farmer", "gardener"),
            ("snowman", "cold"),
            ("whale", "ocean"),
            ("crab", "zodiac"),
            ("fog", "cloud"),
            ("mechanical arm", "robot"),
        )
        for end in ("", *(f", {synonym}" for synonym in synonyms))
    }


def test_speech_has_the_promised_form(corpus: DatasetDict):
    for row in [row for split in corpus.values() for row in split]:
        info = soundfile.info(io.BytesIO(row["audio"]["bytes"]))
        assert (info.format, info.samplerate, info.channels, info.subtype) == ("FLAC", 16_000, 1, "PCM_16")
        assert 0.2 < info.duration < 3.5


def test_a_tenth_of_the_concepts_is_held_out_by_the_seed():
    concepts = [Concept(f"{number:x}", f"thing {number}", ()) for number in range(200)]
    seen, unseen = hold_out(concepts, seed=0)
    assert len(unseen) == 20
    assert sorted(seen + unseen) == sorted(concepts) and seen == sorted(seen, key=concepts.index)
    assert hold_out(concepts, seed=0) == (seen, unseen)
    assert hold_out(concepts, seed=1)[1] != unseen
    with pytest.raises(CorpusError, match="1 emoji cannot be shared out"):
        hold_out(concepts[:1], seed=0)
    with pytest.raises(CorpusError, match="2 emoji cannot be shared out"):
        hold_out([Concept("1", "button", ()), Concept("2", "Button", ())], seed=0)


def test_more_captions_than_voices_use_every_voice_before_one_returns(packages: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(spoken_emoji, "SPEAKERS", {**SPEAKERS, "train": SPEAKERS["train"][:2]})
    monkeypatch.setattr(spoken_emoji.flite, "require_flite", lambda: None)
    monkeypatch.setattr(spoken_emoji, "_speak", lambda *_: np.zeros(1600))
    train = build_spoken_emoji(packages, tmp_path / "corpus", captions_per_concept=5, num_proc=1)["train"]
    rows = list(train)
    for start in range(0, len(rows), 5):
        drawn = [row["speaker"] for row in rows[start : start + 5]]
        assert drawn[0] != drawn[1] and drawn[2] != drawn[3]


def test_what_cannot_be_built_is_refused_and_nothing_is_written(packages: Path, tmp_path: Path, monkeypatch):
    out = tmp_path / "out" / "corpus"
    with pytest.raises(CorpusError, match="must be 1 at least"):
        build_spoken_emoji(packages, out, captions_per_concept=0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusError, match="apt-get install flite"):
        build_spoken_emoji(packages, out)
    monkeypatch.setattr(spoken_emoji.flite, "require_flite", lambda: None)
    with pytest.raises(CorpusError, match="npm install --prefix"):
        build_spoken_emoji(tmp_path, out)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(CorpusError, match=r"pip install speech-image-retrieval\[demo\]"):
        build_spoken_emoji(packages, out)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_left_alone(packages: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CorpusError, match="not a corpus"):
        build_spoken_emoji(packages, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_no_held_out_name_is_spoken_in_training():
    concepts = [
        Concept(str(number), name, synonyms)
        for number, (name, synonyms) in enumerate(
            [("watch", ("clock",)), ("apple watch", ("watch", "wrist watch")), ("crab", ()), ("clock", ("watch",))]
            + [(f"thing {word}", ("crab", f"crab {word}", "crabby")) for word in "abcdefghijklmnopqrst"]
        )
    ]
    for seed in range(30):
        seen, unseen = hold_out(concepts, seed)
        assert len(seen) + len(unseen) == len(concepts) and unseen
        for name in (one.name for one in unseen):
            for spoken in (text for one in seen for text in (one.name, *one.synonyms)):
                assert f" {name} " not in f" {spoken} "
    assert all("crabby" in one.synonyms for one in seen if one.name.startswith("thing"))
