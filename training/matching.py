"""Speech-image matching (SIM): which pairs the multimodal encoder sees, and what it should say of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..modeling.losses import matching_loss


@dataclass
class MatchingPairs:
    """Pairs of rows of one batch, those of some of its rows, the anchors: first the anchors' matched pairs, then for
    each speech its negative images, then for each image its negative speeches.

    speech, image: (pairs,) int64 rows of the batch.
    real: (pairs,) bool; False where a row had no negative to give and the pair must not count.
    anchors, negatives: the pairs number anchors * (1 + 2 * negatives).
    real_in_batch, lists_in_batch: how many real pairs, and queries with a negative, the whole batch has: what the
        losses are means over.
    """

    speech: Tensor
    image: Tensor
    real: Tensor
    anchors: int
    negatives: int
    real_in_batch: Tensor
    lists_in_batch: Tensor

    @property
    def labels(self) -> Tensor:
        """(pairs,) bool, True for matched pairs."""
        return torch.arange(len(self.speech), device=self.speech.device) < self.anchors


@dataclass
class HardNegatives:
    """What was drawn for a batch.

    images, speeches: the (batch, negatives) indices and the (batch, negatives) bool found of both directions, see
        :func:`..modeling.losses.sample_hard_negatives`.
    """

    images: tuple[Tensor, Tensor]
    speeches: tuple[Tensor, Tensor]

    def pairs(self, anchors: slice | None = None) -> MatchingPairs:
        """The pairs of some rows, of all by default."""
        (image_rows, image_found), (speech_rows, speech_found) = self.images, self.speeches
        batch, negatives = image_rows.shape
        kept = anchors or slice(0, batch)
        rows = torch.arange(batch, device=image_rows.device)[kept]
        repeated = rows.repeat_interleave(negatives)
        found = torch.cat([image_found, speech_found])
        return MatchingPairs(
            speech=torch.cat([rows, repeated, speech_rows[kept].flatten()]),
            image=torch.cat([rows, image_rows[kept].flatten(), repeated]),
            real=torch.cat(
                [torch.ones_like(rows, dtype=torch.bool), image_found[kept].flatten(), speech_found[kept].flatten()]
            ),
            anchors=len(rows),
            negatives=negatives,
            real_in_batch=batch + found.sum(),
            lists_in_batch=found.any(dim=1).sum(),
        )


def pairwise_matching_loss(scores: Tensor, pairs: MatchingPairs) -> Tensor:
    """Binary cross-entropy over all real pairs (ALBEF equation 4), the anchors' share of the batch's mean.

    Args:
        scores: (pairs,) matching logits.
    """
    return matching_loss(scores, pairs.labels, pairs.real.float(), pairs.real_in_batch)


def listwise_matching_loss(scores: Tensor, pairs: MatchingPairs) -> Tensor:
    """Cross-entropy of each query's matched pair among its negatives, mean of both directions; the anchors' share of
    the batch's mean.

    This is what re-ranking asks for: the right candidate above the other candidates of the same query. Queries without
    a negative do not count; with none at all the loss is 0.

    Args:
        scores: (pairs,) matching logits.
    """
    scores = scores.float().masked_fill(~pairs.real, -torch.inf)
    matched, negatives = scores.split([pairs.anchors, len(scores) - pairs.anchors])
    lists = negatives.view(2, pairs.anchors, pairs.negatives)
    candidates = torch.cat([matched.expand(2, -1).unsqueeze(2), lists], dim=2)
    losses = nn.functional.cross_entropy(
        candidates.flatten(0, 1),
        torch.zeros(2 * pairs.anchors, dtype=torch.long, device=scores.device),
        reduction="none",
    )
    counted = torch.isfinite(lists).any(dim=2).flatten()
    return (losses * counted).sum() / pairs.lists_in_batch.clamp(min=1)
