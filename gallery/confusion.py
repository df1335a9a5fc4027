"""Which queries are found, and what is taken for what, by attributes of queries and pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ..evaluation.intervals import RankedQueries, recall_intervals
from ..evaluation.recall import recall_at

MOST_GROUPS = 24
MOST_CONFUSED = 16
OTHERS, NOT_KNOWN = "all others", "not known"


class Recall(NamedTuple):
    """R@1 in per cent and its interval."""

    value: float
    low: float
    high: float


class Group(NamedTuple):
    """Queries that share a value; `recalls` is by stage."""

    value: str
    queries: int
    recalls: dict[str, Recall]


class Confusion(NamedTuple):
    """How often a right value (row) was answered by a value at rank 1 (column).

    Attributes:
        agreement: percentage of queries whose first result has the right value.
        values: of rows and columns. counts: (values, values). Both are empty where there are too many values to draw.
    """

    attribute: str
    agreement: float
    values: list[str]
    counts: list[list[int]]

    @property
    def most_confused(self) -> int:
        """The largest count off the diagonal."""
        rows = enumerate(self.counts)
        return max((count for row, counts in rows for place, count in enumerate(counts) if place != row), default=0)


def recall_by_value(values: Sequence[str], queries: RankedQueries) -> list[Group]:
    """R@1 of the queries of each value, in natural order; beyond 24 values the rarest are taken together.

    Args:
        values: (queries,).

    Returns:
        Nothing where all queries have one value.
    """
    kept = {value for value, _ in Counter(values).most_common(MOST_GROUPS)}
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value if value in kept else OTHERS, []).append(row)
    if len(rows) < 2:
        return []
    return [_group(value, rows[value], queries) for value in sorted(rows, key=_natural)]


def confusion(attribute: str, right: Sequence[str], found: Sequence[str]) -> Confusion:
    """What was found at rank 1 instead of what is right; beyond 16 values only how often it agrees."""
    agreement = 100 * sum(a == b for a, b in zip(right, found, strict=True)) / len(right)
    values = sorted({*right, *found}, key=_natural)
    if len(values) > MOST_CONFUSED:
        return Confusion(attribute, agreement, [], [])
    pairs = Counter(zip(right, found, strict=True))
    return Confusion(attribute, agreement, values, [[pairs[a, b] for b in values] for a in values])


def by_attribute(attributes: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Attribute to its value for each item, `not known` where an item has none."""
    names = dict.fromkeys(name for of_item in attributes for name in of_item)
    return {name: [of_item.get(name, NOT_KNOWN) for of_item in attributes] for name in names}


def _group(value: str, rows: Sequence[int], queries: RankedQueries) -> Group:
    chosen = torch.tensor(rows)
    own = RankedQueries({stage: ranks[chosen] for stage, ranks in queries.ranks.items()}, queries.pictures[chosen])
    bounds = recall_intervals([[own]])
    recalls = {stage: Recall(recall_at(ranks, 1), *bounds[stage]["R@1"]) for stage, ranks in own.ranks.items()}
    return Group(value, len(rows), recalls)


def _natural(value: str) -> tuple[bool, int, str]:
    """Numbers by size and before words, `all others` and `not known` last."""
    number = re.match(r"\d+", value)
    return value in (OTHERS, NOT_KNOWN), int(number[0]) if number else 1 << 30, value
