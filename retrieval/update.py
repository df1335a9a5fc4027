"""Bring a table up to date with its source: encode what is new or changed, write it whole, delete the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

import lancedb
import pyarrow as pa
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from .compaction import compact_after_update, give_back
from .encoding import Unreadable, encode_items
from .held_sources import held_folders
from .index_place import is_utf8
from .index_table import IndexInfo, IndexProblem, damage_explained, one_of, writing
from .known_rows import KnownRows
from .sources import PLURAL, Item, Source

_BYTES_PER_WRITE = 64 << 20
_SECONDS_PER_WRITE = 30.0  # what a killed update loses at most
_DELETED_AT_A_TIME = 500


@dataclass
class UpdateReport:
    """What an update did. `unreadable` items are tried again by the next update. Until then they are not in the index,
    except those that are there from before and now could not even be read."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)
    seconds: float = 0.0


class Update:
    """One update of a table. The arguments of its methods are those of :class:`.index.SpeechImageIndex`."""

    def __init__(
        self,
        uri: str,
        table: lancedb.table.Table,
        info: IndexInfo,
        model: nn.Module,
        processor: Callable[..., Mapping[str, Tensor]],
    ):
        self._uri, self._table, self._info = uri, table, info
        self._model, self._processor = model, processor
        self.report = UpdateReport()

    def add(self, items: Iterable[Item], **options: int) -> UpdateReport:
        """Encode and write what is new or changed."""
        began = time.monotonic()
        total = len(items) if hasattr(items, "__len__") else None
        give_back(self._uri, self._table)
        self._encode_and_write(items, total, self._known_rows(None), **options)
        compact_after_update(self._uri, self._table, self.report.changed)
        self.report.seconds = time.monotonic() - began
        return self.report

    def agree(self, source: Source, **options: int) -> UpdateReport:
        """The same, then delete what the source had and has not any more."""
        began = time.monotonic()
        total = len(source)  # first: a source that cannot be read at all must not look empty
        self._refuse_nested(source.folder)
        give_back(self._uri, self._table)
        of_source = one_of("source", [source.name])
        known = self._known_rows(of_source)
        self._encode_and_write(source, total, known, **options)
        for item in self.report.unreadable:
            if not item.unread:
                known.unsee(item.id)
        self._delete_gone(known, of_source)
        compact_after_update(self._uri, self._table, self.report.changed + self.report.deleted)
        self.report.seconds = time.monotonic() - began
        return self.report

    def _refuse_nested(self, folder: Path | None) -> None:
        """A file has one row, of one source: two folders that both hold it would take it from each other."""
        if folder is None:
            return
        for other in held_folders(self._rows(["source", "id", "path"], None)) - {folder}:
            if other in folder.parents or folder in other.parents:
                command = f"sir sources {quote(self._uri)} --remove {quote(str(other))}"
                raise IndexProblem(
                    f"{self._uri} already holds the folder {other}, which shares files with {folder}. Update that "
                    f"one, remove it ({command}), or use another index."
                )

    def _encode_and_write(
        self, items: Iterable[Item], total: int | None, known: KnownRows, *, progress: bool, **options: int
    ) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not progress) as bar:
            task = bar.add_task(f"Indexing {PLURAL[self._info.modality]}", total=total)
            wanted = self._new_or_changed(items, known, lambda: bar.advance(task))
            schema = self._info.schema()
            encoded = encode_items(self._model, self._processor, wanted, schema, self._info.modality, **options)
            pending, written = [], time.monotonic()
            try:
                for batch in encoded:
                    self.report.unreadable += batch.unreadable
                    if batch.rows:
                        pending.append(batch.rows)
                    bar.advance(task, len(batch.unreadable) + (len(batch.rows) if batch.rows else 0))
                    full = sum(rows.nbytes for rows in pending) >= _BYTES_PER_WRITE
                    if full or time.monotonic() - written > _SECONDS_PER_WRITE:
                        self._write(pending)
                        pending, written = [], time.monotonic()
                        if progress and not bar.console.is_terminal:  # there the bar shows at the end only
                            bar.console.print(f"{bar.tasks[task].completed:.0f} of {total or 'unknown'} done")
                self._write(pending)
            except KeyboardInterrupt:
                self._write(pending)
                raise

    def _new_or_changed(self, items: Iterable[Item], known: KnownRows, advance: Callable[[], None]) -> Iterator[Item]:
        for item in items:
            if not is_utf8(item.id):
                name = item.id.encode(errors="backslashreplace").decode()
                self.report.unreadable.append(Unreadable(name, "The name is not valid UTF-8. Rename the file."))
                advance()
            elif known.see(item.id, item.fingerprint) == "unchanged":
                self.report.unchanged += 1
                advance()
            else:
                yield item

    def _write(self, pending: list[pa.Table]) -> None:
        if not pending:
            return
        with writing(self._uri), damage_explained(self._uri):
            self._table.checkout_latest()
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            result = merge.execute(_last_of_each_id(pa.concat_tables(pending)))
        self.report.added += result.num_inserted_rows
        self.report.changed += result.num_updated_rows

    def _known_rows(self, where: str | None) -> KnownRows:
        batches = self._rows(["id", "fingerprint"], where)
        return KnownRows((batch["id"].to_pylist(), batch["fingerprint"].to_pylist()) for batch in batches)

    def _delete_gone(self, known: KnownRows, of_source: str) -> None:
        with writing(self._uri), damage_explained(self._uri):  # reading too: what another writer renews is not gone
            gone = [row for batch in self._rows(["id", "fingerprint"], of_source) for row in _gone(batch, known)]
            for start in range(0, len(gone), _DELETED_AT_A_TIME):
                ids, fingerprints = zip(*gone[start : start + _DELETED_AT_A_TIME], strict=True)
                unrenewed = f"{one_of('id', ids)} AND {one_of('fingerprint', fingerprints)}"
                self.report.deleted += self._table.delete(unrenewed).num_deleted_rows

    def _rows(self, columns: list[str], where: str | None) -> Iterator[pa.RecordBatch]:
        with damage_explained(self._uri):
            self._table.checkout_latest()
            query = self._table.search().select(columns)
            yield from (query if where is None else query.where(where)).to_batches()


def _gone(batch: pa.RecordBatch, known: KnownRows) -> list[tuple[str, str]]:
    ids, fingerprints = batch["id"].to_pylist(), batch["fingerprint"].to_pylist()
    return [(ids[place], fingerprints[place]) for place in known.gone(ids, fingerprints)]


def _last_of_each_id(rows: pa.Table) -> pa.Table:
    """A merge would insert every one of several new rows with one id."""
    last = {item_id: place for place, item_id in enumerate(rows["id"].to_pylist())}
    return rows if len(last) == len(rows) else rows.take(list(last.values()))
