"""Which approximate index over embeddings, and how large its parts are: IVF-PQ, refined by exact distances."""

from __future__ import annotations

from lancedb.index import IvfPq

ROWS_NEEDED = 1_000
PROBES = 20
REFINE = 4  # times as many rows are fetched and compared exactly
_ROWS_PER_PARTITION = 1_000
_NUMBERS_PER_CODE = 8


def ann_config(rows: int, dimension: int) -> IvfPq:
    """An index for this many rows.

    Raises:
        ValueError: so few rows that an exact search is as fast.
    """
    if rows < ROWS_NEEDED:
        raise ValueError(
            f"An approximate index needs at least {ROWS_NEEDED} rows, and there are {rows}. Searches without one are "
            "exact, and fast at this size."
        )
    codes = dimension // _NUMBERS_PER_CODE if dimension % _NUMBERS_PER_CODE == 0 else None
    return IvfPq(distance_type="dot", num_partitions=rows // _ROWS_PER_PARTITION, num_sub_vectors=codes)
