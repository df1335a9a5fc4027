"""Join the small files of many writes, and give the disk back what was deleted."""

from __future__ import annotations

from datetime import timedelta

import lancedb

from .index_table import damage_explained, writing

_SMALL_FRAGMENTS = 16  # fewer are searched as fast, and compaction rewrites token states
_PREEMPTED = "Retryable commit conflict"
_OLD_VERSIONS_KEPT = timedelta(minutes=5)  # no search that began before a compaction takes longer


def compact(uri: str, table: lancedb.table.Table, *, however_few: bool = False) -> None:
    """Takes new rows up into the approximate index too. `however_few`: also if hardly anything would be joined."""
    if uri.startswith("db://"):  # a server does that itself
        return
    with writing(uri), damage_explained(uri):
        table.checkout_latest()
        if however_few or table.stats()["fragment_stats"]["num_small_fragments"] > _SMALL_FRAGMENTS:
            try:
                table.optimize(cleanup_older_than=_OLD_VERSIONS_KEPT)
            except RuntimeError as error:
                if _PREEMPTED not in str(error):  # by another writer, where nothing locks: all rows are written
                    raise
