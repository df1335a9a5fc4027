"""`sir export`: graphs for ONNX Runtime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .app import ModelArgument, app, load_model


@app.command()
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to make.")],
    int8: Annotated[bool, typer.Option("--int8", help="Linear layers in int8: smaller, on a CPU faster.")] = False,
) -> None:
    """Export to ONNX: both encoders and the matching head, with what feeds them, to serve without PyTorch."""
    if out.exists():
        raise ValueError(f"{out} exists already. Name another folder, or remove it.")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"An export needs {', '.join(missing)}. Install it: pip install 'speech-image-retrieval[export]'"
        )
    from ..export.onnx_folder import export_onnx

    loaded = load_model(model)
    precision = "linear layers in int8" if int8 else "float32; --int8 makes it smaller"
    typer.echo(f"Three graphs, {precision}. Each takes a minute or so.")
    export_onnx(*loaded, out, int8=int8, say=lambda name: typer.echo(f"Exporting {name}"))
    for path in sorted(out.glob("*.onnx*")):
        typer.echo(f"{path.stat().st_size:>14,}  {path.name}")
