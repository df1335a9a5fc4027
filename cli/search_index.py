"""`sir search INDEX`: search an index that `sir index` built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import typer

from .app import check_is_file, load_model, write_json
from .explain import save_explanations
from .microphone import record_speech

if TYPE_CHECKING:
    import numpy as np

    from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
    from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
    from ..retrieval.index import SpeechImageIndex
    from ..retrieval.index_search import Found
    from ..retrieval.index_table import IndexInfo
    from ..retrieval.sources import Modality


def require_lancedb() -> None:
    if find_spec("lancedb") is None:
        raise ValueError("An index needs LanceDB. Install it: pip install 'speech-image-retrieval[index]'")


def load_model_of(
    uri: str, info: IndexInfo, moved_to: str | None
) -> tuple[SpeechImageRetrievalModel, SpeechImageRetrievalProcessor]:
    """The model that an index was made with."""
    if moved_to is not None:
        return load_model(moved_to)
    try:
        return load_model(info.model_name)
    except ValueError as error:
        raise ValueError(
            f"{error} The index {uri} was made with this model. If it is somewhere else now, say where: --model MODEL"
        ) from error


def search_index(
    uri: str,
    files: Sequence[Path],
    *,
    mic: bool,
    model: str | None,
    top_k: int,
    rerank_top_k: int,
    score_rule: str,
    where: str | None,
    json_out: Path | None,
    sheet: Path | None,
    explain: Path | None,
) -> None:
    require_lancedb()
    from ..retrieval.index import SpeechImageIndex
    from ..retrieval.sources import PLURAL, SUFFIXES

    info = SpeechImageIndex.open(uri).info
    asked = "speech" if info.modality == "image" else "image"
    if not files and not mic:
        raise ValueError(f"There is nothing to search for: give {PLURAL[asked]}.")
    if mic and asked != "speech":
        raise ValueError(f"{uri} holds recordings, which are found by pictures: --mic is for pictures.")
    for path in files:
        check_is_file(path)
        if path.suffix.lower() in SUFFIXES[info.modality]:
            raise ValueError(
                f"{path} is one of {PLURAL[info.modality]}, and so is what {uri} holds. Search it by {PLURAL[asked]}."
            )
    queries: list[Any] = [*files, *([record_speech()] if mic else [])]
    names = [str(path) for path in files] + ["microphone"] * mic
    loaded, processor = load_model_of(uri, info, model)
    index = SpeechImageIndex.open(uri, loaded, processor)
    found = index.search(queries, top_k, rerank_top_k, score_rule, where, query_names=names)
    if json_out:
        write_json({"index": uri, "queries": [_as_json(*pair) for pair in zip(names, found, strict=True)]}, json_out)
    if not any(found):
        raise ValueError(_why_nothing(index, where))
    several = len({result.source for results in found for result in results}) > 1
    for name, results in zip(names, found, strict=True):
        _print_results(name, results, with_source=several)
    if sheet:
        _draw_sheet(queries, names, found, info.modality, processor.sampling_rate, sheet)
        typer.echo(f"Drawn to {sheet}")
    if explain:
        best = [(query, results[0].id) for query, results in zip(queries, found, strict=True) if results]
        save_explanations([index.explain(*pair) for pair in best], explain)


def _why_nothing(index: SpeechImageIndex, where: str | None) -> str:
    if not len(index):
        return f"Nothing was found, for {index.uri} is empty. Fill it: sir index MODEL SOURCE --out {quote(index.uri)}"
    return f"Nothing was found: --where {where!r} selects none of the {len(index)} rows of {index.uri}."


def _print_results(query: str, results: Sequence[Found], with_source: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(Path(query).name), title_justify="left")
    for column in ("rank", "match", "similarity", "coarse rank"):
        table.add_column(column, justify="right")
    with_text = any(result.text for result in results)
    for column in ("name", "text") if with_text else ("name",):
        table.add_column(column, overflow="fold")
    for rank, result in enumerate(results, start=1):
        match = "" if result.matching_score is None else f"{result.matching_score:+.2f}"
        name = f"{result.source}/{result.name}" if with_source else result.name
        words = [f"{name} (file is gone)" if result.is_missing else name, *([result.text or ""] if with_text else [])]
        scores = (str(rank), match, f"{result.coarse_score:.3f}", str(result.coarse_rank))
        table.add_row(*scores, *map(escape, words), style="yellow" if result.is_missing else None)
    Console().print(table)


def _as_json(query: str, results: Sequence[Found]) -> dict[str, object]:
    rows = [
        {name: value for name, value in asdict(result).items() if name != "preview"} | {"missing": result.is_missing}
        for result in results
    ]
    return {"query": query, "results": rows}


def _draw_sheet(
    queries: Sequence[Any],
    names: Sequence[str],
    found: Sequence[Sequence[Found]],
    gallery: Modality,
    sampling_rate: int,
    out: Path,
) -> None:
    from ..processing.media import load_image, load_speech
    from ..retrieval.contact_sheet import SheetQuery, SheetResult, draw_contact_sheet, waveform_image

    def speech(recording: Any) -> np.ndarray:
        return load_speech(recording, None, sampling_rate)

    def row(query: Any, name: str, results: Sequence[Found]) -> SheetQuery:
        pictures = gallery == "image"
        shown = [
            SheetResult(
                load_image(result.preview) if pictures else waveform_image(speech(result.preview)),
                result.text or result.name,
                result.coarse_score,
                result.coarse_rank,
                result.matching_score,
            )
            for result in results
        ]
        return SheetQuery(Path(name).name, speech(query) if pictures else load_image(query), sampling_rate, shown)

    out.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet([row(*of_query) for of_query in zip(queries, names, found, strict=True)]).save(out)
