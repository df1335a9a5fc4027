from __future__ import annotations

import numpy as np
import pytest
import torch
from speech_image_retrieval.evaluation import evaluate_retrieval
from speech_image_retrieval.evaluation.intervals import RESAMPLES, RankedQueries, recall_intervals
from speech_image_retrieval.evaluation.recall_at_k.ranked_lists import bootstrap_intervals


def random_queries(pictures: int, queries: int, seed: int) -> RankedQueries:
    generator = torch.Generator().manual_seed(seed)
    of_picture = torch.cat(
        [torch.arange(pictures), torch.randint(pictures, (queries - pictures,), generator=generator)]
    )
    ranks = {stage: torch.randint(1, 20, (queries,), generator=generator) for stage in ("coarse", "reranked")}
    return RankedQueries(ranks, of_picture)


def test_of_one_direction_they_are_those_of_the_metric():
    queries = random_queries(pictures=30, queries=90, seed=0)
    found = recall_intervals([[queries]])
    for stage, ranks in queries.ranks.items():
        for k in (1, 5, 10):
            expected = bootstrap_intervals(
                {"x": 100.0 * (ranks <= k).numpy()},
                queries.pictures.tolist(),
                confidence=0.95,
                resamples=RESAMPLES,
                seed=0,
            )
            assert found[stage][f"R@{k}"] == pytest.approx(expected["x"])


def test_of_the_mean_of_both_directions_a_picture_is_drawn_with_its_captions_and_as_a_query():
    generator = np.random.default_rng(1)
    pictures, captions_of = 12, 3
    # Each picture is easy or hard for all its queries, in both directions, so the two means move together.
    rank = torch.tensor(generator.integers(1, 3, pictures))
    both = [
        RankedQueries({"coarse": rank.repeat(captions_of)}, torch.arange(pictures).repeat(captions_of)),
        RankedQueries({"coarse": rank}, torch.arange(pictures)),
    ]
    found, expected = (recall_intervals([fold])["coarse"]["R@1"] for fold in (both, both[1:]))
    assert found == pytest.approx(expected)


def test_the_mean_over_folds_is_surer_than_a_fold():
    folds = [[random_queries(40, 40, seed)] for seed in range(4)]

    def width(found):
        low, high = found["coarse"]["R@10"]
        return high - low

    assert width(recall_intervals(folds)) < min(width(recall_intervals([fold])) for fold in folds)


def test_nothing_is_uncertain_where_all_queries_are_right():
    right = RankedQueries({"coarse": torch.ones(9, dtype=torch.int64)}, torch.arange(9) % 4)
    assert recall_intervals([[right]])["coarse"]["R@1"] == [100, 100]


def test_the_report_has_them_around_its_figures(model, processor, make_rows):
    rows = make_rows(images=20, captions_per_image=[2, 1, 3], seed=7)
    report = evaluate_retrieval(model, processor, rows, corpus="c", split="test", rerank_top_k=4)
    for name in ("speech_to_image", "image_to_speech"):
        for stage in ("coarse", "reranked"):
            for cutoff, (low, high) in report["intervals"][name][stage].items():
                assert 0 <= low <= report[name][stage][cutoff] <= high <= 100
    for stage, (low, high) in report["intervals"]["mean_r1"].items():
        assert low < report["mean_r1"][stage] < high
