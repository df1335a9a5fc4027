"""Which score orders the re-ranked is chosen on validation: chosen on test, the figures on test would flatter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from torch import Tensor, nn

from .ranking import coarse_scores, match_gallery, ranked_gallery
from .recall import recall_at
from .reranking import ScoreRule
from .split import encode_split


class ChosenRule(NamedTuple):
    """The better score rule of a split.

    Attributes:
        rule: what to rank other splits by; of equal ones "sim", which needs no temperature.
        mean_r1: rule to the mean R@1 of both directions, in per cent, by which it was chosen.
    """

    rule: ScoreRule
    split: str
    images: int
    captions: int
    mean_r1: dict[str, float]


def choose_score_rule(
    model: nn.Module,
    processor: Callable[..., Mapping[str, Tensor]],
    validation: Sequence[Mapping[str, Any]],
    *,
    split: str = "validation",
    rerank_top_k: int = 32,
    batch_size: int = 64,
    progress: bool = False,
) -> ChosenRule:
    """Measure every score rule on a split that is not the one to report, and take the better.

    Candidates are matched once for all rules.

    Args:
        validation: rows as for :func:`.protocol.evaluate_retrieval`. split: what it is called.
        rerank_top_k: at least 1.

    Raises:
        ValueError: see :func:`.split.encode_split`.
    """
    encoded = encode_split(
        model, processor, validation, name=f"split {split!r}", batch_size=batch_size, progress=progress
    )
    coarse = coarse_scores(encoded.speech, encoded.images)
    matched = match_gallery(model, encoded.speech, encoded.images, rerank_top_k, progress=progress)
    temperature = model.rerank_temperature
    mean_r1 = {}
    for rule in get_args(ScoreRule):
        ranked = ranked_gallery(coarse, encoded.image_of_caption, matched, rule, temperature)
        directions = (ranked.speech_to_image, ranked.image_to_speech)
        mean_r1[rule] = sum(recall_at(direction.queries.ranks["reranked"], 1) for direction in directions) / 2
    best = max(mean_r1, key=mean_r1.__getitem__)  # of equal ones the first
    return ChosenRule(best, split, len(encoded.first_rows), len(encoded.image_of_caption), mean_r1)
