"""Builds a corpus of files that lie on disk: rows are checked in parallel, and nothing done is lost if it is killed.

A reader yields rows, which hold paths and no media. They are cut into parts; every part is checked by one process and
written as one Arrow file, which becomes a shard of the corpus. Parts that an interrupted build has written are taken
over. Memory does not grow with the corpus but for what the reader holds.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset, DatasetDict
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .findings import Findings
from .media_facts import (
    HIDDEN_SAMPLES,
    NO_SAMPLES,
    UNREADABLE,
    UnusableMedia,
    encoded,
    inspect_picture,
    inspect_recording,
    wav_from_bare_samples,
)
from .schema import (
    FEATURES,
    SPLITS,
    CorpusError,
    Media,
    SpokenCaption,
    check_replaceable,
    load_corpus,
    no_progress_bars,
)

PART_ROWS = 1000
LONG_SECONDS = 60.0
LONG = f"recording longer than {LONG_SECONDS:g} s, kept"
REPAIRED = "recording with a broken header, rebuilt from its samples"
REPORT = "build_report.json"

_FORMAT = 1  # of what a part holds; raise it when the same rows would give another part
_PART_BYTES = 64 << 20  # of media that rows of a part hold already
_WRITTEN = 50  # rows in memory with their media, when these are embedded


@dataclass
class Reading:
    """What a reader found: rows with their splits, lazily, and what it left out or noticed on the way.

    Args:
        rows: pairs of split and row. They may come in any order of splits.
        expected_rows: for the progress bar, if known beforehand.
        findings: grows while `rows` is read.
        known_defects: kinds of unusable media that this corpus is known to have: such rows are left out and reported.
            Any other unusable row is an error unless the user asks to skip it.
        bare_sampling_rate: the rate of 16-bit mono samples behind WAV headers that are broken; None repairs none.
        notes: sentences for the report, such as where splits come from.
    """

    rows: Iterable[tuple[str, SpokenCaption]]
    expected_rows: int | None = None
    findings: Findings = field(default_factory=Findings)
    known_defects: frozenset[str] = frozenset()
    bare_sampling_rate: int | None = None
    notes: list[str] = field(default_factory=list)


class Built(NamedTuple):
    """A corpus and the report that lies in its folder as `build_report.json`."""

    corpus: DatasetDict
    report: dict[str, Any]


class _Part(NamedTuple):
    """A written part: its Arrow file, the rows in it, what was unusable, and what was kept but deserves a word."""

    file: Path
    rows: int
    unusable: Findings
    noticed: Findings


def build_from_files(
    reading: Reading,
    out: str | Path,
    *,
    embed: bool = False,
    skip_missing: bool = False,
    num_proc: int | None = None,
) -> Built:
    """Check what a reader found and save it as a corpus under `out`.

    Rows keep the paths of their media, made absolute; rows that already hold bytes keep these. If it is interrupted,
    the parts stay in `OUT.building` and the next build with the same rows goes on from there.

    Args:
        embed: copy the media into the corpus.
        skip_missing: leave out rows without a usable picture or recording, and report them.
        num_proc: processes that check the rows; default: all processors.

    Raises:
        CorpusError: unusable rows without `skip_missing`, a split without rows, a name that is no split, something
            else than a corpus in `out`, or another build that writes there.
    """
    check_replaceable(out)
    target = Path(out).absolute()
    folder = target.with_name(f"{target.name}.building")
    with _locked(folder):
        parts = _write_parts(reading, folder, embed, num_proc or os.cpu_count() or 1)
        report = _report(reading, parts)
        _refuse_losses(reading, parts, skip_missing)
        _require_splits(report["rows"])
        _assemble(parts, folder, report)
        if target.exists():
            target.rename(folder / "old")
        (folder / "new").rename(target)
    return Built(load_corpus(out), report)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        with lock.acquire(timeout=0):
            yield
            shutil.rmtree(folder)
            Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        raise CorpusError(f"Another build is writing to {folder}. Wait for it, or choose another --out.") from None


def _write_parts(reading: Reading, folder: Path, embed: bool, num_proc: int) -> dict[str, list[_Part]]:
    """Split -> its parts, in the order of the rows."""
    progress = Progress(
        TextColumn("checking"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    write = partial(_write_part, folder, embed, reading.bare_sampling_rate)
    parts: dict[str, list[_Part]] = {}
    with _submitting(num_proc) as submit, progress:
        task = progress.add_task("rows", total=reading.expected_rows, status="")
        waiting: deque[tuple[str, int, Future[_Part] | _Done]] = deque()

        def collect() -> None:
            split, rows, future = waiting.popleft()
            parts.setdefault(split, []).append(future.result())
            lost = sum(sum(part.unusable.counts.values()) for own in parts.values() for part in own)
            progress.update(task, advance=rows, status=f"{lost} unusable" if lost else "")

        for split, rows in _cut(reading.rows):
            waiting.append((split, len(rows), submit(write, split, rows)))
            if len(waiting) > 2 * num_proc:
                collect()
        while waiting:
            collect()
    return parts


def _cut(rows: Iterable[tuple[str, SpokenCaption]]) -> Iterator[tuple[str, list[SpokenCaption]]]:
    pending: dict[str, list[SpokenCaption]] = {}
    held: dict[str, int] = {}
    for split, row in rows:
        pending.setdefault(split, []).append(row)
        held[split] = held.get(split, 0) + len(row["image"]["bytes"] or b"") + len(row["audio"]["bytes"] or b"")
        if len(pending[split]) == PART_ROWS or held[split] >= _PART_BYTES:
            del held[split]
            yield split, pending.pop(split)
    yield from pending.items()


class _Done(NamedTuple):
    value: _Part

    def result(self) -> _Part:
        return self.value


@contextmanager
def _submitting(num_proc: int) -> Iterator[Callable[..., Future[_Part] | _Done]]:
    if num_proc == 1:
        yield lambda function, *arguments: _Done(function(*arguments))
        return
    # Forking a process that has threads, of torch or of the progress bar, can hang it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(num_proc, mp_context=context)
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def _write_part(folder: Path, embed: bool, bare_rate: int | None, split: str, rows: list[SpokenCaption]) -> _Part:
    key = json.dumps([_FORMAT, embed, bare_rate, split, rows], default=_digest_of_bytes)
    stem = folder / f"{split}-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"
    file, sidecar = stem.with_suffix(".arrow"), stem.with_suffix(".json")
    if file.is_file() and sidecar.is_file():
        part = _read_part(file, sidecar)
        if not part.unusable.counts:  # files that were broken may have been mended since
            return part
    pictures: dict[str, UnusableMedia | None] = {}
    unusable, noticed, kept = Findings(), Findings(), 0
    with _arrow_file(file) as write:
        for row in rows:
            try:
                checked = _checked(row, pictures, bare_rate, noticed)
            except UnusableMedia as problem:
                unusable.add(problem.kind, f"{row['caption_id']}: {problem}")
                continue
            write(_embedded(checked) if embed else checked)
            kept += 1
    part = _Part(file, kept, unusable, noticed)
    # Written last: a part without it is not complete.
    _write_atomically(
        sidecar, json.dumps({"rows": kept, "unusable": unusable.to_dict(), "noticed": noticed.to_dict()})
    )
    return part


def _read_part(file: Path, sidecar: Path) -> _Part:
    saved = json.loads(sidecar.read_text(encoding="utf-8"))
    return _Part(file, saved["rows"], Findings.from_dict(saved["unusable"]), Findings.from_dict(saved["noticed"]))


def _checked(
    row: SpokenCaption, pictures: dict[str, UnusableMedia | None], bare_rate: int | None, noticed: Findings
) -> SpokenCaption:
    """The row with absolute paths, and with a recording rebuilt if its header is broken."""
    row = {**row, "image": _absolute(row["image"]), "audio": _absolute(row["audio"])}
    path = row["image"]["path"] if row["image"]["bytes"] is None else None
    if path is None or path not in pictures:
        problem = _picture_problem(row["image"])
        if path is not None:
            pictures[path] = problem
    else:
        problem = pictures[path]
    if problem is not None:
        raise problem
    try:
        facts = inspect_recording(row["audio"])
    except UnusableMedia as problem:
        repairable = bare_rate is not None and problem.kind in (UNREADABLE, NO_SAMPLES, HIDDEN_SAMPLES)
        rebuilt = wav_from_bare_samples(row["audio"], bare_rate) if repairable else None
        if rebuilt is None:
            raise
        noticed.add(REPAIRED, f"{row['caption_id']}: {problem}")
        row["audio"] = Media(bytes=rebuilt, path=None)
        facts = inspect_recording(row["audio"])
    if facts.seconds > LONG_SECONDS:
        noticed.add(LONG, f"{row['caption_id']}: {facts.seconds:.1f} s")
    return row


def _picture_problem(media: Media) -> UnusableMedia | None:
    try:
        inspect_picture(media)
    except UnusableMedia as problem:
        return problem
    return None


def _absolute(media: Media) -> Media:
    if media["bytes"] is not None or media["path"] is None:
        return media
    return Media(bytes=None, path=str(Path(media["path"]).absolute()))


def _embedded(row: SpokenCaption) -> SpokenCaption:
    def held(media: Media) -> Media:
        return Media(bytes=encoded(media), path=Path(media["path"]).name if media["path"] else None)

    return {**row, "image": held(row["image"]), "audio": held(row["audio"])}


def _digest_of_bytes(value: bytes) -> str:
    return hashlib.blake2b(value).hexdigest()


@contextmanager
def _arrow_file(path: Path) -> Iterator[Callable[[SpokenCaption], None]]:
    """Rows to the file as `datasets` maps it; not through its own writer, which asks torchcodec to encode audio."""
    schema = FEATURES.arrow_schema
    rows: list[SpokenCaption] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:

        def flush() -> None:
            if rows:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
                rows.clear()

        def write(row: SpokenCaption) -> None:
            rows.append(row)
            held = any(row[column]["bytes"] is not None for column in ("image", "audio"))
            if len(rows) >= (_WRITTEN if held else PART_ROWS):
                flush()

        yield write
        flush()


def _write_atomically(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _report(reading: Reading, parts: dict[str, list[_Part]]) -> dict[str, Any]:
    unusable, noticed = Findings(), Findings()
    for part in (part for own in parts.values() for part in own):
        unusable.merge(part.unusable)
        noticed.merge(part.noticed)
    return {
        "rows": {split: sum(part.rows for part in own) for split, own in parts.items()},
        "read": reading.findings.to_dict(),
        "left_out": unusable.to_dict(),
        "kept": noticed.to_dict(),
        "notes": reading.notes,
    }


def _refuse_losses(reading: Reading, parts: dict[str, list[_Part]], skip_missing: bool) -> None:
    losses = Findings()
    for part in (part for own in parts.values() for part in own):
        losses.merge(part.unusable)
    unexpected = [kind for kind in losses.counts if kind not in reading.known_defects]
    if unexpected and not skip_missing:
        lost = sum(losses.counts[kind] for kind in unexpected)
        rows = sum(part.rows for own in parts.values() for part in own) + sum(losses.counts.values())
        raise CorpusError(
            "\n".join(
                [f"{lost} of {rows} captions have no usable picture or recording.", *map(losses.listed, unexpected)]
            )
            + "\nRestore these files, or pass --skip-missing to leave the captions out. What was checked is kept."
        )


def _require_splits(rows: dict[str, int]) -> None:
    empty = [split for split in SPLITS if not rows.get(split)]
    if empty:
        found = ", ".join(f"{split} {count}" for split, count in rows.items()) or "none"
        raise CorpusError(f"No caption is left for the split {', '.join(empty)}. Captions by split: {found}.")


def _assemble(parts: dict[str, list[_Part]], folder: Path, report: dict[str, Any]) -> None:
    """Move the parts to where `datasets` expects the shards of each split, with what it saves beside them."""
    new = folder / "new"
    shutil.rmtree(new, ignore_errors=True)
    columns = {name: [] for name in FEATURES}
    with no_progress_bars():
        DatasetDict({split: Dataset.from_dict(columns, features=FEATURES) for split in parts}).save_to_disk(str(new))
    for split, own in parts.items():
        for file in (new / split).glob("*.arrow"):
            file.unlink()
        filled = [part for part in own if part.rows]
        names = [f"data-{number:05d}-of-{len(filled):05d}.arrow" for number in range(len(filled))]
        for part, name in zip(filled, names, strict=True):
            part.file.rename(new / split / name)
        state_file = new / split / "state.json"
        state = json.loads(state_file.read_text(encoding="utf-8"))
        state["_data_files"] = [{"filename": name} for name in names]
        state["_fingerprint"] = hashlib.blake2b(
            "".join(part.file.name for part in filled).encode(), digest_size=8
        ).hexdigest()
        state_file.write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
    (new / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
