"""What an index holds of which source, and whether the source is still there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa


@dataclass(frozen=True)
class HeldSource:
    """A source of rows of an index.

    Attributes:
        name: a folder, a corpus and its split, or what was given to :meth:`.index.SpeechImageIndex.add`.
        rows: how many there are of it.
        is_there: whether its folder is; None for what is no folder of this machine.
    """

    name: str
    rows: int
    is_there: bool | None


def held_sources(rows: Iterable[pa.RecordBatch]) -> list[HeldSource]:
    """By name; `rows` has the columns `source`, `id` and `path`."""
    counts: Counter[str] = Counter()
    folders: set[str] = set()
    for batch in rows:
        counts.update(batch["source"].to_pylist())
        folders |= _folders(batch)
    return [HeldSource(name, counts[name], _is_there(name, name in folders)) for name in sorted(counts)]


def held_folders(rows: Iterable[pa.RecordBatch]) -> set[Path]:
    """Those sources whose rows are the files in them; a corpus gives its rows ids of their own."""
    return {Path(name) for batch in rows for name in _folders(batch)}


def _folders(batch: pa.RecordBatch) -> set[str]:
    return {
        source
        for source, item_id, path in zip(*(batch[name].to_pylist() for name in ("source", "id", "path")), strict=True)
        if item_id == path
    }


def _is_there(name: str, is_folder: bool) -> bool | None:
    place = Path(name if is_folder else name.rpartition("#")[0])  # without the split of a corpus
    return place.is_dir() if place.is_absolute() else None
