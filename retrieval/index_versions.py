"""Reading one version of a table from beginning to end, whatever is written meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import lancedb
import pyarrow as pa

from .index_search import check_filter, filter_explained
from .index_table import IndexProblem, damage_explained, open_table

_Read = TypeVar("_Read")


class IndexVersions:
    """Versions of the table at an address; each is a handle of its own, so that threads do not move one another's."""

    def __init__(self, uri: str):
        self._uri = uri
        self._session = lancedb.Session()

    def latest(self) -> lancedb.table.Table:
        return open_table(self._uri, self._session)

    def read(self, read: Callable[[lancedb.table.Table], _Read]) -> _Read:
        """What `read` gives of the latest version; once more, if that was cleaned away because reading took long.

        Raises:
            IndexProblem: a data file is damaged or missing.
        """
        table = self.latest()
        try:
            with damage_explained(self._uri):
                return read(table)
        except IndexProblem:
            newer = self.latest()
            if newer.version == table.version:
                raise
        with damage_explained(self._uri):
            return read(newer)

    def rows(self, columns: Sequence[str], where: str | None) -> Iterator[pa.RecordBatch]:
        """Columns of the rows of the latest version that a filter selects."""
        with damage_explained(self._uri):
            yield from read_rows(self.latest(), columns, where)


def read_rows(
    table: lancedb.table.Table, columns: Sequence[str], where: str | None = None
) -> Iterator[pa.RecordBatch]:
    if where is not None:
        check_filter(table, where)
    query = table.search().select(list(columns))
    with filter_explained(table, where):
        yield from (query if where is None else query.where(where)).to_batches()
