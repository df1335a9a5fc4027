"""Figures of ranked lists of ids, and how sure they are. Stands alone: it is published with the metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def ranks_of_relevant(ranked: Sequence[Sequence[str]], relevant: Sequence[Sequence[str]]) -> np.ndarray:
    """(queries,) the rank of each query's first relevant id, from 1; infinite where the list has none.

    Raises:
        ValueError: unequal numbers of lists, a query with nothing relevant, or a list that names an id twice.
    """
    _check(ranked, relevant)
    return np.array([_first_hit(ids, set(right)) for ids, right in zip(ranked, relevant, strict=True)])


def fractions_found(ranked: Sequence[Sequence[str]], relevant: Sequence[Sequence[str]], k: int) -> np.ndarray:
    """(queries,) the share of each query's relevant ids that is among the first k: what mteb and trec_eval call
    recall. With five captions to a picture it cannot exceed a fifth at k = 1."""
    _check(ranked, relevant)
    shares = [
        len(set(right).intersection(ids[:k])) / len(set(right)) for ids, right in zip(ranked, relevant, strict=True)
    ]
    return np.array(shares)


def bootstrap_intervals(
    per_query: Mapping[str, np.ndarray],
    groups: Sequence[str],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the means of per-query values.

    Args:
        per_query, groups: see :func:`bootstrap_means`.
        confidence: of the intervals, between 0 and 1.

    Returns:
        name to (low, high).
    """
    means = bootstrap_means(per_query, groups, resamples=resamples, seed=seed)
    return {name: percentile_interval(drawn, confidence) for name, drawn in means.items()}


def bootstrap_means(
    per_query: Mapping[str, np.ndarray], groups: Sequence[str], *, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Means of per-query values over queries that are drawn again and again.

    Captions of one picture are not independent, so whole groups are drawn with replacement, not single queries. The
    same seed and the same groups give the same draws, whichever queries and values they have.

    Args:
        per_query: name to (queries,) values.
        groups: (queries,) what each query belongs to, for instance the image_id.

    Returns:
        name to (resamples,) means.
    """
    _, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sizes = np.bincount(group_of)
    draw = np.random.default_rng(seed)
    drawn = draw.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), resamples)
    means = {}
    for name, values in per_query.items():
        if len(values) != len(groups):
            raise ValueError(f"there are {len(values)} queries and {len(groups)} groups; each query needs its group")
        means[name] = drawn @ np.bincount(group_of, weights=values) / (drawn @ sizes)
    return means


def percentile_interval(means: np.ndarray, confidence: float) -> tuple[float, float]:
    """(low, high) between which the middle `confidence` of the (resamples,) means lie."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail]).tolist()
    return low, high


def _first_hit(ids: Sequence[str], right: set[str]) -> float:
    return next((float(rank) for rank, item in enumerate(ids, start=1) if item in right), float("inf"))


def _check(ranked: Sequence[Sequence[str]], relevant: Sequence[Sequence[str]]) -> None:
    if len(ranked) != len(relevant):
        raise ValueError(f"there are {len(ranked)} ranked lists and {len(relevant)} lists of relevant ids")
    if not len(ranked):
        raise ValueError("there are no queries")
    for query, (ids, right) in enumerate(zip(ranked, relevant, strict=True)):
        if not len(right):
            raise ValueError(f"query {query} has no relevant id; leave such queries out")
        if len(set(ids)) != len(ids):
            raise ValueError(f"query {query} ranks an id twice; give every id of the gallery once")
