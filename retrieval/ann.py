"""Which approximate index over embeddings, and how large its parts are: IVF-RQ (RaBitQ), refined by exact distances.

On a million synthetic embeddings (benchmarks/index_search.py), product quantisation lost half of the 100 nearest,
scalar quantisation needed several times as long for as many, and a graph (HNSW) was not built after ten minutes.
"""

from __future__ import annotations

import math

from lancedb.index import IvfRq

ROWS_NEEDED = 1_000
REFINE = 2  # times as many rows are fetched and compared exactly
_ROWS_PER_PARTITION = 4_000
_PROBED_SHARE, _PROBED_AT_LEAST = 0.20, 20
_BITS_PER_NUMBER = 8


def ann_config(rows: int) -> IvfRq:
    """An index for this many rows.

    Raises:
        ValueError: so few rows that an exact search is as fast.
    """
    if rows < ROWS_NEEDED:
        raise ValueError(
            f"An approximate index needs at least {ROWS_NEEDED} rows, and there are {rows}. Searches without one are "
            "exact, and fast at this size."
        )
    return IvfRq(distance_type="dot", num_partitions=_partitions(rows), num_bits=_BITS_PER_NUMBER)


def probes(rows: int) -> int:
    """How many parts of an index of this many rows a search looks into: the same share of all, so that recall does not
    fall as a gallery grows."""
    return max(_PROBED_AT_LEAST, math.ceil(_PROBED_SHARE * _partitions(rows)))


def _partitions(rows: int) -> int:
    return max(1, rows // _ROWS_PER_PARTITION)
