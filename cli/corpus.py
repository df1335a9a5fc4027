"""`sir corpus`: build corpora and check them."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import app, write_json

if TYPE_CHECKING:
    from datasets import Dataset


_OF_FILES = ("--source", "--embed", "--skip-missing")
CORPUS_OPTIONS = {
    "spoken_shapes": ("--seed",),
    "spoken_shapes_combinations": ("--seed",),
    "spoken_emoji": ("--source", "--seed"),
    "tuxpaint": ("--source", "--language", "--skip-missing", "--seed"),
    "flickr8k_audio": _OF_FILES,
    "spoken_coco": _OF_FILES,
    "speech_coco": _OF_FILES,
    "places_audio": _OF_FILES,
    "localized_narratives": _OF_FILES,
    "columns": (*_OF_FILES, "--column", "--config-name", "--language"),
}
"""The corpora that can be built, and which options each of them takes."""


corpus_app = typer.Typer(help="Build and check corpora of spoken captions.", no_args_is_help=True)
app.add_typer(corpus_app, name="corpus")


@corpus_app.command("check")
def check_corpus(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the corpus.")],
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write what was found to this file.")] = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", help="Also write a page with plots and samples to hear to this file.")
    ] = None,
    headers_only: Annotated[
        bool,
        typer.Option(
            "--headers-only",
            help="Decode nothing: quick, but finds few files that break off, and no recordings that splits share.",
        ),
    ] = False,
    allow_shared_pictures: Annotated[
        bool,
        typer.Option("--allow-shared-pictures", help="Report pictures that two splits share, but do not fail."),
    ] = False,
    num_proc: Annotated[
        int | None, typer.Option(min=1, help="Processes that read the media; default: all processors.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples on the page.")] = 0,
) -> None:
    """Say what a corpus holds; fail on unusable files, and on pictures or recordings that splits share."""
    from ..corpora.check import inspect_corpus
    from ..corpora.check_table import print_check
    from ..corpora.schema import load_corpus

    corpus = load_corpus(directory)
    check = inspect_corpus(
        corpus, decode=not headers_only, allow_shared_pictures=allow_shared_pictures, num_proc=num_proc
    )
    print_check(check.to_dict())
    if json_out:
        write_json(check.to_dict(), json_out)
    if html_out:
        from ..corpora.check_page import write_page

        write_page(check, str(directory), html_out, seed)
    if not check.fit:
        raise ValueError(f"{directory} is not fit for use.\n{check.refusal()}")
    typer.echo(f"{directory} is fit for use.")


def check_corpus_name(name: str) -> None:
    if name not in CORPUS_OPTIONS:
        nearest = get_close_matches(name, CORPUS_OPTIONS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"No corpus is called {name!r}; did you mean {nearest}? Corpora: {', '.join(CORPUS_OPTIONS)}."
        )


def load_split(corpus: str, split: str) -> Dataset:
    from ..corpora.hub import is_hub_id, load_hub_corpus
    from ..corpora.schema import load_corpus

    if is_hub_id(corpus):
        splits = load_hub_corpus(corpus, without_train=split != "train")
    else:
        splits = load_corpus(_corpus_folder(corpus))
    if split not in splits:
        raise ValueError(f"{corpus} has no split {split!r}. Splits: {', '.join(splits)}.")
    return splits[split]


def _corpus_folder(corpus: str) -> Path:
    if Path(corpus).is_dir():
        return Path(corpus)
    if Path(corpus).exists():
        raise ValueError(f"{corpus} is a file; give a folder.")
    if corpus not in CORPUS_OPTIONS:
        nearest = get_close_matches(corpus, CORPUS_OPTIONS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else "."
        raise ValueError(
            f"There is no folder {corpus}, and no corpus of that name{hint} Corpora: {', '.join(CORPUS_OPTIONS)}."
        )
    folder = Path("outputs", corpus, "corpus")
    if not folder.is_dir():
        raise ValueError(f"{corpus} is not built yet. Build it: sir corpus build {corpus} --out {folder}")
    return folder
