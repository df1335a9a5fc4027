from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speech_image_retrieval.evaluation.recall import chance_recall, ranks_of_relevant, recall_at, recall_summary

# few values, so that ties and infinities are common
SCORES = st.sampled_from([-torch.inf, -2.5, -0.0, 0.0, 1e-30, 1.0, 3.0, torch.inf])


@st.composite
def retrievals(draw):
    queries, candidates = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    row = st.lists(SCORES, min_size=candidates, max_size=candidates)
    flags = st.lists(st.booleans(), min_size=candidates, max_size=candidates).filter(any)
    scores = draw(st.lists(row, min_size=queries, max_size=queries))
    relevant = draw(st.lists(flags, min_size=queries, max_size=queries))
    return torch.tensor(scores), torch.tensor(relevant)


def slow_rank(scores: list[float], relevant: list[bool]) -> int:
    """Sort the candidates best first, irrelevant ones first among equals, and walk down to the first relevant one."""
    ordered = sorted(zip(scores, relevant, strict=True), key=lambda candidate: (-candidate[0], candidate[1]))
    return next(rank for rank, (_, hit) in enumerate(ordered, start=1) if hit)


@given(retrievals())
def test_rank_is_the_one_found_by_walking_down_the_sorted_list(retrieval):
    scores, relevant = retrieval
    expected = [slow_rank(*row) for row in zip(scores.tolist(), relevant.tolist(), strict=True)]
    assert ranks_of_relevant(scores, relevant).tolist() == expected


@given(retrievals(), st.randoms())
def test_order_of_candidates_does_not_matter(retrieval, random):
    scores, relevant = retrieval
    order = list(range(scores.shape[1]))
    random.shuffle(order)
    assert ranks_of_relevant(scores[:, order], relevant[:, order]).equal(ranks_of_relevant(scores, relevant))


@given(retrievals())
def test_only_the_order_of_the_scores_matters(retrieval):
    scores, relevant = retrieval
    transformed = torch.searchsorted(scores.unique(), scores).float().exp()  # strictly increasing in the scores
    assert ranks_of_relevant(transformed, relevant).equal(ranks_of_relevant(scores, relevant))


@given(retrievals(), st.data())
def test_raising_a_relevant_score_never_worsens_the_rank(retrieval, data):
    scores, relevant = retrieval
    query, candidate = data.draw(st.sampled_from(relevant.nonzero().tolist()))
    raised = scores.clone()
    raised[query, candidate] = torch.inf
    assert (ranks_of_relevant(raised, relevant) <= ranks_of_relevant(scores, relevant)).all()


def test_a_model_that_cannot_tell_candidates_apart_is_ranked_last():
    relevant = torch.tensor([[True, False, False, False], [False, True, True, False]])
    assert ranks_of_relevant(torch.zeros(2, 4), relevant).tolist() == [4, 3]


def test_best_of_several_relevant_candidates_counts_and_the_others_are_not_in_its_way():
    scores = torch.tensor([[0.9, 0.8, 0.8, 0.1]])
    assert ranks_of_relevant(scores, torch.tensor([[False, True, True, False]])).tolist() == [2]


def test_nan_is_refused_and_located():
    scores = torch.zeros(3, 4)
    scores[1, 2] = scores[2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"query 1, candidate 2 is NaN \(2 of 12"):
        ranks_of_relevant(scores, torch.ones(3, 4, dtype=torch.bool))


def test_query_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="query 1 has no relevant candidate"):
        ranks_of_relevant(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))


def test_transposed_relevance_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        ranks_of_relevant(torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool))


def test_summary_counts_the_cutoffs_inclusively():
    summary = recall_summary(torch.tensor([1, 5, 6, 10, 11, 400]))
    assert summary == pytest.approx({"R@1": 100 / 6, "R@5": 200 / 6, "R@10": 400 / 6, "median_rank": 8.0})


def test_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no queries"):
        recall_summary(torch.empty(0, dtype=torch.int64))


def test_chance_has_no_digits_of_rounding_errors():
    assert chance_recall(torch.eye(500, dtype=torch.bool)) == {"R@1": 0.2, "R@5": 1.0, "R@10": 2.0}


@pytest.mark.parametrize("relevant", [[1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1]])
def test_chance_is_the_mean_over_all_rankings(relevant):
    relevant = torch.tensor([relevant], dtype=torch.bool)
    rankings = torch.tensor(list(permutations(range(relevant.shape[1])))).float()
    ranks = ranks_of_relevant(rankings, relevant.expand_as(rankings))
    assert chance_recall(relevant) == pytest.approx({f"R@{k}": recall_at(ranks, k) for k in (1, 5, 10)})


def test_chance_averages_queries_with_different_numbers_of_answers():
    relevant = torch.zeros(2, 100, dtype=torch.bool)
    relevant[0, :1] = relevant[1, :5] = True
    assert chance_recall(relevant)["R@1"] == pytest.approx((1 + 5) / 2)
