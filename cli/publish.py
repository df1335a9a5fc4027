"""`sir publish`, `sir corpus publish` and `sir publish-metric`: what is on the Hub."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import app
from .corpus import corpus_app, load_split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RepoIdOption = Annotated[str, typer.Option("--repo-id", help="Where to, such as org/name.")]
PrivateOption = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="BRANCH", help="A branch to publish to; made if it is not there.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Put together and check, show what would be published, upload nothing.")
]


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder with its evaluation.json.")],
    repo_id: RepoIdOption,
    examples: Annotated[
        str | None,
        typer.Option(
            metavar="CORPUS",
            help="A corpus; the first recording and picture of its test split are published as examples. "
            "Default: the examples of the model, or the corpus that it was measured on.",
        ),
    ] = None,
    gallery: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INDEX", help="An index of pictures or recordings to publish with the model; may be repeated."
        ),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A card of your own in place of the one that is rendered.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence of the weights, as the Hub names it; needed unless --card states it.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Hub id of training data, for the card; may be repeated.")
    ] = None,
    private: PrivateOption = False,
    revision: RevisionOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Publish a model on the Hub, in one commit, once it loads where this package is not installed."""
    from ..hub_cards.publishing import Publication, publish_model, staged

    publication = Publication(
        model, repo_id, _example(model, examples), tuple(gallery or ()), card, license, tuple(dataset or ())
    )
    if not dry_run:
        typer.echo(publish_model(publication, private=private, revision=revision, say=typer.echo))
        return
    with staged(publication) as folder:
        print_files(folder)
        typer.echo("\n" + (folder / "README.md").read_text(encoding="utf-8"))
    typer.echo("Checked. Nothing was uploaded, and the Hub was not asked whether you may.")


@corpus_app.command("publish")
def publish_corpus(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the corpus.")],
    repo_id: RepoIdOption,
    license: Annotated[str, typer.Option(help="Licence of the whole, as the Hub names it.")],
    private: PrivateOption = False,
    revision: RevisionOption = None,
    num_proc: Annotated[
        int | None, typer.Option(min=1, help="Processes that check the media; default: all processors.")
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Publish a corpus on the Hub with its media, if it is fit for use."""
    from ..hub_cards.corpus_publishing import checked_card
    from ..hub_cards.corpus_publishing import publish_corpus as publish_checked

    corpus, card = checked_card(directory, repo_id, license, num_proc, say=lambda line: typer.echo(line, err=True))
    if dry_run:
        typer.echo(f"{card}\nChecked. Nothing was uploaded.")
    else:
        typer.echo(publish_checked(corpus, card, repo_id, private=private, revision=revision))


@app.command("publish-metric")
def publish_metric(repo_id: RepoIdOption, private: PrivateOption = False, dry_run: DryRunOption = False) -> None:
    """Publish the metric as a Space that evaluate.load reads."""
    from ..hub_cards.metric_publishing import check_name, stage_metric
    from ..hub_cards.metric_publishing import publish_metric as publish_staged

    check_name(repo_id)
    with TemporaryDirectory() as place:
        folder = Path(place) / "metric"
        stage_metric(folder)
        if dry_run:
            print_files(folder)
            typer.echo("Nothing was uploaded.")
        else:
            typer.echo(publish_staged(folder, repo_id, private=private))


def print_files(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            typer.echo(f"{path.stat().st_size:>14,}  {path.relative_to(folder).as_posix()}")


def _example(model: Path, corpus: str | None) -> Callable[[], Mapping[str, Any]] | None:
    """What reads the example; None where the model has some already."""
    if corpus is None and (model / "examples").is_dir():
        return None
    return lambda: _first_of_test_split(model, corpus)


def _first_of_test_split(model: Path, corpus: str | None) -> Mapping[str, Any]:
    from ..hub_cards.model_card import read_reports

    corpus = corpus or read_reports(model)["evaluation.json"]["protocol"]["corpus"]
    try:
        return load_split(corpus, "test")[0]
    except ValueError as error:
        raise ValueError(
            f"The example would be the first row of the test split of {corpus}. Name the folder of a corpus, "
            f"--examples CORPUS, or put recording.* and picture.* into {model / 'examples'}. {error}"
        ) from error
