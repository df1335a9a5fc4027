"""Frames of speech between the backbone and the speech transformer: joined over chunks, averaged over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .padding import mask_of_lengths


def join_chunks(frames: Tensor, mask: Tensor, chunk_clips: Tensor) -> tuple[Tensor, Tensor]:
    """Frames of consecutive chunks, padding between them left out: (chunks, frames, width) to (clips, frames, width)
    and its mask."""
    clips = int(chunk_clips[-1]) + 1
    lengths = mask.new_zeros(clips, dtype=torch.long).index_add(0, chunk_clips, mask.sum(1))
    joined_mask = mask_of_lengths(lengths, int(lengths.max()))
    joined = frames.new_zeros(*joined_mask.shape, frames.shape[-1])
    return joined.masked_scatter(joined_mask.unsqueeze(-1), frames[mask]), joined_mask


def pool_frames(frames: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Average each run of `size` frames, padding left out: (batch, ceil(frames / size), width) and its mask."""
    if size == 1:
        return frames, mask
    short = -frames.shape[1] % size
    frames = nn.functional.pad(frames * mask.unsqueeze(-1), (0, 0, 0, short)).unflatten(1, (-1, size))
    counts = nn.functional.pad(mask, (0, short)).unflatten(1, (-1, size)).sum(2)
    return frames.sum(2) / counts.clamp(min=1).unsqueeze(-1).to(frames.dtype), counts > 0
