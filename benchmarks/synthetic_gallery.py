"""Synthetic embeddings that are distributed as learned ones are, and an index of them; no picture stands behind them.

Concepts are drawn around super-concepts and embeddings around concepts, all with the spectrum of learned features: a
few strong directions and a long tail. A query lies near one embedding as a caption lies near its picture, at a cosine
of about 0.7, nearer to it than to most others of its concept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from speech_image_retrieval.retrieval.checksums import row_checksums
from speech_image_retrieval.retrieval.index_table import IndexInfo, create_table

_CHUNK = 20_000
_SUPER_CONCEPTS, _CONCEPTS = 200, 20_000
_PREVIEW_BYTES = 6_000  # of a JPEG of 256 pixels a side


def write_vectors(path: Path, rows: int, dimension: int) -> np.ndarray:
    """(rows, dimension) float32 of unit length in a .npy file, mapped into memory."""
    draw = np.random.default_rng(0)
    concepts = _concepts(dimension)
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dimension))
    for start in range(0, rows, _CHUNK):
        count = min(_CHUNK, rows - start)
        around = concepts[draw.integers(0, _CONCEPTS, count)]
        vectors[start : start + count] = _unit(around + _coloured(draw, count, dimension))
    vectors.flush()
    return vectors


def queries_near(vectors: np.ndarray, count: int) -> np.ndarray:
    """(count, dimension) float32 of unit length, each at a cosine of about 0.7 to one of the vectors."""
    draw = np.random.default_rng(1)
    dimension = vectors.shape[1]
    described = vectors[np.sort(draw.choice(len(vectors), count, replace=False))]
    return _unit(described + _unit(_coloured(draw, count, dimension)))


def build_index(uri: Path, vectors: np.ndarray, info: IndexInfo, tokens: int) -> None:
    """An index whose rows hold these vectors, random token states and random previews."""
    table = create_table(str(uri), info)
    table.add(pa.RecordBatchReader.from_batches(info.schema(), _batches(vectors, info, tokens)))


def _batches(vectors: np.ndarray, info: IndexInfo, tokens: int) -> Iterator[pa.RecordBatch]:
    draw = np.random.default_rng(2)
    state_bytes = tokens * info.width * 2
    # Random states for every row would take longer to draw than to store: rows take overlapping stretches of a pool.
    pool = draw.normal(size=10_000_000).astype(np.float16).tobytes()
    for start in range(0, len(vectors), _CHUNK // 4):
        chunk = vectors[start : start + _CHUNK // 4]
        count = len(chunk)
        offsets = 2 * draw.integers(0, (len(pool) - state_bytes) // 2, count)
        names = [f"{start + row:09}" for row in range(count)]
        columns = {
            "id": names,
            "source": ["synthetic"] * count,
            "name": names,
            "path": [None] * count,
            "fingerprint": [""] * count,
            "text": [f"synthetic item {name}" for name in names],
            "speaker": [None] * count,
            "language": [None] * count,
            "preview": [pool[offset : offset + _PREVIEW_BYTES] for offset in offsets],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(chunk.reshape(-1)), chunk.shape[1]),
            "token_count": np.full(count, tokens, dtype=np.int32),
            "states": [pool[offset : offset + state_bytes] for offset in offsets],
        }
        columns["crc32"] = row_checksums(chunk, columns["preview"], columns["states"])
        yield pa.RecordBatch.from_pydict(columns, schema=info.schema())


def _concepts(dimension: int) -> np.ndarray:
    draw = np.random.default_rng(3)
    above = 1.2 * _coloured(draw, _SUPER_CONCEPTS, dimension)
    return above[draw.integers(0, _SUPER_CONCEPTS, _CONCEPTS)] + 1.2 * _coloured(draw, _CONCEPTS, dimension)


def _coloured(draw: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    """Normal noise whose standard deviation falls with the square root of a direction's number."""
    falling = np.arange(1, dimension + 1, dtype=np.float32) ** -0.5
    return draw.standard_normal((count, dimension), dtype=np.float32) * falling


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
