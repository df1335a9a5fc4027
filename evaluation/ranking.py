"""Rank a gallery in both directions, before and after re-ranking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .embedding import EncodedImages, EncodedSpeech
from .intervals import RankedQueries
from .recall import ranks_of_relevant
from .reranking import Direction, Matched, ScoreRule, match_candidates, rerank_temperature


@dataclass(frozen=True)
class RankedDirection:
    """One direction of retrieval.

    Attributes:
        scores: stage, `coarse` and, if there was re-ranking, `reranked`, to (queries, candidates) scores; of the
            re-ranked ones only the order means anything.
        relevant: (queries, candidates) bool, what is right.
        candidates: (queries, candidates) bool, what was re-ranked; None if nothing was.
        queries: the ranks of what is right, and the picture of each query.
    """

    scores: Mapping[str, Tensor]
    relevant: Tensor
    candidates: Tensor | None
    queries: RankedQueries


@dataclass(frozen=True)
class RankedGallery:
    """Both directions; `temperature` is the one of "sim+sic", None for other rules and without re-ranking."""

    speech_to_image: RankedDirection
    image_to_speech: RankedDirection
    temperature: float | None


def rank_gallery(
    model: nn.Module,
    speech: EncodedSpeech,
    images: EncodedImages,
    image_of_caption: Tensor,
    *,
    rerank_top_k: int = 32,
    score_rule: ScoreRule = "sim",
    temperature: float | None = None,
    pairs_per_batch: int = 128,
    progress: bool = False,
) -> RankedGallery:
    """Rank all pictures for every caption and all captions for every picture; arguments are those of
    :func:`.protocol.evaluate_encoded`.

    Raises:
        ValueError: re-ranking without token states, or a score is NaN.
    """
    coarse = coarse_scores(speech, images)
    if rerank_top_k == 0:
        return ranked_gallery(coarse, image_of_caption, None, score_rule, None)
    temperature = rerank_temperature(model, temperature) if score_rule == "sim+sic" else None
    matched = match_gallery(model, speech, images, rerank_top_k, pairs_per_batch=pairs_per_batch, progress=progress)
    return ranked_gallery(coarse, image_of_caption, matched, score_rule, temperature)


def coarse_scores(speech: EncodedSpeech, images: EncodedImages) -> Tensor:
    """(captions, images) float32 contrastive similarities."""
    return speech.embeddings @ images.embeddings.T


def match_gallery(
    model: nn.Module,
    speech: EncodedSpeech,
    images: EncodedImages,
    rerank_top_k: int,
    *,
    pairs_per_batch: int = 128,
    progress: bool = False,
) -> Matched:
    """The matching scores of the candidates of both directions; `rerank_top_k` is 1 at least.

    Raises:
        ValueError: there are no token states, or a score is NaN.
    """
    if speech.states is None or images.states is None:
        raise ValueError("re-ranking needs token states: encode with keep_states=True, or set rerank_top_k=0")
    return match_candidates(
        model,
        coarse_scores(speech, images),
        speech.states,
        images.states,
        rerank_top_k,
        pairs_per_batch=pairs_per_batch,
        progress=progress,
    )


def ranked_gallery(
    coarse: Tensor,
    image_of_caption: Tensor,
    matched: Matched | None,
    score_rule: ScoreRule,
    temperature: float | None,
) -> RankedGallery:
    """What the scores say; `matched` is None if nothing is re-ranked, `temperature` unless the rule needs it."""
    pictures = torch.arange(coarse.shape[1])
    relevant = image_of_caption.unsqueeze(1) == pictures
    reranked = None if matched is None else matched.reranked(score_rule, temperature or 1.0)
    return RankedGallery(
        _direction(coarse, relevant, image_of_caption, reranked and reranked.speech_to_image),
        _direction(coarse.T.contiguous(), relevant.T.contiguous(), pictures, reranked and reranked.image_to_speech),
        temperature,
    )


def _direction(coarse: Tensor, relevant: Tensor, pictures: Tensor, reranked: Direction | None) -> RankedDirection:
    scores = {"coarse": coarse} if reranked is None else {"coarse": coarse, "reranked": reranked.scores}
    ranks = {stage: ranks_of_relevant(of_stage, relevant) for stage, of_stage in scores.items()}
    return RankedDirection(scores, relevant, reranked and reranked.candidates, RankedQueries(ranks, pictures))
