"""Matching logits of many pairs of recordings and pictures, of which most share one with others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .token_states import PackedStates

PAIRS_PER_BATCH = 128
"""On a CPU more fall out of its caches."""

# Token states of the pictures whose keys and values are in memory: those take 2 x layers times as much.
_PROJECTED_STATES_BYTES = 16 << 20


@torch.inference_mode()
def match_pairs(
    model: nn.Module,
    speech_states: PackedStates,
    image_states: Tensor,
    speech: Tensor,
    image: Tensor,
    *,
    pairs_per_batch: int = PAIRS_PER_BATCH,
    track: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Tensor:
    """Matching logits of any pairs: of clip `speech[i]` with picture `image[i]`, (pairs,) both.

    Every picture is projected once, and every clip goes through what does not depend on the picture once in a batch;
    pairs of similar speech length share a batch, which is padded to its longest clip.

    Args:
        model: in evaluation mode.
        image_states: (pictures, tokens, width).
        track: shows the progress of iterating over the batches.

    Returns:
        (pairs,) float32 on the CPU, in the order of the pairs.
    """
    by_clip = speech.argsort(stable=True)
    order = by_clip[speech_states.lengths[speech[by_clip]].argsort(descending=True, stable=True)]
    at_a_time = max(1, _PROJECTED_STATES_BYTES // (image_states[0].numel() * image_states.element_size()))
    batches = [
        (pictures, pairs)
        for pictures in image.unique().split(at_a_time)
        for pairs in order[torch.isin(image[order], pictures)].split(pairs_per_batch)
    ]
    logits, projected, pictures_projected = torch.empty(len(order)), None, None
    for pictures, pairs in track(batches):
        if pictures is not pictures_projected:
            projected = model.project_images(image_states[pictures].to(model.device, model.dtype))
            pictures_projected = pictures
        clips, clip_of_pair = speech[pairs].unique(return_inverse=True)
        states, mask = speech_states.padded(clips)
        scores = model.match(
            states.to(model.device, model.dtype),
            mask.to(model.device),
            projected,
            image_rows=torch.searchsorted(pictures, image[pairs]).to(model.device),
            speech_rows=clip_of_pair.to(model.device),
        )
        logits[pairs] = scores.float().cpu()
    return logits


__all__ = ["PAIRS_PER_BATCH", "match_pairs"]
