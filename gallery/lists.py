"""Which queries the page shows, and what each of them found."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from ..evaluation.ranking import RankedDirection


class Result(NamedTuple):
    """A candidate in a list: its place in the gallery, and whether it is right."""

    place: int
    right: bool


class QueryLists(NamedTuple):
    """A query's place, and by stage (`coarse`, `reranked`) the rank of what is right and the first results."""

    place: int
    ranks: dict[str, int]
    results: dict[str, list[Result]]


def pick_queries(direction: RankedDirection, count: int, seed: int = 0) -> dict[str, list[int]]:
    """Places of `count` queries, or all of fewer: `random` ones in their order, the `best` and the `worst`.

    Best and worst are so by the final rank of what is right. Of equal ones those are best whose right candidate is
    most clearly above all others in coarse score, and worst where it was also worse before re-ranking.
    """
    ranks = direction.queries.ranks
    final = ranks.get("reranked", ranks["coarse"]).tolist()
    coarse_ranks, margins = ranks["coarse"].tolist(), _margins(direction).tolist()
    places = range(len(final))
    count = min(count, len(final))
    return {
        "random": sorted(Random(seed).sample(places, count)),
        "best": sorted(places, key=lambda query: (final[query], -margins[query]))[:count],
        "worst": sorted(places, key=lambda query: (-final[query], -coarse_ranks[query], margins[query]))[:count],
    }


def lists_of(direction: RankedDirection, query: int, length: int) -> QueryLists:
    """The first `length` results of a query at every stage; of equal scores the wrong ones come first, as in ranks."""
    relevant = direction.relevant[query]
    results = {}
    for stage, scores in direction.scores.items():
        first = _order(scores[query], relevant)[:length].tolist()
        results[stage] = [Result(place, bool(relevant[place])) for place in first]
    return QueryLists(query, {stage: int(ranks[query]) for stage, ranks in direction.queries.ranks.items()}, results)


def first_results(direction: RankedDirection) -> Tensor:
    """(queries,) the place of each query's first result at the last stage, of those with one right candidate."""
    stage = list(direction.scores)[-1]
    right = direction.relevant.to(torch.uint8).argmax(dim=1)
    best_wrong = direction.scores[stage].masked_fill(direction.relevant, -torch.inf).argmax(dim=1)
    return torch.where(direction.queries.ranks[stage] == 1, right, best_wrong)


def _order(scores: Tensor, relevant: Tensor) -> Tensor:
    wrong_first = relevant.to(torch.uint8).argsort(stable=True)
    return wrong_first[scores[wrong_first].argsort(descending=True, stable=True)]


def _margins(direction: RankedDirection) -> Tensor:
    """(queries,) by how much the best right candidate is above the best wrong one, in coarse score."""
    coarse, relevant = direction.scores["coarse"], direction.relevant
    right = coarse.masked_fill(~relevant, -torch.inf).amax(dim=1)
    return right - coarse.masked_fill(relevant, -torch.inf).amax(dim=1)
