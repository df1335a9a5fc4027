"""Coarse-to-fine search of pictures by spoken queries: similarity ranks all, the multimodal encoder re-ranks the best.

The order is that of :mod:`..evaluation.reranking`, so what is searched here is what was measured there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluation import EncodedImages, EncodedSpeech, encode_images, encode_speech, score_pairs
from ..evaluation.recall import refuse_nan
from ..evaluation.reranking import ScoreRule, check_score_rule


@dataclass(frozen=True)
class SearchResult:
    """One picture that a query found.

    Attributes:
        image: its place in the gallery.
        coarse_score: cosine similarity of query and picture.
        coarse_rank: its rank by that similarity in the whole gallery, from 1.
        matching_score: matching logit, the higher the better the two fit; None for a picture that was not re-ranked.
    """

    image: int
    coarse_score: float
    coarse_rank: int
    matching_score: float | None


def search_images(
    model: nn.Module,
    processor: Callable[..., Mapping[str, Tensor]],
    queries: Sequence[Any],
    images: Sequence[Any],
    *,
    top_k: int = 5,
    rerank_top_k: int = 32,
    score_rule: ScoreRule = "sim",
    batch_size: int = 64,
    query_names: Sequence[str] | None = None,
    image_names: Sequence[str] | None = None,
    progress: bool = False,
) -> list[list[SearchResult]]:
    """Encode spoken queries and pictures, and find for each query the pictures that it describes, the best first.

    Args:
        model, processor: as for :func:`..evaluation.encode_speech`.
        queries, images: whatever the processor reads. Give each distinct picture once.
        top_k, rerank_top_k, score_rule: see :func:`search_encoded`.
        query_names, image_names: what errors call them; without them their places.

    Raises:
        ValueError: no query or no picture, one that cannot be read, a score that is NaN, or an option out of range.
    """
    check_options(top_k, rerank_top_k, score_rule)
    options = {"batch_size": batch_size, "keep_states": rerank_top_k > 0, "progress": progress}
    speech = encode_speech(model, processor, queries, names=query_names, **options)
    gallery = encode_images(model, processor, images, names=image_names, **options)
    return search_encoded(model, speech, gallery, top_k=top_k, rerank_top_k=rerank_top_k, score_rule=score_rule)


def search_encoded(
    model: nn.Module,
    speech: EncodedSpeech,
    images: EncodedImages,
    *,
    top_k: int = 5,
    rerank_top_k: int = 32,
    score_rule: ScoreRule = "sim",
) -> list[list[SearchResult]]:
    """Search pictures that are encoded already.

    Args:
        top_k: results for each query; a smaller gallery is returned whole.
        rerank_top_k: the most similar pictures that the matching score re-orders; those after them keep their coarse
            order, and so do pictures with equal matching scores. 0 ranks by similarity alone and needs no states.
        score_rule: what re-orders them, see :func:`..evaluation.reranking.rerank`.
    """
    check_options(top_k, rerank_top_k, score_rule)
    coarse = speech.embeddings @ images.embeddings.T
    refuse_nan(coarse, "coarse score", ("query", "image"))
    order = coarse.argsort(dim=1, descending=True, stable=True)
    candidates = order[:, :rerank_top_k]
    matching = _matching_scores(model, speech, images, candidates) if rerank_top_k else torch.empty(len(order), 0)
    fine = matching
    if rerank_top_k and score_rule == "sim+sic":
        fine = matching + coarse.gather(1, candidates) / model.rerank_temperature
    by_fine = fine.argsort(dim=1, descending=True, stable=True)
    not_reranked = torch.arange(candidates.shape[1], order.shape[1]).expand(len(order), -1)
    coarse_places = torch.cat([by_fine, not_reranked], dim=1)[:, :top_k]
    return [
        [_result(place, order[query], coarse[query], matching[query]) for place in places]
        for query, places in enumerate(coarse_places.tolist())
    ]


def _matching_scores(model: nn.Module, speech: EncodedSpeech, images: EncodedImages, candidates: Tensor) -> Tensor:
    if speech.states is None or images.states is None:
        raise ValueError("re-ranking needs token states: encode with keep_states=True, or set rerank_top_k=0")
    query = torch.arange(len(candidates)).repeat_interleave(candidates.shape[1])
    return score_pairs(model, speech.states, images.states, query, candidates.flatten()).view(candidates.shape)


def _result(place: int, order: Tensor, coarse: Tensor, matching: Tensor) -> SearchResult:
    image = int(order[place])
    return SearchResult(
        image=image,
        coarse_score=float(coarse[image]),
        coarse_rank=place + 1,
        matching_score=float(matching[place]) if place < len(matching) else None,
    )


def check_options(top_k: int, rerank_top_k: int, score_rule: str) -> None:
    check_score_rule(score_rule)
    if top_k < 1:
        raise ValueError(f"top_k must be 1 or more, not {top_k}")
    if rerank_top_k < 0:
        raise ValueError(f"rerank_top_k must be 0 (coarse ranking only) or more, not {rerank_top_k}")
