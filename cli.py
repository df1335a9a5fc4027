"""The `sir` command. Heavy libraries are imported inside the commands, so that `sir --help` answers at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from datasets import Dataset

    from .modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
    from .processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
    from .retrieval.search import SearchResult

CORPUS_OPTIONS = {
    "spoken_shapes": (),
    "spoken_emoji": ("--source",),
    "tuxpaint": ("--source", "--language", "--skip-missing"),
}
"""The corpora that can be built, and which options only some of them take."""

UNUSABLE_LISTED = 10
PICTURE_SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:  # what users can put right; anything else is a bug and shows its trace
            typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    help="Find pictures by voice: build corpora, measure models, search.",
    no_args_is_help=True,
    add_completion=False,
)
corpus_app = typer.Typer(help="Build and check corpora of spoken captions.", no_args_is_help=True)
app.add_typer(corpus_app, name="corpus")

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or a Hub id.")]
RerankOption = Annotated[
    int, typer.Option(min=0, help="Most similar candidates that the multimodal encoder re-ranks; 0 for none.")
]
ScoreRuleOption = Annotated[
    str, typer.Option(help="What orders the re-ranked: sim, the matching score; sim+sic, plus similarity.")
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Clips or pictures encoded at a time.")]


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
    from .corpora.media_check import print_summary, summary

    if name == "spoken_shapes":
        from .corpora.spoken_shapes import build_spoken_shapes

        corpus = build_spoken_shapes(out, seed=seed, num_proc=num_proc)
    elif name == "spoken_emoji":
        from .corpora.spoken_emoji import build_spoken_emoji

        corpus = build_spoken_emoji(source, out, seed=seed, num_proc=num_proc)
    else:
        from .corpora.tuxpaint import build_tuxpaint

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
    from .corpora.media_check import print_summary, summary, unusable_rows
    from .corpora.schema import load_corpus

    corpus = load_corpus(directory)
    counts = summary(corpus)
    print_summary(counts)
    if json_out:
        _write_json(counts, json_out)
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


@app.command()
def evaluate(
    model: ModelArgument,
    corpus: Annotated[str, typer.Option(help="Folder of a corpus, or the name of one in outputs/NAME/corpus.")],
    split: Annotated[str, typer.Option(help="train, validation, test or another that the corpus has.")] = "test",
    rerank_top_k: RerankOption = 32,
    score_rule: ScoreRuleOption = "sim",
    batch_size: BatchSizeOption = 64,
    language: Annotated[str | None, typer.Option(help="Only captions in this BCP-47 language.")] = None,
    by: Annotated[
        str | None, typer.Option(help="Also give the figures of spoken queries by `language` or by `speaker`.")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the report to this file.")] = None,
) -> None:
    """Measure retrieval in both directions, before and after re-ranking."""
    if by not in (None, "language", "speaker"):
        raise ValueError(f"--by takes language or speaker, not {by!r}.")
    rows = _load_split(corpus, split)
    rows = rows if language is None else _in_language(rows, language)
    from .evaluation import evaluate_retrieval, format_report

    loaded, processor = _load_model(model)
    report = evaluate_retrieval(
        loaded,
        processor,
        rows,
        corpus=corpus,
        split=split,
        rerank_top_k=rerank_top_k,
        score_rule=score_rule,
        batch_size=batch_size,
        group_by=by,
        progress=True,
    )
    if language is not None:
        report["protocol"]["language"] = language
    typer.echo(format_report(report))
    if json_out:
        _write_json(report, json_out)


@app.command()
def search(
    model: ModelArgument,
    images: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="A folder of pictures, or a corpus: the pictures of its test split."),
    ],
    recordings: Annotated[
        list[Path] | None, typer.Argument(metavar="[QUERY.wav]...", help="Spoken queries.", show_default=False)
    ] = None,
    caption: Annotated[
        list[str] | None,
        typer.Option(help="Query with this caption_id of the corpus' test split, or `random`; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random captions.")] = 0,
    top_k: Annotated[int, typer.Option(min=1, help="Results for each query.")] = 5,
    rerank_top_k: RerankOption = 32,
    score_rule: ScoreRuleOption = "sim",
    batch_size: BatchSizeOption = 64,
    sheet: Annotated[Path | None, typer.Option(help="Also draw the results to this picture.")] = None,
) -> None:
    """Say what you want to see: rank pictures by how well they match spoken queries."""
    rows = _load_split(str(images), "test") if (images / "dataset_dict.json").is_file() else None
    gallery = _folder_gallery(images) if rows is None else _corpus_gallery(rows)
    queries = [_recording_query(path) for path in recordings or ()]
    if caption:
        if rows is None:
            raise ValueError(
                f"--caption needs a corpus, and {images} is a folder of pictures. Give a recording instead."
            )
        queries += _caption_queries(rows, gallery, caption, seed)
    if not queries:
        raise ValueError("There is nothing to search for: give recordings, or --caption with a corpus.")
    from .retrieval.search import search_images

    loaded, processor = _load_model(model)
    knows_answer = any(query.right is not None for query in queries)
    found = search_images(
        loaded,
        processor,
        [query.audio for query in queries],
        gallery.images,
        top_k=len(gallery.images) if knows_answer else top_k,
        rerank_top_k=rerank_top_k,
        score_rule=score_rule,
        batch_size=batch_size,
        query_names=[query.name for query in queries],
        image_names=gallery.names,
        progress=True,
    )
    for query, results in zip(queries, found, strict=True):
        _print_results(query, results, gallery, top_k)
    if sheet:
        _draw_sheet(queries, found, gallery, top_k, processor.sampling_rate, sheet)
        typer.echo(f"Drawn to {sheet}")


class _Gallery(NamedTuple):
    images: Sequence[Any]
    names: Sequence[str]
    captions: Sequence[str]


class _Query(NamedTuple):
    audio: Any
    name: str
    text: str | None = None
    note: str = ""
    right: int | None = None


def _check_corpus_name(name: str) -> None:
    if name not in CORPUS_OPTIONS:
        nearest = get_close_matches(name, CORPUS_OPTIONS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"No corpus is called {name!r}; did you mean {nearest}? Corpora: {', '.join(CORPUS_OPTIONS)}."
        )


def _load_split(corpus: str, split: str) -> Dataset:
    from .corpora.schema import load_corpus

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


def _in_language(rows: Dataset, language: str) -> Dataset:
    tags = rows["language"][:]
    kept = [row for row, tag in enumerate(tags) if tag and tag.casefold() == language.casefold()]
    if not kept:
        spoken = ", ".join(sorted({tag for tag in tags if tag})) or "none is stated"
        raise ValueError(f"No caption of this split is in the language {language!r}. Languages: {spoken}.")
    return rows.select(kept)


def _load_model(name: str) -> tuple[SpeechImageRetrievalModel, SpeechImageRetrievalProcessor]:
    import torch
    from transformers import PreTrainedConfig

    from .modeling.configuration_speech_image_retrieval import SpeechImageRetrievalConfig
    from .modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
    from .processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor

    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(f"{name} holds no model: there is no config.json in it.")
    try:
        model_type = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
        if model_type != SpeechImageRetrievalConfig.model_type:
            raise ValueError(
                f"{name} is a model of type {model_type!r}, not {SpeechImageRetrievalConfig.model_type!r}."
            )
        model, loading = SpeechImageRetrievalModel.from_pretrained(name, output_loading_info=True)
        processor = SpeechImageRetrievalProcessor.from_pretrained(name)
    except OSError as error:
        raise ValueError(f"The model {name} cannot be loaded: {str(error).splitlines()[0]}") from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(f"{name} lacks {len(missing)} of the model's weights, {missing[0]} first.")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.to(device), processor


def _folder_gallery(folder: Path) -> _Gallery:
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"{folder} is no corpus and holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}).")
    names = [path.relative_to(folder).as_posix() for path in paths]
    return _Gallery(paths, names, names)


def _corpus_gallery(rows: Dataset) -> _Gallery:
    from .evaluation import distinct_images

    image_ids, texts = rows["image_id"][:], rows["text"][:]
    first_rows, _ = distinct_images(image_ids)
    return _Gallery(
        images=rows.select_columns(["image"]).select(first_rows)["image"],
        names=[image_ids[row] for row in first_rows],
        captions=[texts[row] or image_ids[row] for row in first_rows],
    )


def _recording_query(path: Path) -> _Query:
    if not path.is_file():
        raise ValueError(f"There is no recording {path}.")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise ValueError(
            f"{path} is a picture; queries are recordings. How well pictures find their descriptions, `sir evaluate` "
            "measures."
        )
    return _Query(path, path.name)


def _caption_queries(rows: Dataset, gallery: _Gallery, captions: Sequence[str], seed: int) -> list[_Query]:
    from random import Random

    row_of = {caption_id: row for row, caption_id in enumerate(rows["caption_id"])}
    drawn = [caption_id for caption_id in row_of if caption_id not in captions]
    Random(seed).shuffle(drawn)
    chosen = []
    for caption_id in captions:
        if caption_id == "random":
            if not drawn:
                raise ValueError(f"The test split has only {len(row_of)} captions to draw from.")
            caption_id = drawn.pop()
        if caption_id not in row_of:
            nearest = get_close_matches(caption_id, row_of, n=1, cutoff=0.0)[0]
            raise ValueError(f"The test split has no caption {caption_id!r}; the nearest is {nearest!r}.")
        chosen.append(caption_id)
    return [_caption_query(rows[row_of[caption_id]], gallery) for caption_id in chosen]


def _caption_query(row: dict[str, Any], gallery: _Gallery) -> _Query:
    right = gallery.names.index(row["image_id"])
    return _Query(row["audio"], row["caption_id"], row["text"], row["speaker"] or "", right)


def _rank_of_right(query: _Query, results: Sequence[SearchResult]) -> int | None:
    return next((rank for rank, result in enumerate(results, start=1) if result.image == query.right), None)


def _print_results(query: _Query, results: Sequence[SearchResult], gallery: _Gallery, top_k: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(query.text or query.name), title_justify="left")
    for column in ("rank", "match", "similarity", "coarse rank"):
        table.add_column(column, justify="right")
    table.add_column("picture", overflow="fold")
    for rank, result in enumerate(results[:top_k], start=1):
        match = "" if result.matching_score is None else f"{result.matching_score:+.2f}"
        table.add_row(
            str(rank),
            match,
            f"{result.coarse_score:.3f}",
            str(result.coarse_rank),
            escape(gallery.captions[result.image]),
            style="bold green" if result.image == query.right else None,
        )
    console = Console()
    console.print(table)
    if query.right is not None:
        rank = _rank_of_right(query, results)
        console.print(f"The right picture is at rank {rank} of {len(gallery.images)}.", highlight=False)


def _draw_sheet(
    queries: Sequence[_Query],
    found: Sequence[Sequence[SearchResult]],
    gallery: _Gallery,
    top_k: int,
    sampling_rate: int,
    out: Path,
) -> None:
    from .processing.media import load_image, load_speech
    from .retrieval.contact_sheet import SheetQuery, SheetResult, draw_contact_sheet

    def row(query: _Query, results: Sequence[SearchResult]) -> SheetQuery:
        shown = [
            SheetResult(
                load_image(gallery.images[result.image]),
                gallery.captions[result.image],
                result.coarse_score,
                result.coarse_rank,
                result.matching_score,
                right=result.image == query.right,
            )
            for result in results[:top_k]
        ]
        place = "" if query.right is None else f"right picture at rank {_rank_of_right(query, results)}"
        note = ", ".join(filter(None, (query.note, place)))
        samples = load_speech(query.audio, None, sampling_rate)
        return SheetQuery(query.text or query.name, samples, sampling_rate, shown, note)

    out.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet([row(query, results) for query, results in zip(queries, found, strict=True)]).save(out)


def _write_json(content: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
