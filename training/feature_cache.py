"""A folder of tensors that were computed once: bfloat16 in Arrow files, read through a memory map.

A cache is filled part by part; each part is written beside its final place and renamed, so that an interrupted run
leaves whole parts, the next one goes on after them, and two that fill the same cache do not disturb each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from .arguments import ArgumentError

ROWS_PER_PART = 512
_SCHEMA = pa.schema([("shape", pa.list_(pa.int32())), ("bfloat16", pa.large_binary())])


class FeatureCache(Sequence):
    """Tensors by number. Make one with :func:`filled_cache`.

    Attributes:
        lengths: (rows,) int64, the size of each tensor's first dimension.
    """

    def __init__(self, tables: list[pa.Table]):
        self._columns = [(table["shape"].combine_chunks(), table["bfloat16"].chunk(0)) for table in tables]
        self.lengths = torch.tensor([shape[0] for shapes, _ in self._columns for shape in shapes.to_pylist()])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Tensor:
        """The tensor of a row, a bfloat16 copy."""
        shapes, contents = self._columns[row // ROWS_PER_PART]
        place = row % ROWS_PER_PART
        values = np.frombuffer(contents[place].as_buffer(), np.int16).copy()
        return torch.from_numpy(values).view(torch.bfloat16).view(shapes[place].as_py())


def filled_cache(
    folder: Path, key: dict[str, Any], rows: int, compute: Callable[[range], Iterable[Tensor]]
) -> FeatureCache:
    """Open the cache in a folder, after computing the parts that it lacks.

    Args:
        key: what the tensors depend on, JSON-serialisable; the folder belongs to it.
        rows: how many tensors there are.
        compute: gives the tensors of a range of rows, each with at least one dimension.

    Raises:
        ArgumentError: the folder holds a cache of another key, or a part that is cut off; the message says what to
            do.
    """
    _claim(folder, key)
    tables = []
    for number, start in enumerate(range(0, rows, ROWS_PER_PART)):
        part, wanted = folder / f"part-{number:05d}.arrow", range(start, min(start + ROWS_PER_PART, rows))
        if not part.is_file():
            _write(part, compute(wanted), len(wanted))
        tables.append(_read(part, len(wanted)))
    return FeatureCache(tables)


def missing_rows(folder: Path, rows: int) -> int:
    """How many rows :func:`filled_cache` would compute."""
    parts = range(0, rows, ROWS_PER_PART)
    absent = [n for n, _ in enumerate(parts) if not (folder / f"part-{n:05d}.arrow").is_file()]
    return sum(min(ROWS_PER_PART, rows - n * ROWS_PER_PART) for n in absent)


def _claim(folder: Path, key: dict[str, Any]) -> None:
    """Write the key of a new cache, or compare it with that of an old one."""
    manifest = folder / "key.json"
    text = json.dumps(key, indent=2, sort_keys=True)
    if not manifest.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _replace(manifest, text.encode())
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    if found != json.loads(text):
        other = sorted(name for name in {*found, *key} if found.get(name) != json.loads(text).get(name))
        raise ArgumentError(
            f"The feature cache {folder} was computed with other {', '.join(other)}. Remove the folder; it will be "
            "computed again."
        )


def _write(part: Path, tensors: Iterable[Tensor], rows: int) -> None:
    tensors = list(tensors)
    if len(tensors) != rows:
        raise ValueError(f"{len(tensors)} tensors were computed for {rows} rows")
    contents = [
        tensor.detach().cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes() for tensor in tensors
    ]
    batch = pa.record_batch([[list(tensor.shape) for tensor in tensors], contents], schema=_SCHEMA)
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, _SCHEMA) as writer:
        writer.write_batch(batch)
    _replace(part, stream.getvalue())


def _replace(path: Path, content: bytes | pa.Buffer) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(part: Path, rows: int) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(part))).read_all()
        table.validate()
    except (pa.ArrowInvalid, OSError) as error:
        raise ArgumentError(
            f"The feature cache {part} is cut off or damaged. Remove the file; it will be computed again."
        ) from error
    if len(table) != rows:
        raise ArgumentError(
            f"The feature cache {part} has {len(table)} rows instead of {rows}. Remove the file; it will be computed "
            "again."
        )
    return table


__all__ = ["FeatureCache", "filled_cache", "missing_rows"]
