"""Speech-image matching (SIM): which pairs the multimodal encoder sees, and what it should say of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..modeling.losses import matching_loss


@dataclass
class MatchingPairs:
    """Pairs of rows of one batch: first the batch's matched pairs, then for each speech its negative images, then for
    each image its negative speeches.

    speech, image: (pairs,) int64 rows of the batch.
    real: (pairs,) bool; False where a row had no negative to give and the pair must not count.
    batch, negatives: the pairs number batch * (1 + 2 * negatives).
    """

    speech: Tensor
    image: Tensor
    real: Tensor
    batch: int
    negatives: int

    @classmethod
    def with_negatives(cls, images: tuple[Tensor, Tensor], speeches: tuple[Tensor, Tensor]) -> MatchingPairs:
        """Pairs from the (batch, negatives) indices and the (batch, negatives) found of both directions."""
        (image_rows, image_found), (speech_rows, speech_found) = images, speeches
        batch, negatives = image_rows.shape
        anchors = torch.arange(batch, device=image_rows.device)
        repeated = anchors.repeat_interleave(negatives)
        return cls(
            speech=torch.cat([anchors, repeated, speech_rows.flatten()]),
            image=torch.cat([anchors, image_rows.flatten(), repeated]),
            real=torch.cat(
                [torch.ones_like(anchors, dtype=torch.bool), image_found.flatten(), speech_found.flatten()]
            ),
            batch=batch,
            negatives=negatives,
        )

    @property
    def labels(self) -> Tensor:
        """(pairs,) bool, True for matched pairs."""
        return torch.arange(len(self.speech), device=self.speech.device) < self.batch


def pairwise_matching_loss(scores: Tensor, pairs: MatchingPairs) -> Tensor:
    """Binary cross-entropy over all real pairs (ALBEF equation 4).

    Args:
        scores: (pairs,) matching logits.
    """
    return matching_loss(scores, pairs.labels, pairs.real.float())


def listwise_matching_loss(scores: Tensor, pairs: MatchingPairs) -> Tensor:
    """Cross-entropy of each query's matched pair among its negatives, mean of both directions.

    This is what re-ranking asks for: the right candidate above the other candidates of the same query. Queries without
    a negative do not count; with none at all the loss is 0.

    Args:
        scores: (pairs,) matching logits.
    """
    scores = scores.float().masked_fill(~pairs.real, -torch.inf)
    matched, negatives = scores.split([pairs.batch, len(scores) - pairs.batch])
    lists = negatives.view(2, pairs.batch, pairs.negatives)
    candidates = torch.cat([matched.expand(2, -1).unsqueeze(2), lists], dim=2)
    losses = nn.functional.cross_entropy(
        candidates.flatten(0, 1),
        torch.zeros(2 * pairs.batch, dtype=torch.long, device=scores.device),
        reduction="none",
    )
    counted = torch.isfinite(lists).any(dim=2).flatten()
    return (losses * counted).sum() / counted.sum().clamp(min=1)
