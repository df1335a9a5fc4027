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


UNUSABLE_LISTED = 10


corpus_app = typer.Typer(help="Build and check corpora of spoken captions.", no_args_is_help=True)
app.add_typer(corpus_app, name="corpus")


@corpus_app.command("check")
def check_corpus(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the corpus.")],
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the counts to this file.")] = None,
    allow_shared_pictures: Annotated[
        bool,
        typer.Option("--allow-shared-pictures", help="Report pictures that two splits share, but do not fail."),
    ] = False,
) -> None:
    """Count what a corpus holds; fail on unusable files, and on pictures that two splits share."""
    from ..corpora.media_check import print_summary, summary, unusable_rows
    from ..corpora.schema import load_corpus

    corpus = load_corpus(directory)
    counts = summary(corpus)
    print_summary(counts)
    if json_out:
        write_json(counts, json_out)
    problems = [
        f"{split}, {corpus[split][row]['caption_id']}: {problem}"
        for split, split_counts in counts["splits"].items()
        if split_counts["unusable"]
        for row, problem in unusable_rows(corpus[split]).items()
    ]
    shown = problems[:UNUSABLE_LISTED]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more without a usable picture or recording")
    shared = [
        f"{' and '.join(pair['splits'])} share {pair['image_ids']} image ids and {pair['picture_contents']} pictures: "
        "what is measured on one was seen in the other"
        for pair in counts["shared"]
        if pair["image_ids"] or pair["picture_contents"]
    ]
    if allow_shared_pictures:
        for line in shared:
            typer.echo(line)
    else:
        shown += shared
    if shown:
        raise ValueError("\n".join([f"{directory} is not fit for use.", *shown]))


def check_corpus_name(name: str) -> None:
    if name not in CORPUS_OPTIONS:
        nearest = get_close_matches(name, CORPUS_OPTIONS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"No corpus is called {name!r}; did you mean {nearest}? Corpora: {', '.join(CORPUS_OPTIONS)}."
        )


def load_split(corpus: str, split: str) -> Dataset:
    from ..corpora.schema import load_corpus

    splits = load_corpus(_corpus_folder(corpus))
    if split not in splits:
        raise ValueError(f"{corpus} has no split {split!r}. Splits: {', '.join(splits)}.")
    return splits[split]


def _corpus_folder(corpus: str) -> Path:
    if Path(corpus).is_dir():
        return Path(corpus)
    if Path(corpus).name != corpus:
        raise ValueError(f"There is no folder {corpus}.")
    check_corpus_name(corpus)
    folder = Path("outputs", corpus, "corpus")
    if not folder.is_dir():
        raise ValueError(f"{corpus} is not built yet. Build it: sir corpus build {corpus} --out {folder}")
    return folder
