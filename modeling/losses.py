"""The two training objectives as pure functions: contrastive (SIC) and matching (SIM).

Semantics follow ALBEF (Li et al. 2021, arXiv 2107.07651) with speech in place of text, as in Zhou & Li
(arXiv 2408.13119, sections on SIC and SIM).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def positive_targets(row_ids: Tensor, column_ids: Tensor) -> Tensor:
    """Targets that share the probability of a row among all columns of the same image.

    Args:
        row_ids: (rows,) image ids. column_ids: (columns,) image ids; every row id occurs among them.
    Returns:
        (rows, columns) float32, rows summing to 1.
    """
    positive = (row_ids[:, None] == column_ids[None, :]).float()
    return positive / positive.sum(1, keepdim=True)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of (rows, columns) logits against (rows, columns) target distributions."""
    return -(targets * nn.functional.log_softmax(logits.float(), dim=1)).sum(1).mean()


def contrastive_loss(
    speech_logits: Tensor, image_logits: Tensor, speech_targets: Tensor, image_targets: Tensor
) -> Tensor:
    """SIC: mean of the speech-to-image and the image-to-speech cross-entropy.

    Args:
        speech_logits: (batch, images) temperature-scaled similarities of each speech to all images.
        image_logits: (batch, speeches) the same from each image to all speeches.
        speech_targets, image_targets: distributions of the same shapes.
    """
    return (soft_cross_entropy(speech_logits, speech_targets) + soft_cross_entropy(image_logits, image_targets)) / 2


@torch.no_grad()
def sample_hard_negatives(
    logits: Tensor, same_image: Tensor, count: int = 1, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw negatives for every row in proportion to softmax(logits), columns of the same image excluded.

    Args:
        logits: (rows, columns) similarities already divided by the temperature.
        same_image: (rows, columns) bool, True where row and column belong to one image.
        count: negatives a row, drawn without replacement.
        generator: draws them, on the CPU; torch's own of the logits' device by default.
    Returns:
        (rows, count) column indices, and (rows, count) bool which of them are real: a row with fewer than `count`
        columns of other images has no more negatives to give, and the rest of its indices must not be used.
    """
    if not torch.isfinite(logits).all():
        raise FloatingPointError("SIC similarities are not finite; hard negatives cannot be drawn from them")
    count = min(count, logits.shape[1])
    # Gumbel-top-k draws without replacement in proportion to the softmax and, unlike multinomial, survives rows whose
    # probabilities underflow or that have no column left.
    device = logits.device if generator is None else generator.device
    noise = torch.empty(logits.shape, device=device).exponential_(generator=generator).log_().neg_().to(logits.device)
    keys = (logits.float() + noise).masked_fill(same_image, -torch.inf)
    keys, indices = keys.topk(count, dim=1)
    return indices, keys > -torch.inf


def matching_loss(logits: Tensor, labels: Tensor, weight: Tensor, total: Tensor | None = None) -> Tensor:
    """SIM: binary cross-entropy of (pairs,) matching logits, labels 1 = matched; mean over pairs of weight 1.

    With no pair left the loss is zero and still carries a gradient of zero.

    Args:
        total: number of pairs that the mean is over; default: those of weight 1.
    """
    losses = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    total = weight.sum() if total is None else total
    return (losses * weight).sum() / total.clamp(min=1)
