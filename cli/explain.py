"""What `sir search --explain` does in an index and without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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


def save_explanations(explanations: Sequence[Explanation], out: Path) -> None:
    """Draw them below each other."""
    from ..retrieval.explanation_picture import draw_explanation, stack

    out.parent.mkdir(parents=True, exist_ok=True)
    stack([draw_explanation(explanation) for explanation in explanations]).save(out)
    typer.echo(f"Explained in {out}")
