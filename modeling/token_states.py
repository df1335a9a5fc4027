"""Token states of clips of different lengths, kept without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedStates:
    """The token states of many clips end to end, and where each clip lies among them.

    Attributes:
        tokens: (all tokens of all clips, width).
        starts: (clips,) int64, the first token of each clip.
        lengths: (clips,) int64, how many tokens each clip has.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor

    @classmethod
    def from_tokens(cls, tokens: Tensor, lengths: Tensor) -> PackedStates:
        """Clips whose tokens follow each other in `tokens` (all tokens, width)."""
        if int(lengths.sum()) != len(tokens):
            raise ValueError(f"the lengths add up to {int(lengths.sum())} tokens, but there are {len(tokens)}")
        return cls(tokens, lengths.cumsum(0) - lengths, lengths)

    @classmethod
    def from_padded(cls, states: Tensor, mask: Tensor) -> PackedStates:
        """Pack states (clips, frames, width) by their mask (clips, frames) of valid frames."""
        return cls.from_tokens(states[mask.bool()], mask.bool().sum(dim=1))

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, clips: Tensor) -> PackedStates:
        """The clips with these indices, in this order; no state is copied."""
        return PackedStates(self.tokens, self.starts[clips], self.lengths[clips])

    def padded(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """States (n, longest of these clips, width), zero where padded, and their mask (n, longest) bool."""
        lengths = self.lengths[clips].unsqueeze(1)
        position = torch.arange(int(lengths.max()))
        mask = position < lengths
        token = (self.starts[clips].unsqueeze(1) + position).masked_fill(~mask, 0)
        return self.tokens[token].masked_fill(~mask.unsqueeze(2), 0), mask


def join(parts: list[Tensor]) -> Tensor:
    """Concatenate along the first dimension. Empties `parts` on the way: states of a whole corpus fit in memory once,
    often not twice."""
    joined = parts[0].new_empty((sum(len(part) for part in parts), *parts[0].shape[1:]))
    filled = 0
    while parts:
        part = parts.pop(0)
        joined[filled : filled + len(part)] = part
        filled += len(part)
    return joined
