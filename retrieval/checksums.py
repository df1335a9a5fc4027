"""Checksums of what an index computed, for LanceDB keeps none of its pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from zlib import crc32

import numpy as np
import pyarrow as pa

COLUMN = "crc32"


def row_checksums(embeddings: np.ndarray, previews: Sequence[bytes], states: Sequence[bytes] | None) -> list[int]:
    """One for each row, of the bytes of its embedding, its preview and its token states, if they are kept."""
    rows = zip(embeddings, previews, states or [b""] * len(previews), strict=True)
    return [crc32(state, crc32(preview, crc32(embedding.tobytes()))) for embedding, preview, state in rows]


def damaged_rows(rows: Iterable[pa.RecordBatch]) -> list[str]:
    """Ids of rows that are not what was written. `rows` has the columns of :func:`row_checksums`, `id` and `crc32`."""
    damaged = []
    for batch in rows:
        flat = batch["embedding"].flatten().to_numpy()
        states = batch["states"].to_pylist() if "states" in batch.schema.names else None
        found = row_checksums(flat.reshape(len(batch), -1), batch["preview"].to_pylist(), states)
        written = zip(batch["id"].to_pylist(), batch[COLUMN].to_pylist(), found, strict=True)
        damaged += [item_id for item_id, stored, checksum in written if stored != checksum]
    return damaged
