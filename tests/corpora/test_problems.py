from __future__ import annotations

import numpy as np
import pytest
from speech_image_retrieval.corpora.check import inspect_corpus
from speech_image_retrieval.corpora.problems import (
    CLIPPED,
    LONG,
    REPEATED_CAPTION,
    SEVERAL_IDS,
    SEVERAL_PICTURES,
    SHARED_PICTURE,
    SHARED_RECORDING,
    SHORT,
    SILENT,
    TINY,
    UNNAMED,
)

from .spoken_rows import (
    RATE,
    at,
    corpus_with,
    dataset,
    embedded,
    encoded_samples,
    picture,
    recording,
    row,
    sound_corpus,
)


def inspect(corpus):
    return inspect_corpus(corpus, num_proc=1)


@pytest.mark.parametrize(
    ("kind", "columns", "example"),
    [
        (TINY, {"image": embedded(picture(1, size=(31, 400)))}, "train, train-1#0 (embedded picture): 31 x 400"),
        (SILENT, {"audio": embedded(recording(1, peak=9e-4))}, "train, train-1#0"),
        (SHORT, {"audio": embedded(recording(1, seconds=0.2))}, "train, train-1#0: 0.20 s"),
        (LONG, {"audio": embedded(recording(1, seconds=61))}, "train, train-1#0: 61.00 s"),
        (CLIPPED, {"audio": embedded(encoded_samples(np.tile([1.0, *[0.1] * 90], 50)))}, "train, train-1#0"),
    ],
)
def test_what_deserves_a_look_is_named_and_no_error(kind, columns, example):
    check = inspect(corpus_with(row(1, **columns), row(2)))
    assert check.fit
    assert check.warnings.to_dict() == {kind: {"count": 1, "first": [example]}}


@pytest.mark.parametrize(
    "columns",
    [
        {"image": embedded(picture(1, size=(32, 32)))},
        {"audio": embedded(recording(1, peak=2e-3))},
        {"audio": embedded(recording(1, seconds=0.25))},
        {"audio": embedded(recording(1, seconds=60))},
        {"audio": embedded(encoded_samples(np.tile([1.0, *[0.1] * 110], 50)))},
    ],
)
def test_what_is_just_good_enough_passes_without_a_word(columns):
    assert not inspect(corpus_with(row(1, **columns))).warnings.counts


def test_a_picture_that_is_too_small_counts_once_however_many_captions_it_has():
    tiny = {"image": embedded(picture(1, size=(8, 8))), "image_id": "tiny"}
    assert inspect(corpus_with(row(1, **tiny), row(2, **tiny))).warnings.counts == {TINY: 1}


def test_captions_of_one_name_are_found_within_and_across_splits():
    corpus = {
        "train": dataset(row(0, caption_id="a"), row(1, caption_id="b"), row(2, caption_id="a")),
        "validation": dataset(row(0, "validation", caption_id="b")),
        "test": dataset(*(row(number, "test", caption_id="c") for number in range(7))),
    }
    found = inspect(corpus).errors.to_dict()[REPEATED_CAPTION]
    assert found == {
        "count": 3,
        "first": [
            "a: train row 0, train row 2",
            "b: train row 1, validation row 0",
            "c: test row 0, test row 1, test row 2, test row 3, test row 4, …",
        ],
    }


@pytest.mark.parametrize("column", ["image_id", "caption_id"])
@pytest.mark.parametrize("nothing", [None, ""])
def test_rows_without_a_name_are_found(column, nothing):
    rows = [row(1, **{column: nothing}), row(2), row(3, **{column: nothing})]
    check = inspect(corpus_with(*rows))
    assert check.errors.to_dict() == {UNNAMED: {"count": 2, "first": ["train row 1", "train row 3"]}}


def test_several_pictures_of_one_id_are_an_error_where_recall_is_measured():
    rows = [row(number, "test", image_id="cat") for number in (1, 2, 3)]
    found = inspect(corpus_with(*rows, split="test")).errors.to_dict()
    assert found == {
        SEVERAL_PICTURES: {
            "count": 1,
            "first": ["cat: test, test-1#0 (embedded picture); cat: test, test-2#0 (embedded picture)"],
        }
    }
    assert inspect(corpus_with(*(row(number, image_id="cat") for number in (1, 2)))).fit


def test_one_picture_under_several_ids_of_a_split_deserves_a_look():
    same = embedded(picture(1))
    corpus = corpus_with(row(1, image=same), row(2), row(3, image=same), row(4, image=same))
    check = inspect(corpus)
    assert check.fit and check.warnings.counts == {SEVERAL_IDS: 1}
    assert check.warnings.examples[SEVERAL_IDS] == [
        "train-1: train, train-1#0 (embedded picture); train-3: train, train-3#0 (embedded picture)"
    ]


def test_rows_without_a_picture_are_not_one_picture(tmp_path):
    lost = at(tmp_path / "lost.png")
    check = inspect(corpus_with(row(1, image=lost), row(2, image=lost)))
    assert SEVERAL_IDS not in check.warnings.counts


def test_what_only_test_splits_share_is_no_leak():
    corpus = sound_corpus()
    corpus["test_other"] = corpus["test"].map(lambda one: {"caption_id": "other " + one["caption_id"]})
    check = inspect(corpus)
    assert check.fit
    pair = next(pair for pair in check.to_dict()["shared"] if pair["splits"] == ["test", "test_other"])
    assert (pair["leak"], pair["image_ids"], pair["picture_contents"], pair["recording_contents"]) == (False, 4, 4, 4)


@pytest.mark.parametrize(("one", "other"), [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_leaks_are_found_between_any_splits_that_matter(one, other):
    corpus = sound_corpus(2)
    leaked = corpus[one][1]
    media = {"image": leaked["image"], "audio": leaked["audio"]}
    corpus[other] = dataset(*corpus[other], row(9, other, **media))
    found = inspect(corpus).errors.to_dict()
    both = f"{one}, {one}-1#0 (embedded {{0}}) and {other}, {other}-9#0 (embedded {{0}})"
    assert found == {
        SHARED_PICTURE: {"count": 1, "first": [both.format("picture")]},
        SHARED_RECORDING: {"count": 1, "first": [both.format("recording")]},
    }


def test_the_same_samples_in_another_encoding_are_not_found():
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
    corpus = sound_corpus(1)
    corpus["train"] = dataset(row(0, audio=embedded(encoded_samples(samples))))
    corpus["test"] = dataset(row(0, "test", audio=embedded(encoded_samples(samples, format="FLAC"))))
    assert inspect(corpus).fit


def test_findings_come_in_the_order_of_the_rows():
    rows = [row(number, audio=embedded(recording(number, seconds=0.1))) for number in range(1, 9)]
    found = inspect(corpus_with(*rows)).warnings
    assert found.counts == {SHORT: 8}
    assert [example.split(":")[0] for example in found.examples[SHORT]] == [f"train, train-{n}#0" for n in range(1, 6)]
