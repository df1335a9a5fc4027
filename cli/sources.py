"""`sir sources`: what an index was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import app
from .search_index import require_lancedb

if TYPE_CHECKING:
    from ..retrieval.held_sources import HeldSource
    from ..retrieval.index import SpeechImageIndex

_DAMAGED_SHOWN = 20
_THERE = {True: "yes", False: "gone", None: "not a folder here"}


@app.command()
def sources(
    index: Annotated[str, typer.Argument(metavar="INDEX", help="Folder or address of an index.")],
    remove: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Take all rows of this source out of the index.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare every row with its checksum.")] = False,
) -> None:
    """List what an index was made of: folders and corpora, their rows, and whether they are still there.

    A folder that was renamed or deleted stays in an index until it is removed.
    """
    require_lancedb()
    from ..retrieval.index import SpeechImageIndex

    opened = SpeechImageIndex.open(index)
    if remove is not None:
        held = {source.name for source in opened.sources()}
        name = remove if remove in held else str(Path(remove).resolve())
        typer.echo(f"Removed {name} from {index}: {opened.remove(name if name in held else remove)} rows.")
    _print_sources(opened.sources())
    if check:
        _check(opened)


def _check(index: SpeechImageIndex) -> None:
    damaged = index.check()
    if damaged:
        shown = "\n".join(damaged[:_DAMAGED_SHOWN])
        more = f"\n... and {len(damaged) - _DAMAGED_SHOWN} more" if len(damaged) > _DAMAGED_SHOWN else ""
        raise ValueError(
            f"{len(damaged)} of {len(index)} rows of {index.uri} are damaged. Remove their sources, then index "
            f"them again: {_sources_of(index, set(damaged))}.\n{shown}{more}"
        )
    typer.echo(f"All {len(index)} rows of {index.uri} are as they were written.")


def _sources_of(index: SpeechImageIndex, ids: set[str]) -> str:
    rows = (row for batch in index.rows(("id", "source")) for row in batch.to_pylist())
    return ", ".join(sorted({row["source"] for row in rows if row["id"] in ids}))


def _print_sources(held: Sequence[HeldSource]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("source", overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("still there")
    for source in held:
        style = "yellow" if source.is_there is False else None
        table.add_row(escape(source.name), str(source.rows), _THERE[source.is_there], style=style)
    Console().print(table)
