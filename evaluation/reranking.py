"""Coarse-to-fine: the multimodal encoder re-orders the best candidates of the contrastive similarity.

The semantics are those of ALBEF (`Retrieval.py`, `evaluation`) and FaST-VGS (coarse-to-fine retrieval): the k
candidates with the highest coarse score are ordered by their matching score. Two things differ on purpose. The
candidates that were not re-ranked keep their coarse order behind the others, instead of sharing one constant score;
and all pairs of both directions are scored together, each once, instead of one query at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from rich.progress import track
from torch import Tensor, nn

from ..modeling.pair_scores import PAIRS_PER_BATCH, match_pairs
from ..modeling.token_states import PackedStates
from .embedding import inference
from .recall import refuse_nan
from .sharing import of_all_processes, own_share, process_count

ScoreRule = Literal["sim", "sim+sic"]


@dataclass(frozen=True)
class Direction:
    """One direction of retrieval after re-ranking.

    Attributes:
        candidates: (queries, gallery) bool, the re-ranked candidates, the same number in every row.
        scores: (queries, gallery) float64; only their order means anything (see :func:`coarse_to_fine_scores`).
    """

    candidates: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Reranked:
    """Both directions: speech_to_image is (captions, images), image_to_speech is (images, captions)."""

    speech_to_image: Direction
    image_to_speech: Direction


@dataclass(frozen=True)
class Matched:
    """Matching scores of the candidates of both directions.

    Attributes:
        coarse: (captions, images) float32. logits: the same, 0 where a pair is no candidate of either direction.
        by_speech: (captions, images) bool, candidates of the captions. by_image: (images, captions) bool.
    """

    coarse: Tensor
    logits: Tensor
    by_speech: Tensor
    by_image: Tensor

    def reranked(self, score_rule: ScoreRule, temperature: float) -> Reranked:
        """The order that a rule gives; `temperature` is read only for "sim+sic"."""
        fine = self.logits + self.coarse / temperature if score_rule == "sim+sic" else self.logits
        coarse_of_images, fine_of_images = self.coarse.T.contiguous(), fine.T.contiguous()
        return Reranked(
            Direction(self.by_speech, coarse_to_fine_scores(self.coarse, fine, self.by_speech)),
            Direction(self.by_image, coarse_to_fine_scores(coarse_of_images, fine_of_images, self.by_image)),
        )


def rerank(
    model: nn.Module,
    coarse: Tensor,
    speech_states: PackedStates,
    image_states: Tensor,
    top_k: int,
    *,
    score_rule: ScoreRule = "sim",
    temperature: float | None = None,
    pairs_per_batch: int = PAIRS_PER_BATCH,
    progress: bool = False,
) -> Reranked:
    """Re-rank the top k of every caption and of every image. A pair that both directions need is scored once.

    Args:
        coarse: (captions, images) float32 contrastive similarities.
        speech_states: of the captions.
        image_states: (images, tokens, width).
        top_k: candidates per query; a smaller gallery is re-ranked whole.
        score_rule: what orders the re-ranked candidates. "sim": the matching logit alone (ALBEF, FaST-VGS).
            "sim+sic": the matching logit plus the coarse similarity divided by `temperature` (BLIP and LAVIS add the
            plain cosine: a temperature of 1).
        temperature: for "sim+sic"; None takes the one that validation fitted, `model.rerank_temperature`.
        pairs_per_batch: pairs in one call of `model.match`; on a CPU more fall out of its caches.

    Raises:
        ValueError: a coarse similarity or a matching logit is NaN, or an argument is out of range.
    """
    check_score_rule(score_rule)
    temperature = rerank_temperature(model, temperature) if score_rule == "sim+sic" else 1.0
    matched = match_candidates(
        model, coarse, speech_states, image_states, top_k, pairs_per_batch=pairs_per_batch, progress=progress
    )
    return matched.reranked(score_rule, temperature)


def match_candidates(
    model: nn.Module,
    coarse: Tensor,
    speech_states: PackedStates,
    image_states: Tensor,
    top_k: int,
    *,
    pairs_per_batch: int = PAIRS_PER_BATCH,
    progress: bool = False,
) -> Matched:
    """The matching scores behind :func:`rerank`, whose arguments these are: what takes time, the same for all score
    rules."""
    coarse_of_images = coarse.T.contiguous()  # row by row is several times faster than column by column
    by_speech, by_image = top_k_candidates(coarse, top_k), top_k_candidates(coarse_of_images, top_k)
    speech, image = (by_speech | by_image.T).nonzero(as_tuple=True)
    logits = torch.zeros_like(coarse, dtype=torch.float32)
    logits[speech, image] = score_pairs(
        model, speech_states, image_states, speech, image, pairs_per_batch=pairs_per_batch, progress=progress
    )
    return Matched(coarse, logits, by_speech, by_image)


def check_score_rule(score_rule: str) -> None:
    """Refuse a rule that does not exist."""
    if score_rule not in get_args(ScoreRule):
        raise ValueError(f"score_rule must be 'sim' or 'sim+sic', not {score_rule!r}")


def rerank_temperature(model: nn.Module, temperature: float | None) -> float:
    """The temperature of "sim+sic": the one given, else the model's."""
    temperature = model.rerank_temperature if temperature is None else temperature
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    return temperature


def top_k_candidates(scores: Tensor, top_k: int) -> Tensor:
    """Mark the k highest scores of every row; of equal scores at the boundary the first ones are taken.

    Args:
        scores: (queries, candidates) without NaN.
        top_k: at least 1; with more than there are candidates, all are marked.

    Returns:
        (queries, candidates) bool with min(k, candidates) marks in every row.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1 to re-rank, not {top_k}")
    refuse_nan(scores, "coarse score", ("query", "candidate"))
    top_k = min(top_k, scores.shape[1])
    boundary = scores.topk(top_k, dim=1).values[:, -1:]
    marked = scores >= boundary
    crowded = marked.sum(dim=1) > top_k  # rows with equal scores on both sides of the boundary
    above = scores[crowded] > boundary[crowded]
    tied = marked[crowded] & ~above
    places_left = top_k - above.sum(dim=1, keepdim=True)
    marked[crowded] = above | (tied & (tied.cumsum(dim=1) <= places_left))
    return marked


def score_pairs(
    model: nn.Module,
    speech_states: PackedStates,
    image_states: Tensor,
    speech: Tensor,
    image: Tensor,
    *,
    pairs_per_batch: int = PAIRS_PER_BATCH,
    progress: bool = False,
) -> Tensor:
    """Matching logits of any pairs: of caption `speech[i]` with image `image[i]`, (pairs,) both.

    See :func:`..modeling.pair_scores.match_pairs`, which computes them.

    Returns:
        (pairs,) float32 on the CPU, in the order of the pairs.

    Raises:
        ValueError: a logit is NaN.
    """
    options = {
        "pairs_per_batch": pairs_per_batch,
        "track": partial(track, description="Re-ranking", disable=not progress),
    }
    # Neighbours mostly share their clip.
    shares = torch.arange(len(speech)).split(max(1, math.ceil(len(speech) / process_count())))
    with inference(model):
        scored = [
            match_pairs(model, speech_states, image_states, speech[pairs], image[pairs], **options)
            for pairs in own_share(shares)
        ]
    logits = torch.cat(of_all_processes(scored))
    if logits.isnan().any():
        pair = int(logits.isnan().nonzero()[0])
        raise ValueError(
            f"the matching logit of caption {int(speech[pair])} with image {int(image[pair])} is NaN "
            f"({int(logits.isnan().sum())} of {len(logits)} pairs). Look for a diverged checkpoint, or for token "
            "states that overflow in float16."
        )
    return logits


def coarse_to_fine_scores(coarse: Tensor, fine: Tensor, candidates: Tensor) -> Tensor:
    """One score per candidate that orders the marked ones by `fine`, all the others after them by `coarse`.

    Order and ties are exact, also with infinite scores. Adding a constant to one of the two would not give that: it
    rounds small differences away.

    Args:
        coarse, fine: (queries, candidates), ranked in float32; `fine` is read only where marked.
        candidates: (queries, candidates) bool.

    Returns:
        (queries, candidates) float64.
    """
    ordinals = _ordinal(torch.where(candidates, fine.float(), coarse.float())).double()
    return ordinals.add_(candidates, alpha=2.0**33)  # more than the whole range of the ordinals


def _ordinal(scores: Tensor) -> Tensor:
    """Map float32 to int32 of the same order: the bits of a float read as an integer are ordered, except that
    negative floats count backwards and that zero has two signs."""
    bits = (scores + 0.0).view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
