"""Join the small files of many writes, and give the disk back what was deleted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import lancedb

from .index_place import TABLE, local_folder
from .index_table import damage_explained, writing

_SMALL_FRAGMENTS = 16  # fewer are searched as fast, and compaction rewrites token states
_MUCH_REWRITTEN = 0.1  # of all rows; of fewer LanceDB does not rewrite what is left
_PREEMPTED = "Retryable commit conflict"
_SUPERSEDED_KEPT = timedelta(minutes=5)  # no search takes longer
_CLOCKS_DIFFER = timedelta(seconds=1)


def compact(uri: str, table: lancedb.table.Table, is_due: Callable[[lancedb.table.Table], bool] | None = None) -> None:
    """Takes new rows up into the approximate index too. `is_due`: whether it is worth while; without it, it is."""
    if uri.startswith("db://"):  # a server does that itself
        return
    with writing(uri), damage_explained(uri):
        table.checkout_latest()
        if is_due is None or is_due(table):
            _optimize(table)


def compact_after_update(uri: str, table: lancedb.table.Table, rewritten: int) -> None:
    """If there are many small files, or many of the rows were `rewritten`: deleted or replaced."""

    def is_due(table: lancedb.table.Table) -> bool:
        many = table.stats()["fragment_stats"]["num_small_fragments"] > _SMALL_FRAGMENTS
        return many or rewritten > _MUCH_REWRITTEN * table.count_rows()

    compact(uri, table, is_due)


def give_back(uri: str, table: lancedb.table.Table) -> None:
    """Before an update: delete the files of what earlier ones deleted or replaced.

    If that means to join other files, only where those to delete outweigh them: joining leaves as much behind again.
    """

    def is_due(table: lancedb.table.Table) -> bool:
        if _superseded_before(table) < max(map(_written, table.list_versions())):  # some cannot be deleted yet
            return False
        stats = table.stats()
        kept = stats["total_bytes"] * (1 if stats["fragment_stats"]["num_fragments"] <= 1 else 2)
        return _bytes_on_disk(uri) > kept

    if local_folder(uri) is not None:
        compact(uri, table, is_due)


def _optimize(table: lancedb.table.Table) -> None:
    try:
        table.optimize()
        # Counted from when a version was written, and it may be read until it is superseded, and some time after.
        age = datetime.now() - _superseded_before(table) + _CLOCKS_DIFFER
        table.optimize(cleanup_older_than=age)
    except RuntimeError as error:
        if _PREEMPTED not in str(error):  # by another writer, where nothing locks: all rows are written
            raise


def _superseded_before(table: lancedb.table.Table) -> datetime:
    """When the version was written that was the latest as long ago as a search may have begun: who reads an earlier
    one began before that."""
    written = sorted(map(_written, table.list_versions()))
    return max((time for time in written if time < datetime.now() - _SUPERSEDED_KEPT), default=written[0])


def _written(version: dict) -> datetime:
    return version["timestamp"]


def _bytes_on_disk(uri: str) -> int:
    return sum(file.stat().st_size for file in Path(local_folder(uri), f"{TABLE}.lance", "data").glob("*.lance"))
