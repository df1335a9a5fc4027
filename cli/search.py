"""`sir search`: say what you want to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..processing.media import PICTURE_SUFFIXES, load_image
from ..retrieval.index_place import is_index
from ..retrieval.sources import FolderSource, Item
from .app import (
    BatchSizeOption,
    RerankOption,
    ScoreRuleOption,
    app,
    check_is_file,
    check_picture_name,
    load_model,
    warn,
    write_json,
)
from .corpus import load_split
from .explain import ExplainOption, save_explanations
from .microphone import MAX_SECONDS, record_speech
from .search_index import search_index

if TYPE_CHECKING:
    from datasets import Dataset

    from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
    from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
    from ..retrieval.explanation import Explanation
    from ..retrieval.search import SearchResult


_SEARCHED = "An index; or a model (a folder or a Hub id), then a folder of pictures or a corpus: its test split."


@app.command()
def search(
    model: Annotated[str, typer.Argument(metavar="INDEX | MODEL IMAGES", help=_SEARCHED)],
    images_and_queries: Annotated[
        list[Path] | None,
        typer.Argument(metavar="QUERY...", help="Recordings; pictures, where an index holds recordings."),
    ] = None,
    mic: Annotated[
        bool, typer.Option("--mic", help=f"Query with the microphone, until you press Enter or {MAX_SECONDS:g} s.")
    ] = False,
    caption: Annotated[
        list[str] | None,
        typer.Option(help="Query with this caption_id of the corpus' test split, or `random`; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random captions.")] = 0,
    top_k: Annotated[int, typer.Option(min=1, help="Results for each query.")] = 5,
    rerank_top_k: RerankOption = 32,
    score_rule: ScoreRuleOption = "sim",
    batch_size: BatchSizeOption = 64,
    where: Annotated[
        str | None,
        typer.Option(
            help="Only rows of an index that this SQL filter selects, like \"language = 'en'\". Columns: "
            "id, name, source, path, text, speaker, language."
        ),
    ] = None,
    model_of_index: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Where the model of an index is now.")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the results here.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also draw the results to this picture.")] = None,
    explain: ExplainOption = None,
) -> None:
    """Say what you want to see: rank pictures by how well they match spoken queries.

    Search an index (sir index) by recordings, or by pictures if it holds recordings: sir search INDEX QUERY.wav
    Or search a folder or a corpus once, without one: sir search MODEL IMAGES QUERY.wav
    """
    check_picture_name("--sheet", sheet)
    check_picture_name("--explain", explain)
    images_and_queries = images_and_queries or []
    if is_index(model):
        if caption:
            raise ValueError("--caption needs MODEL and a corpus. Search an index by recordings or pictures.")
        search_index(
            model,
            images_and_queries,
            mic=mic,
            model=model_of_index,
            top_k=top_k,
            rerank_top_k=rerank_top_k,
            score_rule=score_rule,
            where=where,
            json_out=json_out,
            sheet=sheet,
            explain=explain,
        )
        return
    for option, given in {"--where": where, "--model": model_of_index}.items():
        if given:
            raise ValueError(
                f"{option} is for an index, and {model} is none. Build one: sir index MODEL SOURCE --out DIR"
            )
    if not images_and_queries:
        raise ValueError(
            f"There is no index {model}. To search pictures with a model: sir search MODEL IMAGES QUERY.wav"
        )
    images, *recordings = images_and_queries
    if not images.is_dir() and not (Path(model) / "config.json").is_file():
        raise ValueError(
            f"There is no index {model}. Search one: sir search INDEX QUERY.wav; or search a folder of pictures or a "
            f"corpus with a model: sir search MODEL IMAGES QUERY.wav, but {images} is no folder."
        )
    rows = load_split(str(images), "test") if (images / "dataset_dict.json").is_file() else None
    if caption and rows is None:
        raise ValueError(f"--caption needs a corpus, and {images} is a folder of pictures. Give a recording instead.")
    if not (recordings or caption or mic):
        raise ValueError("There is nothing to search for: give recordings, --mic, or --caption with a corpus.")
    queries = [_recording_query(path) for path in recordings]
    gallery = _folder_gallery(images) if rows is None else _corpus_gallery(rows)
    if caption:
        queries += _caption_queries(rows, gallery, caption, seed)
    if mic:
        queries.append(_Query(record_speech(), "microphone"))
    from ..retrieval.search import search_images
    from ..retrieval.spoken_queries import read_spoken_queries

    loaded, processor = load_model(model)
    query_names = [query.name for query in queries]
    knows_answer = any(query.right is not None for query in queries)
    found = search_images(
        loaded,
        processor,
        read_spoken_queries([query.audio for query in queries], query_names, processor.sampling_rate),
        gallery.images,
        top_k=len(gallery.images) if knows_answer else top_k,
        rerank_top_k=rerank_top_k,
        score_rule=score_rule,
        batch_size=batch_size,
        query_names=query_names,
        image_names=gallery.names,
        progress=True,
    )
    for query, results in zip(queries, found, strict=True):
        _print_results(query, results, gallery, top_k)
    if json_out:
        answers = [_as_json(*pair, gallery, top_k) for pair in zip(queries, found, strict=True)]
        write_json({"model": model, "images": str(images), "queries": answers}, json_out)
    if sheet:
        _draw_sheet(queries, found, gallery, top_k, processor.sampling_rate, sheet)
        typer.echo(f"Drawn to {sheet}")
    if explain:
        best = [(query, results[0].image) for query, results in zip(queries, found, strict=True)]
        save_explanations([_explanation(loaded, processor, *pair, gallery) for pair in best], explain)


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


def _folder_gallery(folder: Path) -> _Gallery:
    source = FolderSource(folder, "image")
    len(source)  # refuses a folder without pictures
    items = [item for item in source if _is_readable(item)]
    if not items:
        raise ValueError(f"None of the pictures in {folder} can be read.")
    names = [item.name for item in items]
    return _Gallery([item.medium for item in items], names, names)


def _is_readable(picture: Item) -> bool:
    try:
        load_image(picture.medium)
    except (ValueError, OSError) as error:
        warn(f"Left out: {error}")
        return False
    return True


def _corpus_gallery(rows: Dataset) -> _Gallery:
    from ..evaluation import distinct_images

    image_ids, texts = rows["image_id"][:], rows["text"][:]
    first_rows, _ = distinct_images(image_ids)
    return _Gallery(
        images=rows.select_columns(["image"]).select(first_rows)["image"],
        names=[image_ids[row] for row in first_rows],
        captions=[texts[row] or image_ids[row] for row in first_rows],
    )


def _recording_query(path: Path) -> _Query:
    check_is_file(path)
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise ValueError(
            f"{path} is a picture; queries are recordings. How well pictures find their descriptions, `sir evaluate` "
            "measures."
        )
    return _Query(path, str(path), path.name)


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


def _explanation(
    model: SpeechImageRetrievalModel,
    processor: SpeechImageRetrievalProcessor,
    query: _Query,
    image: int,
    gallery: _Gallery,
) -> Explanation:
    from ..retrieval.explain_pair import explain_pair

    title, caption = query.text or query.name, gallery.captions[image]
    return explain_pair(model, processor, query.audio, gallery.images[image], title=title, caption=caption)


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


def _as_json(query: _Query, results: Sequence[SearchResult], gallery: _Gallery, top_k: int) -> dict[str, Any]:
    rows = [{"name": gallery.names[result.image], **asdict(result)} for result in results[:top_k]]
    rank = {} if query.right is None else {"rank_of_right": _rank_of_right(query, results)}
    return {"query": query.name, **rank, "results": rows}


def _draw_sheet(
    queries: Sequence[_Query],
    found: Sequence[Sequence[SearchResult]],
    gallery: _Gallery,
    top_k: int,
    sampling_rate: int,
    out: Path,
) -> None:
    from ..processing.media import load_speech
    from ..retrieval.contact_sheet import SheetQuery, SheetResult, draw_contact_sheet

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
