"""A checked corpus as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

HOW_TO_READ = "Captions per picture and speaker: min / mean / max; durations and sizes: 5 % / median / 95 %."

_NOT_LOOKED_AT = "–"
_LISTED = 4  # values of a tally


def print_check(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what :meth:`CorpusCheck.to_dict` gave: the splits, their languages, what they share, and what is wrong."""
    console = console or Console()
    tables = [_splits_table(report), _languages_table(report), _shared_table(report)]
    if report["errors"] or report["warnings"]:
        tables.append(_problems_table(report))
    for table in tables:
        console.print(table)


def split_rows(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What is counted of the splits: its name, and a cell for each split."""
    splits = report["splits"].values()
    counts = ("rows", "unusable", "pictures", "picture_contents", "recording_contents")
    missing = ("rows_without_speaker", "rows_without_language", "rows_without_text")
    return [
        *((_words(key), [_count(split[key]) for split in splits]) for key in counts),
        ("captions per picture", [_spread(split["captions_per_picture"]) for split in splits]),
        ("speakers", [_count(split["speakers"]) for split in splits]),
        ("captions per speaker", [_spread(split["captions_per_speaker"]) for split in splits]),
        *((_words(key), [_count(split[key]) for split in splits]) for key in missing),
        ("hours of speech", [f"{split['hours']:.2f}" for split in splits]),
        ("duration, s", [_quantiles(split["seconds"], 2) for split in splits]),
        ("longest, s", [_largest(split["seconds"]) for split in splits]),
        ("sampling rates, Hz", [_tally(split["sampling_rates"]) for split in splits]),
        ("channels", [_tally(split["channels"]) for split in splits]),
        ("picture width", [_quantiles(split["picture_width"], 0) for split in splits]),
        ("picture height", [_quantiles(split["picture_height"], 0) for split in splits]),
    ]


def language_rows(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """How many captions of each split are in a language; the most spoken first."""
    splits = [split["languages"] for split in report["splits"].values()]
    spoken = sum(map(Counter, splits), Counter())
    return [(language, [_count(split.get(language, 0)) for split in splits]) for language, _ in spoken.most_common()]


def shared_rows(report: Mapping[str, Any]) -> list[tuple[str, dict[str, str], bool]]:
    """Of each pair of splits: its name, what both have, and whether it is a leak."""
    keys = ("image_ids", "picture_contents", "recording_contents", "speakers")
    return [
        (
            " and ".join(pair["splits"]),
            {_words(key): _count(pair[key]) for key in keys},
            pair["leak"],
        )
        for pair in report["shared"]
    ]


def _splits_table(report: Mapping[str, Any]) -> Table:
    table = _table("Splits", "", report["splits"])
    table.caption = HOW_TO_READ
    table.caption_justify = "left"
    for name, cells in split_rows(report):
        alarming = name == "unusable"
        table.add_row(name, *(_alarm(cell) if alarming else cell for cell in cells))
    return table


def _languages_table(report: Mapping[str, Any]) -> Table:
    table = _table("Captions in each language", "language", report["splits"])
    for language, cells in language_rows(report):
        table.add_row(escape(language), *cells)
    return table


def _shared_table(report: Mapping[str, Any]) -> Table:
    rows = shared_rows(report)
    table = _table("Shared between splits", "", rows[0][1] if rows else ())
    for pair, shared, leak in rows:
        table.add_row(pair, *(_alarm(cell) if leak and name != "speakers" else cell for name, cell in shared.items()))
    return table


def _problems_table(report: Mapping[str, Any]) -> Table:
    table = Table(title="To look at", title_justify="left")
    for column in ("", "found", "what", "first of them"):
        table.add_column(column, overflow="fold", justify="right" if column == "found" else "left")
    for key, word in (("errors", "[bold red]error[/]"), ("warnings", "warning")):
        for kind, found in report[key].items():
            table.add_row(word, _count(found["count"]), kind, escape(found["first"][0]))
    return table


def _table(title: str, corner: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(corner, no_wrap=True)
    for column in columns:
        table.add_column(escape(column), justify="right", overflow="fold")
    return table


def _words(key: str) -> str:
    return key.replace("_", " ")


def _count(count: int | None) -> str:
    return _NOT_LOOKED_AT if count is None else f"{count:,}"


def _spread(spread: Mapping[str, float]) -> str:
    return f"{spread['min']} / {spread['mean']:.2f} / {spread['max']}" if spread["max"] else _NOT_LOOKED_AT


def _quantiles(quantiles: Mapping[str, float] | None, digits: int) -> str:
    if quantiles is None:
        return _NOT_LOOKED_AT
    return " / ".join(f"{quantiles[name]:.{digits}f}" for name in ("p5", "median", "p95"))


def _largest(quantiles: Mapping[str, float] | None) -> str:
    return f"{quantiles['max']:.2f}" if quantiles else _NOT_LOOKED_AT


def _tally(tally: Mapping[str, int]) -> str:
    """The most frequent values, with their counts if there are several, each on a line."""
    if len(tally) == 1:
        return next(iter(tally))
    most = sorted(tally.items(), key=lambda item: -item[1])
    lines = [f"{value}: {count:,}" for value, count in most[:_LISTED]]
    return "\n".join([*lines, "…"] if len(most) > _LISTED else lines) or _NOT_LOOKED_AT


def _alarm(cell: str) -> str:
    return cell if cell in ("0", _NOT_LOOKED_AT) else f"[bold red]{cell}[/]"
