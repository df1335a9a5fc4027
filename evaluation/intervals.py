"""How sure recalls are: bootstrap intervals by picture, also of recalls that are means over folds and directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .recall import RECALL_CUTOFFS
from .recall_at_k.ranked_lists import bootstrap_means, percentile_interval

CONFIDENCE = 0.95
RESAMPLES = 1000


class RankedQueries(NamedTuple):
    """Queries of one direction in one gallery.

    Attributes:
        ranks: stage, `coarse` or `reranked`, to the (queries,) ranks of what is right.
        pictures: (queries,) int64, the picture that each query shows or describes.
    """

    ranks: Mapping[str, Tensor]
    pictures: Tensor


def recall_intervals(folds: Sequence[Sequence[RankedQueries]]) -> dict[str, dict[str, list[float]]]:
    """Intervals at 95 % of the recalls averaged over folds, and in a fold over its directions, one or both.

    Pictures of a fold are drawn with replacement, each as a query and with all its captions: these are not
    independent. The same pictures and ranks give the same intervals.

    Returns:
        stage to `R@1`, `R@5`, `R@10` to [low, high] in per cent.
    """
    drawn = [
        bootstrap_means(_hits(queries), queries.pictures.tolist(), resamples=RESAMPLES, seed=number)
        for number, fold in enumerate(folds)
        for queries in fold  # the same seed and pictures for both directions, so the same draws
    ]
    return {
        stage: {
            f"R@{k}": list(
                percentile_interval(np.mean([means[f"{stage} {k}"] for means in drawn], axis=0), CONFIDENCE)
            )
            for k in RECALL_CUTOFFS
        }
        for stage in folds[0][0].ranks
    }


def _hits(queries: RankedQueries) -> dict[str, np.ndarray]:
    return {
        f"{stage} {k}": 100 * (ranks <= k).double().numpy()
        for stage, ranks in queries.ranks.items()
        for k in RECALL_CUTOFFS
    }
