"""A folder of tensors that were computed once: bfloat16 in Arrow files, read through a memory map.

A cache is filled part by part; each part is written beside its final place and renamed, so that an interrupted run
leaves whole parts, the next one goes on after them, and two that fill the same cache do not disturb each other.
A part is named by its first row and the one after its last, and holds its rows in the order in which they came.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from .arguments import ArgumentError

ROWS_PER_PART = 512
PART_BYTES = 256 * 2**20
_SCHEMA = pa.schema([("row", pa.int64()), ("shape", pa.list_(pa.int32())), ("bfloat16", pa.large_binary())])


class FeatureCache(Sequence):
    """Tensors by number. Make one with :func:`filled_cache`.

    Attributes:
        lengths: (rows,) int64, the size of each tensor's first dimension.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch]):
        places = {row: place for batch in batches for row, place in _places(batch)}
        self._places = [places[row] for row in range(len(places))]
        self.lengths = torch.tensor([shape[0] for _, shape in self._places])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> Tensor:
        """The tensor of a row, a bfloat16 copy."""
        values, shape = self._places[row]
        return torch.from_numpy(values.copy()).view(torch.bfloat16).view(shape)


def _places(batch: pa.RecordBatch) -> Iterator[tuple[int, tuple[np.ndarray, list[int]]]]:
    """Each row of a batch with its mapped values, as int16, and its shape."""
    contents = batch["bfloat16"]
    _, bounds, data = contents.buffers()
    starts = np.frombuffer(bounds, np.int64)[contents.offset : contents.offset + len(contents) + 1]
    values = np.frombuffer(data, np.int8)
    for place, (row, shape) in enumerate(zip(batch["row"].to_pylist(), batch["shape"].to_pylist(), strict=True)):
        yield row, (values[starts[place] : starts[place + 1]].view(np.int16), shape)


def filled_cache(
    folder: Path,
    key: dict[str, Any],
    rows: int,
    compute: Callable[[range], Iterable[Mapping[int, Tensor]]],
    row_bytes: float = 0,
) -> FeatureCache:
    """Open the cache in a folder, after computing the parts that it lacks.

    Args:
        key: what the tensors depend on, JSON-serialisable; the folder belongs to it.
        rows: how many tensors there are.
        compute: gives the tensors of a range of rows by row, each with at least one dimension, a batch at a time and
            in any order. No more than a batch is held in memory.
        row_bytes: about how large a row is in bfloat16; parts of large rows have fewer.

    Raises:
        ArgumentError: the folder holds a cache of another key or of more rows, or a part that is cut off; the message
            says what to do.
    """
    _claim(folder, key)
    _remove_stale(folder)
    rows_per_part = min(ROWS_PER_PART, max(1, int(PART_BYTES // max(1, row_bytes))))
    for gap in missing_rows(folder, rows):
        for start in range(gap.start, gap.stop, rows_per_part):
            wanted = range(start, min(start + rows_per_part, gap.stop))
            part = folder / f"part-{wanted.start:08d}-{wanted.stop:08d}.arrow"
            if not part.is_file():  # another run may have come first
                _write(part, compute(wanted), wanted)
    return FeatureCache(batch for part, wanted in _parts(folder, rows) for batch in _read(part, wanted))


def missing_rows(folder: Path, rows: int) -> list[range]:
    """The runs of rows that :func:`filled_cache` would compute."""
    gaps, start = [], 0
    for _, held in _parts(folder, rows):
        gaps.append(range(start, held.start))
        start = held.stop
    return [gap for gap in (*gaps, range(start, rows)) if gap]


def _parts(folder: Path, rows: int) -> list[tuple[Path, range]]:
    """The parts that are there, in order, without those whose rows another holds."""
    parts: list[tuple[Path, range]] = []
    for part in sorted(folder.glob("part-*-*.arrow")):
        start, stop = map(int, part.stem.split("-")[1:])
        if stop > rows:
            raise ArgumentError(
                f"The feature cache {part} holds rows up to {stop}, of {rows}. Remove the folder; it will be computed "
                "again."
            )
        if not parts or start >= parts[-1][1].stop:
            parts.append((part, range(start, stop)))
    return parts


def _claim(folder: Path, key: dict[str, Any]) -> None:
    """Write the key of a new cache, or compare it with that of an old one."""
    manifest = folder / "key.json"
    text = json.dumps(key, indent=2, sort_keys=True)
    if not manifest.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with _replacing(manifest) as file:
            file.write(text.encode())
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


def _write(part: Path, batches: Iterable[Mapping[int, Tensor]], wanted: range) -> None:
    written: list[int] = []
    with _replacing(part) as file:
        with pa.ipc.new_file(file, _SCHEMA) as writer:
            for batch in batches:
                shapes = [list(tensor.shape) for tensor in batch.values()]
                contents = [_bfloat16_bytes(tensor) for tensor in batch.values()]
                writer.write_batch(pa.record_batch([list(batch), shapes, contents], schema=_SCHEMA))
                written += batch
        if sorted(written) != list(wanted):
            raise ValueError(f"{len(written)} tensors were computed for the {len(wanted)} rows {wanted}")


def _bfloat16_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is whole, and otherwise leaves nothing."""
    partial = path.with_name(f".{path.name}.{_writer(os.getpid())}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _writer(pid: int | str) -> str:
    return f"{socket.gethostname()}.{pid}"


def _remove_stale(folder: Path) -> None:
    """Remove what runs on this machine had begun to write when they were killed."""
    for partial in folder.glob(".*"):
        pid = partial.name.rpartition(".")[2]
        if pid.isdecimal() and partial.name.endswith(f".{_writer(pid)}") and not _writes(int(pid)):
            partial.unlink(missing_ok=True)


def _writes(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(part: Path, wanted: range) -> list[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(part)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate()
        rows = sorted(row for batch in batches for row in batch["row"].to_pylist())
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise ArgumentError(
            f"The feature cache {part} is cut off or damaged. Remove the file; it will be computed again."
        ) from error
    if rows != list(wanted):
        raise ArgumentError(
            f"The feature cache {part} has {len(rows)} rows instead of {len(wanted)}. Remove the file; it will be "
            "computed again."
        )
    return batches


__all__ = ["FeatureCache", "filled_cache", "missing_rows"]
