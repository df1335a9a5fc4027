"""Reads every picture and recording of a corpus, in parallel, and keeps a few numbers of each row."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from .findings import Findings
from .media_facts import UnusableMedia, inspect_picture, inspect_recording, read
from .parallel import in_order
from .progress import counted_progress
from .schema import Media

ROW = np.dtype(
    [
        ("usable", "?"),
        ("picture", "u8"),
        ("width", "i4"),
        ("height", "i4"),
        ("recording", "u8"),
        ("seconds", "f8"),
        ("sampling_rate", "i4"),
        ("channels", "i4"),
        ("peak", "f4"),
        ("clipped", "f4"),
    ]
)
"""What is kept of a row: `picture` and `recording` are digests of the encoded bytes, 0 where there is none.

Pixels, seconds, Hz. `peak` and `clipped` are those of :class:`RecordingFacts`, NaN if nothing was decoded. All is 0 of
what is unusable.
"""

CHUNK_ROWS = 500  # within which a picture is read once

_NOTHING = Media(bytes=None, path=None)


class Measured(NamedTuple):
    """Split -> an array of :data:`ROW`, (rows,); and what is unusable, by kind, with `SPLIT, CAPTION_ID: REASON`."""

    rows: dict[str, np.ndarray]
    unusable: Findings


class _Picture(NamedTuple):
    digest: int
    width: int
    height: int


def measure_corpus(corpus: Mapping[str, Dataset], decode: bool, num_proc: int | None = None) -> Measured:
    """Read all media of a corpus, and show the progress.

    What is held grows by some 50 bytes a row, and not with the media.

    Args:
        decode: decode pictures and recordings, and digest recordings; else read headers, and digest pictures only.
        num_proc: processes; default: all processors, or this process alone for a corpus of one chunk.
    """
    total = sum(map(len, corpus.values()))
    num_proc = min(num_proc or os.cpu_count() or 1, math.ceil(total / CHUNK_ROWS) or 1)
    measured = Measured({}, Findings())
    chunks: dict[str, list[np.ndarray]] = {split: [] for split in corpus}
    with (
        in_order(_measure, _chunks(corpus, decode), num_proc, preload=__name__) as results,
        counted_progress("checking") as progress,
    ):
        task = progress.add_task("rows", total=total, status="")
        for (split, _, _), (rows, unusable) in results:
            chunks[split].append(rows)
            measured.unusable.merge(unusable)
            progress.update(task, advance=len(rows))
            progress.update(task, status=_status(progress.tasks[task].speed, measured.unusable))
    measured.rows.update({split: np.concatenate(own) if own else np.zeros(0, ROW) for split, own in chunks.items()})
    return measured


def _chunks(corpus: Mapping[str, Dataset], decode: bool) -> Iterator[tuple[str, Dataset, bool]]:
    """Slices, which reach other processes as the place of the rows in the corpus's files, and not as media."""
    for split, dataset in corpus.items():
        media = dataset.select_columns(["caption_id", "image", "audio"])
        for start in range(0, len(media), CHUNK_ROWS):
            yield split, media.select(range(start, min(start + CHUNK_ROWS, len(media)))), decode


def _measure(split: str, dataset: Dataset, decode: bool) -> tuple[np.ndarray, Findings]:
    rows = np.zeros(len(dataset), ROW)
    unusable = Findings()
    pictures: dict[Any, _Picture | UnusableMedia] = {}
    for row, caption in zip(rows, dataset, strict=True):
        problems = []
        try:
            row["picture"], row["width"], row["height"] = _picture(caption["image"] or _NOTHING, decode, pictures)
        except UnusableMedia as problem:
            problems.append(problem)
        try:
            _measure_recording(row, caption["audio"] or _NOTHING, decode)
        except UnusableMedia as problem:
            problems.append(problem)
        row["usable"] = not problems
        for problem in problems:
            unusable.add(problem.kind, f"{split}, {caption['caption_id']}: {problem}")
    return rows, unusable


def _picture(media: Media, decode: bool, known: dict[Any, _Picture | UnusableMedia]) -> _Picture:
    place = media["path"] if media["bytes"] is None else (_digest(media["bytes"]), media["path"])
    if place not in known:
        try:
            held = read(media, "picture")
            known[place] = _Picture(_digest(held["bytes"]), *inspect_picture(held, decode))
        except UnusableMedia as problem:
            known[place] = problem
    found = known[place]
    if isinstance(found, UnusableMedia):
        raise UnusableMedia(found.kind, str(found))
    return found


def _measure_recording(row: np.void, media: Media, decode: bool) -> None:
    row["peak"] = row["clipped"] = math.nan
    held = read(media, "recording") if decode else media
    facts = inspect_recording(held, decode)
    row["seconds"], row["sampling_rate"], row["channels"] = facts.seconds, facts.sampling_rate, facts.channels
    if decode:
        row["recording"], row["peak"], row["clipped"] = _digest(held["bytes"]), facts.peak, facts.clipped


def _digest(content: bytes) -> int:
    # 64 bits: among a million different files, two have the same digest once in 37 million corpora.
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _status(rows_a_second: float | None, unusable: Findings) -> str:
    speed = f"{rows_a_second:.0f} rows/s" if rows_a_second else ""
    lost = unusable.total
    return f"{speed} {lost} unusable" if lost else speed
