"""A split as its check sees it: what was measured of each row, and the distinct values of its columns of names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset

from .media_facts import media_name
from .schema import FURTHER_TEST


class ColumnValues(NamedTuple):
    """`distinct` in the order of their first rows; `codes`, (rows,), are the rows' places among them.

    A row whose value is null or empty has the code -1.
    """

    distinct: list[str]
    codes: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """(distinct,): the rows of each value."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.distinct))

    @property
    def missing(self) -> int:
        """How many rows have no value."""
        return int(np.count_nonzero(self.codes < 0))


class SplitFacts(NamedTuple):
    """`rows` is an array of :data:`corpora.measuring.ROW`, (rows of `dataset`,)."""

    name: str
    dataset: Dataset
    rows: np.ndarray
    image_ids: ColumnValues
    speakers: ColumnValues
    languages: ColumnValues

    @property
    def for_test(self) -> bool:
        """Whether it is `test` or one of the further test splits."""
        return self.name == "test" or self.name.startswith(FURTHER_TEST)

    def first_rows_of_pictures(self) -> np.ndarray:
        """The first row of every usable picture, (distinct pictures,), in the order of the rows."""
        digests, first = np.unique(self.rows["picture"], return_index=True)
        return np.sort(first[digests != 0])

    def caption(self, row: int) -> str:
        """How messages call a row: its split and its `caption_id`."""
        return f"{self.name}, {self.dataset.select_columns(['caption_id'])[int(row)]['caption_id']}"

    def medium(self, row: int, column: str) -> str:
        """A row's caption with the path of its picture or recording (`column` is `image` or `audio`)."""
        kind = {"image": "picture", "audio": "recording"}[column]
        media = self.dataset.select_columns([column])[int(row)][column]
        return f"{self.caption(row)} ({media_name(media, kind)})"


def split_facts(name: str, dataset: Dataset, rows: np.ndarray) -> SplitFacts:
    """Read the columns of names of a measured split."""
    columns = (column_values(column, dataset) for column in ("image_id", "speaker", "language"))
    return SplitFacts(name, dataset, rows, *columns)


def column_values(column: str, *datasets: Dataset) -> ColumnValues:
    """The values of a string column, of several datasets as if they were one."""
    tables = [dataset.select_columns([column]).with_format("arrow")[:] for dataset in datasets]
    encoded = pa.concat_tables(tables).column(column).combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    distinct = encoded.dictionary.to_pylist()
    if "" in distinct:
        empty = distinct.index("")
        del distinct[empty]
        codes = np.where(codes == empty, -1, codes - (codes > empty))
    return ColumnValues(distinct, codes)
