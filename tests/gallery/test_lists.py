from __future__ import annotations

import pytest
import torch
from speech_image_retrieval.evaluation.ranking import RankedDirection, ranked_gallery
from speech_image_retrieval.evaluation.reranking import Matched, top_k_candidates
from speech_image_retrieval.gallery.lists import first_results, lists_of, pick_queries


def direction_of(captions: int, images: int, seed: int, *, ties: bool = False) -> RankedDirection:
    generator = torch.Generator().manual_seed(seed)
    draw = (
        (lambda: torch.randint(3, (captions, images), generator=generator).float())
        if ties
        else (lambda: torch.randn(captions, images, generator=generator))
    )
    coarse, logits = draw(), draw()
    matched = Matched(coarse, logits, top_k_candidates(coarse, 4), top_k_candidates(coarse.T.contiguous(), 4))
    image_of_caption = torch.arange(captions) % images
    return ranked_gallery(coarse, image_of_caption, matched, "sim", None).speech_to_image


def place_of_right(direction: RankedDirection, query: int, stage: str) -> int:
    whole = lists_of(direction, query, direction.relevant.shape[1]).results[stage]
    return next(rank for rank, result in enumerate(whole, start=1) if result.right)


@pytest.mark.parametrize("ties", [False, True])
def test_lists_show_what_is_right_at_its_rank(ties):
    direction = direction_of(captions=30, images=10, seed=0, ties=ties)
    for query in range(30):
        lists = lists_of(direction, query, 3)
        assert lists.ranks == {stage: place_of_right(direction, query, stage) for stage in ("coarse", "reranked")}
        for stage, rank in lists.ranks.items():
            assert len(lists.results[stage]) == 3
            rights = [result.right for result in lists.results[stage]]
            assert rights == [place == rank for place in (1, 2, 3)]
            assert all(result.right == (result.place == query % 10) for result in lists.results[stage])


def test_worst_queries_are_the_worst_and_best_the_best():
    direction = direction_of(captions=60, images=20, seed=1)
    final = [place_of_right(direction, query, "reranked") for query in range(60)]
    picked = pick_queries(direction, 7)
    assert len(set(picked["worst"])) == len(set(picked["best"])) == len(set(picked["random"])) == 7
    assert [final[query] for query in picked["worst"]] == sorted(final, reverse=True)[:7]
    assert [final[query] for query in picked["best"]] == sorted(final)[:7]
    left_out = set(range(60)) - set(picked["worst"])
    assert max(final[query] for query in left_out) <= min(final[query] for query in picked["worst"])


def test_of_equal_ranks_the_clearest_is_best():
    coarse = torch.tensor([[0.9, 0.8, 0.0], [0.1, 0.9, 0.0], [0.0, 0.55, 0.6]])
    direction = ranked_gallery(coarse, torch.arange(3), None, "sim", None).speech_to_image
    assert pick_queries(direction, 3)["best"] == [1, 0, 2]  # margins 0.8, 0.1, 0.05
    assert pick_queries(direction, 9)["worst"] == [2, 0, 1]


def test_the_first_results_are_those_of_the_lists():
    for ties in (False, True):
        direction = direction_of(captions=40, images=8, seed=2, ties=ties)
        for query, place in enumerate(first_results(direction).tolist()):
            listed = lists_of(direction, query, 1).results["reranked"][0]
            assert listed.right == (place == query % 8)
            scores = direction.scores["reranked"][query]
            assert scores[place] == scores[listed.place] == scores.max()


def test_random_queries_depend_on_nothing_but_their_number():
    one, other = (pick_queries(direction_of(50, 10, seed), 6)["random"] for seed in (3, 4))
    assert one == other == sorted(one)
