"""Builds a corpus of files that lie on disk: rows are checked in parallel, and nothing done is lost if it is killed.

A reader yields rows, which hold paths and no media. They are cut into parts; every part is checked by one process and
written as one Arrow file, which becomes a shard of the corpus. Parts that an interrupted build has written are taken
over. Memory does not grow with the corpus but for what the reader holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict
from filelock import FileLock, Timeout

from .findings import Findings, refuse_losses
from .parallel import in_order
from .parts import REPAIRED, Part, write_part
from .progress import counted_progress
from .schema import (
    FEATURES,
    SPLITS,
    CorpusError,
    SpokenCaption,
    check_replaceable,
    load_corpus,
    no_progress_bars,
)

PART_ROWS = 1000
REPORT = "build_report.json"

_KNOWN_AT_MOST = 20
_KNOWN_SHARE = 0.01  # of the captions
_PART_BYTES = 64 << 20  # of media that rows of a part hold already


@dataclass
class Reading:
    """What a reader found: rows with their splits, lazily, and what it left out or noticed on the way.

    Args:
        rows: pairs of split and row. They may come in any order of splits.
        expected_rows: for the progress bar, if known beforehand.
        findings: grows while `rows` is read.
        known_defects: kinds of unusable recordings that this corpus is known to have: such rows are left out and
            reported. Any other unusable row is an error unless the user asks to skip it.
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
        if not skip_missing:
            _refuse_unexpected(parts)
        _require_splits(report["rows"])
        _assemble(parts, folder, report)
        shutil.rmtree(folder / "old", ignore_errors=True)  # of a build that was killed right here
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


def _write_parts(reading: Reading, folder: Path, embed: bool, num_proc: int) -> dict[str, list[Part]]:
    """Split -> its parts, in the order of the rows."""
    write = partial(write_part, folder, embed, reading.known_defects, reading.bare_sampling_rate)
    parts: dict[str, list[Part]] = {}
    with (
        in_order(write, _cut(reading.rows), num_proc, preload=__name__) as written,
        counted_progress("checking") as progress,
    ):
        task = progress.add_task("rows", total=reading.expected_rows, status="")
        for (split, rows), part in written:
            parts.setdefault(split, []).append(part)
            lost = sum(part.unusable.total for own in parts.values() for part in own)
            progress.update(task, advance=len(rows), status=f"{lost} unusable" if lost else "")
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


def _report(reading: Reading, parts: dict[str, list[Part]]) -> dict[str, Any]:
    left_out = _merged(parts, "unusable")
    left_out.merge(_merged(parts, "known"))
    return {
        "rows": {split: sum(part.rows for part in own) for split, own in parts.items()},
        "read": reading.findings.to_dict(),
        "left_out": left_out.to_dict(),
        "kept": _merged(parts, "noticed").to_dict(),
        "notes": reading.notes,
    }


def _merged(parts: dict[str, list[Part]], name: str) -> Findings:
    merged = Findings()
    for part in (part for own in parts.values() for part in own):
        merged.merge(getattr(part, name))
    return merged


def _refuse_unexpected(parts: dict[str, list[Part]]) -> None:
    """Losses that nobody asked to skip, and more defects than a corpus is known for."""
    losses, known = _merged(parts, "unusable"), _merged(parts, "known")
    kept = sum(part.rows for own in parts.values() for part in own)
    repaired = _merged(parts, "noticed").counts.get(REPAIRED, 0)
    if repaired > _KNOWN_AT_MOST:
        raise CorpusError(
            f"{repaired} recordings have broken headers, of which this corpus has few: unpack it again, or pass "
            "--skip-missing to build it of what is there."
        )
    captions = kept + losses.total + known.total
    if known.total > max(_KNOWN_AT_MOST, _KNOWN_SHARE * captions):
        losses.merge(known)
    refuse_losses(losses, captions)


def _require_splits(rows: dict[str, int]) -> None:
    empty = [split for split in SPLITS if not rows.get(split)]
    if empty:
        found = ", ".join(f"{split} {count}" for split, count in rows.items()) or "none"
        raise CorpusError(f"No caption is left for the split {', '.join(empty)}. Captions by split: {found}.")


def _assemble(parts: dict[str, list[Part]], folder: Path, report: dict[str, Any]) -> None:
    """Put the parts where `datasets` expects the shards of each split, with what it saves beside them."""
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
            _link_or_copy(part.file, new / split / name)
        state_file = new / split / "state.json"
        state = json.loads(state_file.read_text(encoding="utf-8"))
        state["_data_files"] = [{"filename": name} for name in names]
        state["_fingerprint"] = hashlib.blake2b(
            "".join(part.file.name for part in filled).encode(), digest_size=8
        ).hexdigest()
        state_file.write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
    (new / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _link_or_copy(file: Path, target: Path) -> None:
    """The part stays where it is as well, for a build that is killed before it ends."""
    try:
        target.hardlink_to(file)
    except OSError:  # not every file system has links
        shutil.copyfile(file, target)
