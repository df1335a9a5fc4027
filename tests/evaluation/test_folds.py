from __future__ import annotations

import json

import pytest
from speech_image_retrieval.evaluation import evaluate_retrieval, format_report

from .slow_reference import report_of_one_query_at_a_time

NAMES = {"corpus": "digits", "split": "test"}
CUTOFFS = ("R@1", "R@5", "R@10")


def pictures_of(rows):
    return list(dict.fromkeys(row["image_id"] for row in rows))


def rows_of_fold(rows, folds, number):
    """By the definition: the pictures in the order of the file, in equal parts."""
    pictures = pictures_of(rows)
    size = len(pictures) // folds
    own = pictures[number * size : (number + 1) * size]
    return [row for row in rows if row["image_id"] in own]


def interleaved(rows):
    """Rows of one picture far apart, as in corpora that are sorted by speaker."""
    return rows[::2] + rows[1::2]


@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("k", [2, 1000])
def test_figures_are_the_mean_over_the_folds_one_query_at_a_time(model, processor, make_rows, folds, k):
    rows = interleaved(make_rows(images=30, captions_per_image=[2, 1, 3], seed=folds))
    expected = [
        report_of_one_query_at_a_time(model, processor, rows_of_fold(rows, folds, number), k)
        for number in range(folds)
    ]
    report = evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=k, folds=folds)
    for name in ("speech_to_image", "image_to_speech"):
        for stage in ("coarse", "reranked"):
            for cutoff in CUTOFFS:
                single = [fold[name][stage][cutoff] for fold in expected]
                assert report[name][stage][cutoff] == pytest.approx(sum(single) / folds)
                assert [fold[name][stage][cutoff] for fold in report["folds"]] == pytest.approx(single)
        ceilings = [fold[name]["rerank_ceiling"] for fold in expected]
        assert report[name]["rerank_ceiling"] == pytest.approx(sum(ceilings) / folds)
    assert (
        report["speech_to_image"]["coarse"] != evaluate_retrieval(model, processor, rows, **NAMES)["speech_to_image"]
    )


def test_the_report_says_what_was_averaged(model, processor, make_rows):
    rows = make_rows(images=10, captions_per_image=[2, 1, 3], seed=1)
    report = evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=3, folds=5)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    protocol = report["protocol"]
    assert (protocol["images"], protocol["captions"], protocol["folds"]) == (10, len(rows), 5)
    assert [fold["images"] for fold in report["folds"]] == [2] * 5
    assert [fold["captions"] for fold in report["folds"]] == [len(rows_of_fold(rows, 5, n)) for n in range(5)]
    counts = sorted(fold["captions"] for fold in report["folds"])
    text = format_report(report)
    assert f"Mean of 5 folds of 2 images and {counts[0]} to {counts[-1]} captions each." in text
    for name in ("speech_to_image", "image_to_speech"):
        for stage in ("coarse", "reranked"):
            low, high = report["intervals"][name][stage]["R@1"]
            assert low <= report[name][stage]["R@1"] <= high


def test_groups_are_of_all_folds(model, processor, make_rows):
    rows = interleaved(make_rows(images=12, captions_per_image=[2, 1, 3], seed=2))
    spoken = [{**row, "language": "en" if place % 3 else "fr"} for place, row in enumerate(rows)]
    report = evaluate_retrieval(model, processor, spoken, **NAMES, rerank_top_k=3, folds=3, group_by="language")
    apart = [
        evaluate_retrieval(
            model, processor, rows_of_fold(spoken, 3, number), **NAMES, rerank_top_k=3, group_by="language"
        )["speech_to_image"]["groups"]
        for number in range(3)
    ]
    for language, group in report["speech_to_image"]["groups"].items():
        own = [fold[language] for fold in apart if language in fold]
        assert group["captions"] == sum(fold["captions"] for fold in own)
        hits = sum(fold["captions"] * fold["reranked"]["R@1"] for fold in own)
        assert group["reranked"]["R@1"] == pytest.approx(hits / group["captions"])


@pytest.mark.parametrize("folds", [0, 2, 4, 10])
def test_unequal_folds_are_refused_before_anything_is_encoded(model, processor, rows, folds):
    with pytest.raises(ValueError, match=f"9 pictures cannot be divided into {folds} equal folds"):
        evaluate_retrieval(model, processor, rows, **NAMES, folds=folds)
    assert model.batches == []
