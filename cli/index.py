"""`sir index`: embed a gallery once, so that it can be searched at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from ..retrieval.index_place import refuse_not_utf8
from .app import BatchSizeOption, ModelArgument, app, load_model, warn
from .corpus import load_split
from .search_index import require_lancedb

if TYPE_CHECKING:
    from ..retrieval.sources import Modality, Source
    from ..retrieval.update import UpdateReport

_UNREADABLE_SHOWN = 20
_INTERRUPTED = 130  # the exit code of what Ctrl-C ended


@app.command()
def index(
    model: ModelArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A folder tree of pictures or recordings, a corpus, or a corpus' Hub id."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", "--uri", help="Folder of the index, or an address that LanceDB opens (s3://..., db://...)."
        ),
    ],
    split: Annotated[str, typer.Option(help="Which split of a corpus.")] = "test",
    modality: Annotated[
        str | None,
        typer.Option(
            help="image: pictures, found by speech; speech: recordings, found by pictures. Without it what the folder "
            "holds; of a corpus its pictures.",
        ),
    ] = None,
    states: Annotated[
        bool, typer.Option(help="Store token states, so that re-ranking need not read the files again.")
    ] = True,
    ann: Annotated[bool, typer.Option(help="Then build an approximate index, for large galleries.")] = False,
    batch_size: BatchSizeOption = 64,
    num_workers: Annotated[int, typer.Option(min=1, help="Threads that decode files.")] = 2,
) -> None:
    """Build an index of pictures or recordings, or bring it up to date with its source.

    Only new and changed files are encoded. Stop it whenever you like: the next run goes on where it was.
    """
    if modality not in ("image", "speech", None):
        raise ValueError(f"--modality must be image or speech, not {modality!r}.")
    require_lancedb()
    refuse_not_utf8(out)
    items = _source(source, split, modality)
    if not len(items):  # reads it: what cannot be indexed must not leave an empty index
        raise ValueError(f"{items.name} holds nothing to index.")
    from ..retrieval.ann import ROWS_NEEDED
    from ..retrieval.index import SpeechImageIndex
    from ..retrieval.sources import PLURAL

    if left_out := items.left_out():
        counts = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common())
        warn(f"Left out, for they are no {PLURAL[items.modality]} that can be read: {counts}")
    loaded, processor = load_model(model)
    built = SpeechImageIndex.create(out, loaded, processor, items.modality, keep_states=states)
    try:
        with _ending_at_the_second_interrupt():
            report = built.update_from(items, batch_size=batch_size, num_workers=num_workers, progress=True)
    except KeyboardInterrupt:
        typer.echo(f"Stopped. {out} keeps {len(built)} rows; the same command goes on from there.", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    _print_report(report, out, len(built))
    for held in built.sources():
        if held.is_there is False:
            command = f"sir sources {quote(out)} --remove {quote(held.name)}"
            warn(f"{held.name}, of which {out} holds {held.rows} rows, is gone: {command}")
    if not report.added + report.changed + report.unchanged:
        raise ValueError(f"Nothing of {source} could be indexed.")
    if ann and len(built) < ROWS_NEEDED:
        typer.echo(f"No approximate index: it needs {ROWS_NEEDED} rows, and fewer are searched exactly as fast.")
    elif ann:
        typer.echo(f"Building the approximate index of {len(built)} rows")
        built.build_ann()


@contextmanager
def _ending_at_the_second_interrupt() -> Iterator[None]:
    """The first lets what is encoded be written; the second kills the process, which no index minds."""

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        typer.echo("Stopping: what is encoded is written first. Ctrl-C again ends at once.", err=True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _source(source: str, split: str, modality: Modality | None) -> Source:
    from ..retrieval.sources import CorpusSource, FolderSource, modality_of

    folder = Path(source)
    if folder.is_dir() and not (folder / "dataset_dict.json").is_file():
        return FolderSource(folder, modality or modality_of(folder))
    rows = load_split(source, split)
    place = str(folder.resolve()) if folder.is_dir() else source
    return CorpusSource(rows, f"{place}#{split}", modality or "image")


def _print_report(report: UpdateReport, out: str, rows: int) -> None:
    for item in report.unreadable[:_UNREADABLE_SHOWN]:
        warn(f"Not indexed: {item.reason if item.id in item.reason else f'{item.id}: {item.reason}'}")
    if len(report.unreadable) > _UNREADABLE_SHOWN:
        warn(f"... and {len(report.unreadable) - _UNREADABLE_SHOWN} more")
    encoded = report.added + report.changed
    typer.echo(
        f"{out}: {rows} rows ({report.added} added, {report.changed} changed, {report.unchanged} unchanged, "
        f"{report.deleted} deleted, {len(report.unreadable)} unreadable) in {report.seconds:.1f} s, "
        f"{encoded / max(report.seconds, 1e-9):.1f} a second"
    )
