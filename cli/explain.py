"""What `sir search --explain` does in an index and without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..processing.media import PICTURE_SUFFIXES

if TYPE_CHECKING:
    from ..retrieval.explanation import Explanation

ExplainOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PICTURE",
        help="Also draw to this picture why the best result of each query matches: which stretch of the speech made "
        "which part of the picture count.",
    ),
]


def check_explain(out: Path | None) -> None:
    """Refuse a file that no picture can be written to, before anything is computed."""
    if out is None:
        return
    if out.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(
            f"--explain {out} is no name of a picture: let it end in {', '.join(sorted(PICTURE_SUFFIXES))}."
        )
    if out.is_dir():
        raise ValueError(f"--explain {out} is a folder. Give the name of a picture in it.")


def save_explanations(explanations: Sequence[Explanation], out: Path) -> None:
    """Draw them below each other."""
    from ..retrieval.explanation_picture import draw_explanation, stack

    if not explanations:
        typer.echo("Nothing was found, so there is nothing to explain.")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    stack([draw_explanation(explanation) for explanation in explanations]).save(out)
    typer.echo(f"Explained in {out}")
