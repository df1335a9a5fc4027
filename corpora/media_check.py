"""Finds captions whose picture or recording cannot be used, and measures what a corpus holds."""

from __future__ import annotations

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
from datasets import Dataset, DatasetDict
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .schema import CorpusError, Media

UNDETERMINED = "und"
"""The BCP-47 tag under which :func:`summary` counts captions that state no language."""

_LISTED = 5

logger = logging.getLogger(__name__)


class _Unreadable(Exception):
    """What is wrong with one picture or recording."""


class _Facts(NamedTuple):
    problem: str | None
    seconds: float
    picture: str | None


def image_problem(media: Media) -> str | None:
    """What is wrong with an encoded picture, or None: only its header is read, the pixels are not decoded."""
    try:
        _check_image(media)
    except _Unreadable as error:
        return str(error)
    return None


def audio_problem(media: Media) -> str | None:
    """What is wrong with an encoded recording, or None: only its header is read, the samples are not decoded."""
    try:
        _audio_seconds(media)
    except _Unreadable as error:
        return str(error)
    return None


def unusable_rows(dataset: Dataset) -> dict[int, str]:
    """Row number -> what is wrong with its picture or recording: missing, empty, or with an unreadable header.

    A file that breaks off after a sound header is not found: nothing is decoded.
    """
    return {row: facts.problem for row, facts in enumerate(_facts(dataset, digests=False)) if facts.problem}


def drop_or_refuse(splits: Mapping[str, Dataset], skip_missing: bool) -> DatasetDict:
    """The splits without the rows that :func:`unusable_rows` finds; with none found, the splits as they are.

    Raises:
        CorpusError: there are such rows and `skip_missing` is not set.
    """
    problems = {name: unusable_rows(split) for name, split in splits.items()}
    refuse_or_warn(
        {name: list(found.values()) for name, found in problems.items()},
        captions={name: len(split) for name, split in splits.items()},
        skip_missing=skip_missing,
    )
    return DatasetDict({name: _without(split, problems[name]) for name, split in splits.items()})


def refuse_or_warn(problems: Mapping[str, Sequence[str]], captions: Mapping[str, int], skip_missing: bool) -> None:
    """Raise a CorpusError that counts the problems and lists the first of each part; with `skip_missing`, log it.

    `problems` and `captions` (how many there are in all) are keyed by the part of the corpus, such as a split.
    """
    found = sum(map(len, problems.values()))
    if not found:
        return
    parts = "\n".join(_part(name, problems[name], captions[name]) for name in problems if problems[name])
    counted = f"{found} of {sum(captions.values())} spoken captions"
    if skip_missing:
        logger.warning("Left out %s without a usable picture or recording.\n%s", counted, parts)
        return
    raise CorpusError(
        f"{counted} have no usable picture or recording.\n{parts}\n"
        "Restore these files, or pass --skip-missing to leave the captions out."
    )


def summary(corpus: Mapping[str, Dataset]) -> dict[str, Any]:
    """Count what each split holds and what splits share; everything in it can be written as JSON.

    `splits` maps a split to its `rows`, `unusable` rows, `pictures` (distinct `image_id`), `picture_contents`
    (distinct encoded bytes: more than `pictures` if a training split shows one thing in several pictures),
    `captions_per_picture` (`min`, `mean`, `max`), `speakers`, `rows_without_speaker`, `languages` (tag -> rows) and
    `hours` of speech, as the recordings' headers state them. `shared` has an entry for each pair of `splits`: how
    many `image_ids`, `picture_contents` (the same encoded bytes, under whatever id) and `speakers` are in both.
    """
    facts = {name: list(_facts(split, digests=True)) for name, split in corpus.items()}
    contents = {name: {row.picture for row in rows} - {None} for name, rows in facts.items()}
    image_ids = {name: set(split["image_id"]) for name, split in corpus.items()}
    speakers = {name: set(split["speaker"]) - {None} for name, split in corpus.items()}
    return {
        "splits": {name: _split_summary(corpus[name], facts[name]) for name in corpus},
        "shared": [
            {
                "splits": [one, other],
                "image_ids": len(image_ids[one] & image_ids[other]),
                "picture_contents": len(contents[one] & contents[other]),
                "speakers": len(speakers[one] & speakers[other]),
            }
            for one, other in combinations(corpus, 2)
        ],
    }


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what :func:`summary` returned: a table of the splits, of their languages, and of what they share."""
    console = console or Console()
    for table in (_splits_table(summary), _languages_table(summary), _shared_table(summary)):
        console.print(table)


def _facts(dataset: Dataset, digests: bool) -> Iterator[_Facts]:
    pictures: dict[str, tuple[str | None, str | None]] = {}
    for row in dataset.select_columns(["image", "audio"]):
        image = row["image"] or Media(bytes=None, path=None)
        if image["bytes"] is None and image["path"] in pictures:
            problem, digest = pictures[image["path"]]
        else:
            problem = image_problem(image)
            digest = _digest(image) if digests and not problem else None
            if image["bytes"] is None and image["path"]:
                pictures[image["path"]] = problem, digest
        seconds = 0.0
        try:
            seconds = _audio_seconds(row["audio"] or Media(bytes=None, path=None))
        except _Unreadable as error:
            problem = f"{problem}; {error}" if problem else str(error)
        yield _Facts(problem, seconds, digest)


def _check_image(media: Media) -> None:
    source = _open_source(media, "picture")
    try:
        with Image.open(source):
            pass
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _Unreadable(f"{_name(media, 'picture')}: unreadable picture ({error})") from None


def _audio_seconds(media: Media) -> float:
    source = _open_source(media, "recording")
    try:
        info = soundfile.info(source)
    # soundfile takes a file named .raw for headerless samples and asks, with a TypeError, for their format.
    except (OSError, TypeError, soundfile.SoundFileError) as error:
        raise _Unreadable(f"{_name(media, 'recording')}: unreadable recording ({error})") from None
    if info.frames == 0:
        raise _Unreadable(f"{_name(media, 'recording')}: a recording without samples")
    return info.duration


def _open_source(media: Media, kind: str) -> str | io.BytesIO:
    if media["bytes"] is None and media["path"] is None:
        raise _Unreadable(f"a {kind} with neither bytes nor a path")
    if media["bytes"] is not None:
        empty = not media["bytes"]
    elif Path(media["path"]).is_file():
        empty = Path(media["path"]).stat().st_size == 0
    else:
        raise _Unreadable(f"{media['path']}: no such file")
    if empty:
        raise _Unreadable(f"{_name(media, kind)}: an empty file")
    return media["path"] if media["bytes"] is None else io.BytesIO(media["bytes"])


def _name(media: Media, kind: str) -> str:
    return media["path"] or f"embedded {kind}"


def _digest(media: Media) -> str:
    encoded = Path(media["path"]).read_bytes() if media["bytes"] is None else media["bytes"]
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def _without(split: Dataset, rows: Mapping[int, str]) -> Dataset:
    return split.select([row for row in range(len(split)) if row not in rows]) if rows else split


def _part(name: str, problems: Sequence[str], captions: int) -> str:
    lines = [f"{name}: {len(problems)} of {captions}", *(f"  {problem}" for problem in problems[:_LISTED])]
    if len(problems) > _LISTED:
        lines.append(f"  and {len(problems) - _LISTED} more")
    return "\n".join(lines)


def _split_summary(split: Dataset, facts: Sequence[_Facts]) -> dict[str, Any]:
    captions = Counter(split["image_id"])
    speakers = Counter(split["speaker"])
    languages = Counter(language or UNDETERMINED for language in split["language"])
    return {
        "rows": len(split),
        "unusable": sum(row.problem is not None for row in facts),
        "pictures": len(captions),
        "picture_contents": len({row.picture for row in facts} - {None}),
        "captions_per_picture": {
            "min": min(captions.values(), default=0),
            "mean": len(split) / len(captions) if captions else 0.0,
            "max": max(captions.values(), default=0),
        },
        "speakers": len(speakers) - (None in speakers),
        "rows_without_speaker": speakers[None],
        "languages": dict(sorted(languages.items(), key=lambda item: (-item[1], item[0]))),
        "hours": sum(row.seconds for row in facts) / 3600,
    }


def _splits_table(summary: Mapping[str, Any]) -> Table:
    splits = summary["splits"].values()
    table = _table("Splits", "", summary["splits"])
    for key in ("rows", "unusable", "pictures", "picture_contents"):
        table.add_row(key.replace("_", " "), *(str(split[key]) for split in splits))
    table.add_row("captions per picture", *(_spread(split["captions_per_picture"]) for split in splits))
    table.add_row("speakers", *(str(split["speakers"]) for split in splits))
    table.add_row("rows without speaker", *(str(split["rows_without_speaker"]) for split in splits))
    table.add_row("hours of speech", *(f"{split['hours']:.2f}" for split in splits))
    return table


def _languages_table(summary: Mapping[str, Any]) -> Table:
    splits = summary["splits"].values()
    rows = sum((Counter(split["languages"]) for split in splits), Counter())
    table = _table("Captions in each language", "language", summary["splits"])
    for language, _ in rows.most_common():
        table.add_row(escape(language), *(str(split["languages"].get(language, 0)) for split in splits))
    return table


def _shared_table(summary: Mapping[str, Any]) -> Table:
    table = _table("Shared between splits", "", ["image ids", "picture contents", "speakers"])
    for pair in summary["shared"]:
        leaked = [_alarm(pair["image_ids"]), _alarm(pair["picture_contents"])]
        table.add_row(" and ".join(pair["splits"]), *leaked, str(pair["speakers"]))
    return table


def _table(title: str, corner: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(corner)
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _spread(spread: Mapping[str, float]) -> str:
    return f"{spread['min']} / {spread['mean']:.2f} / {spread['max']}"


def _alarm(count: int) -> str:
    return f"[bold red]{count}[/]" if count else "0"
