"""`sir corpus build`: makes a corpus of files on disk, of a dataset, or out of nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .corpus import CORPUS_OPTIONS, check_corpus_name, corpus_app

if TYPE_CHECKING:
    from ..corpora.building import Reading


@corpus_app.command("build")
def build_corpus(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(CORPUS_OPTIONS)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the corpus; an older corpus there is replaced.")],
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder that holds the files, in any layout that is in use; may be repeated if they lie apart. "
            "columns and flickr8k_audio also take a Hub id, columns a manifest (CSV, TSV, JSONL, Parquet)."
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="columns: image=PHOTO takes the column PHOTO of the data for image; may be repeated."),
    ] = None,
    config_name: Annotated[str | None, typer.Option(help="columns: configuration of a Hub dataset.")] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            help="tuxpaint: keep this BCP-47 language; may be repeated. columns: the language where none is stated."
        ),
    ] = None,
    embed: Annotated[bool, typer.Option("--embed", help="Copy the media into the corpus.")] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out captions without a usable file, and report them.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn: scenes, splits.")] = 0,
    num_proc: Annotated[int | None, typer.Option(min=1, help="Processes; default: all processors.")] = None,
) -> None:
    """Build a corpus and say what it holds. Interrupted, the same command goes on where it was."""
    check_corpus_name(name)
    given = {
        "--source": source,
        "--column": column,
        "--config-name": config_name,
        "--language": language,
        "--embed": embed,
        "--skip-missing": skip_missing,
        "--seed": seed,
    }
    foreign = [option for option, value in given.items() if value and option not in CORPUS_OPTIONS[name]]
    if foreign:
        takes = ", ".join((*CORPUS_OPTIONS[name], "--num-proc"))
        raise ValueError(f"The corpus {name} does not take {', '.join(foreign)}. Besides --out it takes {takes}.")
    if "--embed" in CORPUS_OPTIONS[name]:
        _build_from_files(name, source or [], column, config_name, language, out, embed, skip_missing, num_proc)
    else:
        _generate(name, source or [], language, out, skip_missing, seed, num_proc)
    typer.echo(f"The corpus {name} is in {out}")


def _build_from_files(
    name: str,
    sources: list[str],
    column: list[str] | None,
    config_name: str | None,
    language: list[str] | None,
    out: Path,
    embed: bool,
    skip_missing: bool,
    num_proc: int | None,
) -> None:
    from ..corpora.building import build_from_files

    if not sources:
        raise ValueError(f"The corpus {name} is built from files: say where they are, with --source.")
    if language and len(language) > 1:
        raise ValueError(f"The corpus {name} takes one --language, of the rows that state none.")
    if name == "columns":
        from ..corpora.columns import read_columns

        reading = read_columns(
            sources, _mapping(column or []), config_name=config_name, language=language[0] if language else None
        )
    else:
        reading = _read(name, sources)
    built = build_from_files(reading, out, embed=embed, skip_missing=skip_missing, num_proc=num_proc)
    _print_report(built.report)
    typer.echo(f"To look at it closely: sir corpus check {out}")


def _read(name: str, sources: Sequence[str]) -> Reading:
    if name == "flickr8k_audio":
        from ..corpora.flickr8k_audio import read_flickr8k_audio
        from ..corpora.flickr8k_mirror import is_mirror, read_flickr8k_mirror

        if len(sources) == 1 and is_mirror(sources[0]):
            return read_flickr8k_mirror(sources[0])
        return read_flickr8k_audio([Path(source) for source in sources])
    folders = [Path(source) for source in sources]
    if name == "spoken_coco":
        from ..corpora.spoken_coco import read_spoken_coco

        return read_spoken_coco(folders)
    if name == "speech_coco":
        from ..corpora.speech_coco import read_speech_coco

        return read_speech_coco(folders)
    if name == "places_audio":
        from ..corpora.places_audio import read_places_audio

        return read_places_audio(folders)
    from ..corpora.localized_narratives import read_localized_narratives

    return read_localized_narratives(folders)


def _generate(
    name: str,
    sources: list[str],
    language: list[str] | None,
    out: Path,
    skip_missing: bool,
    seed: int,
    num_proc: int | None,
) -> None:
    from ..corpora.check import inspect_corpus
    from ..corpora.check_table import print_check

    if len(sources) > 1:
        raise ValueError(f"The corpus {name} takes one --source.")
    source = sources[0] if sources else None
    if name == "spoken_shapes":
        from ..corpora.spoken_shapes import build_spoken_shapes

        corpus = build_spoken_shapes(out, seed=seed, num_proc=num_proc)
    elif name == "spoken_shapes_combinations":
        from ..corpora.spoken_shapes_combinations import build_spoken_shapes_combinations

        corpus = build_spoken_shapes_combinations(out, seed=seed, num_proc=num_proc)
    elif name == "spoken_emoji":
        from ..corpora.spoken_emoji import build_spoken_emoji

        corpus = build_spoken_emoji(source, out, seed=seed, num_proc=num_proc)
    else:
        from ..corpora.tuxpaint import build_tuxpaint

        corpus = build_tuxpaint(
            source, out, languages=language, seed=seed, skip_missing=skip_missing, num_proc=num_proc
        )
    check = inspect_corpus(corpus, decode=False, allow_shared_pictures=True, num_proc=num_proc)
    print_check(check.to_dict())


def _mapping(pairs: Sequence[str]) -> dict[str, str]:
    mapping = {}
    for pair in pairs:
        name, separator, column = pair.partition("=")
        if not separator or not column:
            raise ValueError(f"{pair!r} maps nothing; write --column image=PHOTO for the column PHOTO of the data.")
        mapping[name.strip()] = column.strip()
    return mapping


def _print_report(report: dict[str, Any]) -> None:
    from ..corpora.findings import Findings

    for note in report["notes"]:
        typer.echo(note)
    for part, title in (("read", "Found in the source"), ("left_out", "Left out"), ("kept", "Worth knowing")):
        findings = Findings.from_dict(report[part])
        for kind in findings.counts:
            typer.echo(f"{title}: {findings.listed(kind)}")
    typer.echo("Captions: " + ", ".join(f"{split} {rows:,}" for split, rows in report["rows"].items()))
