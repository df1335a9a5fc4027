"""Ranks and recall of cross-modal retrieval, from a matrix of scores."""

from __future__ import annotations

import torch
from torch import Tensor

RECALL_CUTOFFS = (1, 5, 10)
_CHANCE_DECIMALS = 6  # of a per cent; what follows is the error of the sums


def ranks_of_relevant(scores: Tensor, relevant: Tensor) -> Tensor:
    """Rank of the best-scored relevant candidate of every query.

    Ties count against the model: every irrelevant candidate that scores the same is taken to be ahead, so a model
    that gives one score to everything is ranked last and not first. Other relevant candidates are never ahead.

    Args:
        scores: (queries, candidates), floating point, higher is better; infinities are scores like any other.
        relevant: (queries, candidates) bool.

    Returns:
        (queries,) int64, 1 is best.

    Raises:
        ValueError: a score is NaN, a query has no relevant candidate, or the two shapes differ.
    """
    if scores.dim() != 2 or scores.shape != relevant.shape:
        raise ValueError(
            "scores and relevant must both be (queries, candidates); "
            f"got {tuple(scores.shape)} and {tuple(relevant.shape)}"
        )
    refuse_nan(scores, "score", ("query", "candidate"))
    unanswerable = (~relevant.any(dim=1)).nonzero().flatten()
    if len(unanswerable):
        raise ValueError(
            f"query {int(unanswerable[0])} has no relevant candidate ({len(unanswerable)} such of {len(scores)} "
            "queries). Recall is defined only where there is something to find: leave these queries out."
        )
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    return 1 + ((scores >= best) & ~relevant).sum(dim=1)


def recall_at(ranks: Tensor, k: int) -> float:
    """Percentage of queries with a relevant candidate among the first k: the hit rate that the field calls R@k."""
    return 100 * (ranks <= k).double().mean().item()


def recall_summary(ranks: Tensor) -> dict[str, float]:
    """`R@1`, `R@5`, `R@10` in per cent and `median_rank`, from the (queries,) ranks of :func:`ranks_of_relevant`.

    Raises:
        ValueError: there are no ranks.
    """
    if len(ranks) == 0:
        raise ValueError("no ranks to summarise: the evaluation had no queries")
    recalls = {f"R@{k}": recall_at(ranks, k) for k in RECALL_CUTOFFS}
    return {**recalls, "median_rank": ranks.double().quantile(0.5).item()}


def chance_recall(relevant: Tensor) -> dict[str, float]:
    """The `R@1`, `R@5`, `R@10` (per cent) to expect of a random ranking of the candidates.

    A query with m relevant of n candidates misses them all in its first k with probability
    (n-m)/n · (n-m-1)/(n-1) · … (k factors).

    Args:
        relevant: (queries, candidates) bool.
    """
    candidates = relevant.shape[1]
    irrelevant = candidates - relevant.sum(dim=1, keepdim=True)
    drawn = torch.arange(min(max(RECALL_CUTOFFS), candidates))
    misses = ((irrelevant - drawn).clamp(min=0).double() / (candidates - drawn)).cumprod(dim=1)
    chances = {f"R@{k}": 100 * (1 - misses[:, min(k, candidates) - 1]).mean().item() for k in RECALL_CUTOFFS}
    return {name: round(chance, _CHANCE_DECIMALS) for name, chance in chances.items()}


def refuse_nan(scores: Tensor, what: str, axes: tuple[str, ...]) -> None:
    """Raise a ValueError that says where the first NaN of `scores` is; `axes` names its dimensions."""
    invalid = scores.isnan()
    if invalid.any():
        first = invalid.nonzero()[0].tolist()
        where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, first, strict=True))
        raise ValueError(
            f"the {what} of {where} is NaN ({int(invalid.sum())} of {scores.numel()} are). "
            "NaN cannot be ranked: look for a diverged checkpoint, or for an overflow in float16."
        )
