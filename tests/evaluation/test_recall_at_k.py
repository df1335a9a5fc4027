from __future__ import annotations

from pathlib import Path

import evaluate
import ir_measures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, Success
from speech_image_retrieval.evaluation.recall_at_k.ranked_lists import bootstrap_intervals
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalRecall

from ..fresh_process import run_script

MODULE = Path(__file__).parents[2] / "evaluation" / "recall_at_k"
KS = (1, 5, 10)


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(MODULE))


def random_lists(seed: int, queries: int = 40, gallery: int = 30) -> tuple[list[list[str]], list[list[str]]]:
    draw = np.random.default_rng(seed)
    ranked = [[f"d{item}" for item in draw.permutation(gallery)] for _ in range(queries)]
    relevant = [[f"d{item}" for item in draw.choice(gallery, draw.integers(1, 6), replace=False)] for _ in ranked]
    return ranked, relevant


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_agrees_with_ir_measures_and_torchmetrics(metric, seed: int):
    ranked, relevant = random_lists(seed)
    got = metric.compute(predictions=ranked, references=relevant, ks=KS, fractional=True)
    qrels = {str(query): dict.fromkeys(ids, 1) for query, ids in enumerate(relevant)}
    run = {str(query): {item: -float(rank) for rank, item in enumerate(ids)} for query, ids in enumerate(ranked)}
    measures = [RR, *(Success @ k for k in KS), *(R @ k for k in KS)]
    others = ir_measures.calc_aggregate(measures, qrels, run)
    assert got["MRR"] == pytest.approx(others[RR])
    indexes = torch.arange(len(ranked)).repeat_interleave(len(ranked[0]))
    scores = torch.arange(len(ranked[0]), 0, -1).float().repeat(len(ranked))
    target = torch.tensor([item in right for ids, right in zip(ranked, relevant, strict=True) for item in ids])
    assert got["MRR"] == pytest.approx(RetrievalMRR()(scores, target, indexes).item(), abs=1e-6)
    for k in KS:
        assert got[f"R@{k}"] == pytest.approx(100 * others[Success @ k])
        assert got[f"R@{k}"] == pytest.approx(
            100 * RetrievalHitRate(top_k=k)(scores, target, indexes).item(), abs=1e-4
        )
        assert got[f"fractional_recall@{k}"] == pytest.approx(100 * others[R @ k])
        fraction = RetrievalRecall(top_k=k)(scores, target, indexes).item()
        assert got[f"fractional_recall@{k}"] == pytest.approx(100 * fraction, abs=1e-4)


def test_a_query_that_finds_nothing_counts_as_a_miss(metric):
    got = metric.compute(predictions=[["a"], ["b"], []], references=[["a"], ["a"], ["a", "b"]], ks=[1])
    assert got == {"R@1": pytest.approx(100 / 3), "MRR": pytest.approx(1 / 3), "median_rank": np.inf}


def test_a_picture_counts_once_however_many_of_its_captions_are_found(metric):
    captions = ["p0", "p1", "p2", "p3", "p4"]
    got = metric.compute(predictions=[captions], references=[captions], ks=[1], fractional=True)
    assert (got["R@1"], got["fractional_recall@1"]) == (100, pytest.approx(20))


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([["a", "a"]], [["a"]], "ranks an id twice"),
        ([["a"], ["b"]], [["a"], []], "query 1 has no relevant id"),
    ],
)
def test_what_cannot_be_measured_is_refused(metric, predictions, references, message: str):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)


def test_intervals_cover_the_truth_as_often_as_they_say():
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    covered, covered_singly = 0, 0
    for _ in range(200):
        of_group = draw.random(60)  # the five captions of a picture are found together, or none of them
        hits = 100.0 * (np.repeat(of_group, 5) < 0.4)
        options = {"confidence": 0.9, "resamples": 300, "seed": int(draw.integers(1 << 30))}
        low, high = bootstrap_intervals({"R@1": hits}, groups, **options)["R@1"]
        covered += low <= 40 <= high
        low, high = bootstrap_intervals({"R@1": hits}, np.arange(300), **options)["R@1"]
        covered_singly += low <= 40 <= high
    assert 165 <= covered <= 195  # 90 % of 200, within three standard deviations
    assert covered_singly < 150  # what taking captions for independent would do


def test_groups_are_drawn_whole():
    values = np.array([0.0, 100.0, 0.0, 100.0])
    options = {"confidence": 0.95, "resamples": 200, "seed": 0}
    assert bootstrap_intervals({"R@1": values}, ["a", "a", "b", "b"], **options)["R@1"] == (50, 50)
    low, high = bootstrap_intervals({"R@1": values}, ["a", "b", "c", "d"], **options)["R@1"]
    assert low < 50 < high


def test_the_module_stands_alone(tmp_path: Path):
    script = f"""
import sys, evaluate
print(evaluate.load({str(MODULE)!r}).compute(predictions=[["a", "b"]], references=[["b"]], confidence=0.9))
assert not any(name.startswith("speech_image_retrieval") for name in sys.modules)
"""
    done = run_script(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'R@5': 100.0" in done.stdout and "'intervals'" in done.stdout
