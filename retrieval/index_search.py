"""Coarse-to-fine search in a table: the nearest embeddings first, then the multimodal encoder re-orders the best.

The order is that of :func:`.search.search_encoded` on the same gallery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lancedb
import torch
from torch import Tensor, nn

from ..evaluation import EncodedImages, EncodedSpeech, PackedStates, encode_images, encode_speech, score_pairs
from ..evaluation.recall import refuse_nan
from ..evaluation.reranking import ScoreRule
from .ann import REFINE, probes
from .candidate_states import candidate_states
from .index_table import IndexInfo
from .sources import Modality
from .spoken_queries import read_spoken_queries

_SHOWN = ("id", "name", "source", "path", "text", "speaker", "language", "preview")
_NOT_TO_FILTER_BY = ("preview", "embedding", "token_count", "states", "crc32")
_EXACT_UP_TO = 100_000  # rows that a filter leaves


@dataclass(frozen=True)
class Found:
    """A picture or a recording that a query found.

    Attributes:
        id: its id in the index. name: within its source. path: its file, if it has one.
        preview: JPEG of at most 256 pixels a side, or the recording as FLAC.
        coarse_score: cosine similarity with the query.
        coarse_rank: its rank by that similarity, from 1.
        matching_score: matching logit, the higher the better the two fit; None for one that was not re-ranked.
    """

    id: str
    name: str
    source: str
    path: str | None
    text: str | None
    speaker: str | None
    language: str | None
    preview: bytes = field(repr=False)
    coarse_score: float
    coarse_rank: int
    matching_score: float | None

    @property
    def is_missing(self) -> bool:
        """Whether its file is not there any more."""
        return self.path is not None and not Path(self.path).exists()


@dataclass(frozen=True)
class Candidates:
    """Rows of a table by falling similarity to one query.

    Attributes:
        rows: LanceDB's ids of the rows. coarse: (rows,) cosine similarities.
    """

    rows: list[int]
    coarse: Tensor


def encode_queries(
    model: nn.Module,
    processor: Callable[..., Mapping[str, Tensor]],
    gallery: Modality,
    queries: Sequence[Any],
    names: Sequence[str] | None,
    keep_states: bool,
) -> EncodedSpeech | EncodedImages:
    """Queries of the other modality than the gallery's.

    Raises:
        ValueError: one cannot be read, or is silent.
    """
    if gallery == "speech":
        return encode_images(model, processor, queries, names=names, keep_states=keep_states)
    queries = read_spoken_queries(queries, names, processor.sampling_rate)
    as_given = [0.0] * len(queries)  # few enough that sorting them by length would save nothing
    return encode_speech(model, processor, queries, names=names, keep_states=keep_states, lengths=as_given)


def check_filter(table: lancedb.table.Table, where: str) -> None:
    """
    Raises:
        ValueError: not a filter on the columns of the table.
    """
    try:
        table.search().where(where).select(["id"]).explain_plan()
    except (ValueError, RuntimeError) as error:
        raise _unusable(table, where, error) from None


def _unusable(table: lancedb.table.Table, where: str, error: Exception) -> ValueError:
    columns = ", ".join(name for name in table.schema.names if name not in _NOT_TO_FILTER_BY)
    return ValueError(
        f"The filter {where!r} cannot be used: {str(error).splitlines()[0]} Write it in SQL, for instance "
        f"\"language = 'en' AND text LIKE '%dog%'\". Columns: {columns}."
    )


@contextmanager
def filter_explained(table: lancedb.table.Table, where: str | None) -> Iterator[None]:
    """Say of a filter that fails on a row, as a division by zero does, that it is to blame.

    Raises:
        ValueError: it failed.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if where is None or "Error applying filter expression" not in str(error):
            raise
        raise _unusable(table, where, error) from None


def search_table(
    table: lancedb.table.Table,
    info: IndexInfo,
    model: nn.Module,
    processor: Callable[..., Mapping[str, Tensor]],
    queries: EncodedSpeech | EncodedImages,
    *,
    top_k: int,
    rerank_top_k: int,
    score_rule: ScoreRule,
    where: str | None,
) -> list[list[Found]]:
    """Results of each query, the best first; the arguments are those of :meth:`.index.SpeechImageIndex.search`."""
    refuse_nan(queries.embeddings, "query", ("query", "number"))
    depth = max(top_k, rerank_top_k)
    with filter_explained(table, where):
        candidates = nearest(table, queries.embeddings, depth, where)
    fine = [torch.empty(0)] * len(candidates)
    if rerank_top_k:
        best = [found.rows[:rerank_top_k] for found in candidates]
        fine = _matching_scores(table, info, model, processor, queries, best)
    orders = [
        _order(found.coarse, scores, score_rule, model)[:top_k] for found, scores in zip(candidates, fine, strict=True)
    ]
    wanted = {found.rows[place] for found, order in zip(candidates, orders, strict=True) for place in order}
    shown = _shown(table, sorted(wanted))
    return [
        [
            Found(
                **shown[found.rows[place]],
                coarse_score=float(found.coarse[place]),
                coarse_rank=place + 1,
                matching_score=_matching_score(scores, place),
            )
            for place in order
        ]
        for found, scores, order in zip(candidates, fine, orders, strict=True)
    ]


def nearest(table: lancedb.table.Table, embeddings: Tensor, depth: int, where: str | None = None) -> list[Candidates]:
    """The `depth` most similar rows of each query: exact, or by the approximate index if there is one.

    Args:
        embeddings: (queries, projection) float32 of unit length.
        where: as of :meth:`.index.SpeechImageIndex.search`.
    """
    probed = probes(table.count_rows())
    # Few rows lie in few parts, which an approximate index may not look into; and among few an exact search is fast.
    exact = where is not None and table.count_rows(where) <= _EXACT_UP_TO
    return [_nearest(table, embedding, depth, where, probed, exact) for embedding in embeddings]


def _nearest(
    table: lancedb.table.Table, embedding: Tensor, depth: int, where: str | None, probed: int, exact: bool
) -> Candidates:
    query = table.search(embedding.numpy(), vector_column_name="embedding").distance_type("dot").limit(depth)
    query = query.nprobes(probed)
    if where is not None:
        query = query.where(where, prefilter=True).maximum_nprobes(0)  # more parts, until `depth` rows are found
        if exact:
            query = query.bypass_vector_index()
    # Of an approximate index: its own distances are rounded, so more rows are fetched and compared exactly.
    query = query.refine_factor(REFINE).select(["embedding", "_distance"]).with_row_id(True)
    found = query.to_arrow().sort_by("_rowid")
    vectors = found["embedding"].combine_chunks().flatten().to_numpy().reshape(len(found), len(embedding))
    # LanceDB's distance is 1 - similarity, which has lost the digits that tell near-equals apart.
    coarse = torch.from_numpy(vectors.copy()) @ embedding
    order = coarse.argsort(descending=True, stable=True)
    rows = found["_rowid"].to_numpy()
    return Candidates(rows[order.numpy()].tolist(), coarse[order])


def _order(coarse: Tensor, matching: Tensor, score_rule: ScoreRule, model: nn.Module) -> list[int]:
    """Places among the candidates, the best first: those that have no matching score keep their places, and the
    others take the remaining ones by their score."""
    reranked = (~matching.isnan()).nonzero()[:, 0]
    fine = matching[reranked]
    if score_rule == "sim+sic" and len(fine):
        fine = fine + coarse[reranked] / model.rerank_temperature
    order = torch.arange(len(coarse))
    order[reranked] = reranked[fine.argsort(descending=True, stable=True)]
    return order.tolist()


def _matching_score(matching: Tensor, place: int) -> float | None:
    return None if place >= len(matching) or matching[place].isnan() else float(matching[place])


def _shown(table: lancedb.table.Table, rows: list[int]) -> dict[int, dict[str, Any]]:
    if not rows:
        return {}
    taken = table.take_row_ids(rows).select(list(_SHOWN)).with_row_id().to_arrow().to_pylist()
    return {row.pop("_rowid"): row for row in taken}


def _matching_scores(
    table: lancedb.table.Table,
    info: IndexInfo,
    model: nn.Module,
    processor: Callable[..., Mapping[str, Tensor]],
    queries: EncodedSpeech | EncodedImages,
    candidates: list[list[int]],
) -> list[Tensor]:
    """Matching logits of each query with its candidates, NaN for those that have no states; every candidate's states
    are read once for all queries."""
    pairs = [(query, row) for query, of_query in enumerate(candidates) for row in of_query]
    matching = torch.full((len(pairs),), torch.nan)
    rows = sorted({row for _, row in pairs})
    place_of, states = candidate_states(table, info, model, processor, rows) if rows else ({}, None)
    if states is not None:
        scored = torch.tensor([at for at, (_, row) in enumerate(pairs) if row in place_of])
        query = torch.tensor([pairs[at][0] for at in scored])
        candidate = torch.tensor([place_of[pairs[at][1]] for at in scored])
        if info.modality == "image":
            matching[scored] = score_pairs(model, queries.states, _unpacked(states), query, candidate)
        else:
            matching[scored] = score_pairs(model, states, queries.states, candidate, query)
    return list(matching.split([len(of_query) for of_query in candidates]))


def _unpacked(states: PackedStates) -> Tensor:
    """(pictures, tokens, width): all pictures have the same number of tokens."""
    return states.tokens.view(len(states), -1, states.tokens.shape[-1])
