"""One part of a corpus that is being built: its rows checked, and written as an Arrow file with what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from .findings import Findings
from .media_facts import (
    BROKEN_OFF,
    HIDDEN_SAMPLES,
    LONG_SECONDS,
    NO_SAMPLES,
    UNREADABLE,
    UnusableMedia,
    encoded,
    inspect_picture,
    inspect_recording,
    wav_from_bare_samples,
)
from .schema import FEATURES, Media, SpokenCaption

LONG = f"recording longer than {LONG_SECONDS:g} s, kept"
REPAIRED = "recording with a broken header, rebuilt from its samples"

_FORMAT = 1  # of what a part holds; raise it when the same rows would give another part
_FINDINGS = ("unusable", "known", "noticed")
_BATCH = 1000  # rows of a record batch
_BATCH_WITH_MEDIA = 50  # the same where rows hold their media


class Part(NamedTuple):
    """A written part: its Arrow file and the rows in it; what was unusable, what was left out because the corpus is
    known for it, and what was kept but deserves a word."""

    file: Path
    rows: int
    unusable: Findings
    known: Findings
    noticed: Findings


def write_part(
    folder: Path, embed: bool, known: frozenset[str], bare_rate: int | None, split: str, rows: list[SpokenCaption]
) -> Part:
    """Check rows and write those that are usable to `folder`; what an earlier build wrote of them is taken over.

    Args:
        embed: write the media too.
        known: kinds of unusable recordings that are left out as known.
        bare_rate: the rate of the 16-bit mono samples behind broken WAV headers; None rebuilds none.
    """
    rows = [{**row, "image": _absolute(row["image"]), "audio": _absolute(row["audio"])} for row in rows]
    states = [_state(row[column]) for row in rows for column in ("image", "audio")]
    key = json.dumps([_FORMAT, embed, sorted(known), bare_rate, split, rows, states], default=_digest_of_bytes)
    stem = folder / f"{split}-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"
    file, sidecar = stem.with_suffix(".arrow"), stem.with_suffix(".json")
    if file.is_file() and sidecar.is_file():
        return _read_part(file, sidecar)
    pictures: dict[str, UnusableMedia | None] = {}
    part = Part(file, 0, Findings(), Findings(), Findings())
    draft = stem.with_suffix(".draft")
    with _arrow_file(draft) as write:
        for row in rows:
            problem = _picture_problem(row["image"], pictures)
            if problem is not None:
                part.unusable.add(problem.kind, f"{row['caption_id']}: {problem}")
                continue
            try:
                row["audio"] = _checked_recording(row, bare_rate, part.noticed)
            except UnusableMedia as problem:
                left_out = part.known if problem.kind in known else part.unusable
                left_out.add(problem.kind, f"{row['caption_id']}: {problem}")
                continue
            write(_embedded(row) if embed else row)
            part = part._replace(rows=part.rows + 1)
    draft.replace(file)
    findings = {name: getattr(part, name).to_dict() for name in _FINDINGS}
    # Written last: a part without it is not complete.
    _write_atomically(sidecar, json.dumps({"rows": part.rows, **findings}))
    return part


def _read_part(file: Path, sidecar: Path) -> Part:
    saved = json.loads(sidecar.read_text(encoding="utf-8"))
    return Part(file, saved["rows"], **{name: Findings.from_dict(saved[name]) for name in _FINDINGS})


def _checked_recording(row: SpokenCaption, bare_rate: int | None, noticed: Findings) -> Media:
    """The recording, rebuilt if its header is broken."""
    audio = row["audio"]
    try:
        facts = inspect_recording(audio)
    except UnusableMedia as problem:
        repairable = bare_rate is not None and problem.kind in (UNREADABLE, NO_SAMPLES, HIDDEN_SAMPLES, BROKEN_OFF)
        rebuilt = wav_from_bare_samples(audio, bare_rate) if repairable else None
        if rebuilt is None:
            raise
        noticed.add(REPAIRED, f"{row['caption_id']}: {problem}")
        audio = Media(bytes=rebuilt, path=None)
        facts = inspect_recording(audio)
    if facts.seconds > LONG_SECONDS:
        noticed.add(LONG, f"{row['caption_id']}: {facts.seconds:.1f} s")
    return audio


def _picture_problem(media: Media, seen: dict[str, UnusableMedia | None]) -> UnusableMedia | None:
    """What is wrong with a picture; `seen` remembers it by path, as captions share pictures."""
    path = media["path"] if media["bytes"] is None else None
    if path is not None and path in seen:
        return seen[path]
    problem = None
    try:
        inspect_picture(media)
    except UnusableMedia as error:
        problem = error
    if path is not None:
        seen[path] = problem
    return problem


def _absolute(media: Media) -> Media:
    if media["bytes"] is not None or media["path"] is None:
        return media
    return Media(bytes=None, path=str(Path(media["path"]).absolute()))


def _state(media: Media) -> tuple[int, int] | None:
    """Size and time of a file, which tell whether what was found of it still holds."""
    if media["bytes"] is not None or media["path"] is None:
        return None
    try:
        status = Path(media["path"]).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


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
            if len(rows) >= (_BATCH_WITH_MEDIA if held else _BATCH):
                flush()

        yield write
        flush()


def _write_atomically(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
