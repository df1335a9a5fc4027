"""`sir corpus`: build corpora and check them."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import app, write_json

if TYPE_CHECKING:
    from datasets import Dataset


CORPUS_OPTIONS = {
    "spoken_shapes": (),
    "spoken_emoji": ("--source",),
    "tuxpaint": ("--source", "--language", "--skip-missing"),
}


UNUSABLE_LISTED = 10


corpus_app = typer.Typer(help="Build and check corpora of spoken captions.", no_args_is_help=True)
app.add_typer(corpus_app, name="corpus")


@corpus_app.command("build")
def build_corpus(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(CORPUS_OPTIONS)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the corpus; an older corpus there is replaced.")],
    source: Annotated[
        Path | None,
        typer.Option(
            help="tuxpaint: folder of stamps, if not the installed one; "
            "spoken_emoji: folder with the emoji packages in node_modules, if not the current one."
        ),
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="tuxpaint: keep this BCP-47 language; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the scenes and the splits.")] = 0,
    num_proc: Annotated[int | None, typer.Option(min=1, help="Processes that write the rows.")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="tuxpaint: leave out captions without a usable file.")
    ] = False,
) -> None:
    """Build a corpus and say what it holds."""
    _check_corpus_name(name)
    given = {"--source": source, "--language": language, "--skip-missing": skip_missing}
    foreign = [option for option, value in given.items() if value and option not in CORPUS_OPTIONS[name]]
    if foreign:
        takes = ", ".join((*CORPUS_OPTIONS[name], "--seed", "--num-proc"))
        raise ValueError(f"The corpus {name} does not take {', '.join(foreign)}. Besides --out it takes {takes}.")
    from ..corpora.media_check import print_summary, summary

    if name == "spoken_shapes":
        from ..corpora.spoken_shapes import build_spoken_shapes

        corpus = build_spoken_shapes(out, seed=seed, num_proc=num_proc)
    elif name == "spoken_emoji":
        from ..corpora.spoken_emoji import build_spoken_emoji

        corpus = build_spoken_emoji(source, out, seed=seed, num_proc=num_proc)
    else:
        from ..corpora.tuxpaint import build_tuxpaint

        corpus = build_tuxpaint(
            source, out, languages=language or None, seed=seed, skip_missing=skip_missing, num_proc=num_proc
        )
    print_summary(summary(corpus))
    typer.echo(f"The corpus {name} is in {out}")


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


def _check_corpus_name(name: str) -> None:
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
    _check_corpus_name(corpus)
    folder = Path("outputs", corpus, "corpus")
    if not folder.is_dir():
        raise ValueError(f"{corpus} is not built yet. Build it: sir corpus build {corpus} --out {folder}")
    return folder
