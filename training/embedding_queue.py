"""The embedding queue: momentum embeddings of past pairs, as further negatives for SIC and for mining hard batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EmbeddingQueue(nn.Module):
    """First in, first out, of fixed size; it grows from empty, so that nothing random ever serves as a negative.

    Attributes:
        speech, image: (size, projection_dim) float32 buffers.
        image_ids, rows: (size,) int64, which image a pair shows and which row of the corpus it is; -1 where empty.
        by_teacher: how many of the last pairs were embedded by the momentum teacher; before it starts, pairs embedded
            by the student are queued for mining.
    """

    def __init__(self, size: int, projection_dim: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"the queue must hold at least one pair, not {size}")
        self.register_buffer("speech", torch.zeros(size, projection_dim))
        self.register_buffer("image", torch.zeros(size, projection_dim))
        self.register_buffer("image_ids", torch.full((size,), -1))
        self.register_buffer("rows", torch.full((size,), -1))
        self.register_buffer("enqueued", torch.tensor(0))
        self.register_buffer("by_teacher", torch.tensor(0))

    def __len__(self) -> int:
        return min(int(self.enqueued), len(self.rows))

    @torch.no_grad()
    def enqueue(self, speech: Tensor, image: Tensor, image_ids: Tensor, rows: Tensor, by_teacher: bool = True) -> None:
        """Add a batch of any size; the oldest pairs make room. Of a batch larger than the queue the last ones stay."""
        size, batch = len(self.rows), len(rows)
        kept = slice(max(0, batch - size), batch)
        slots = (self.enqueued + torch.arange(batch, device=rows.device))[kept] % size
        for buffer, values in (
            (self.speech, speech),
            (self.image, image),
            (self.image_ids, image_ids),
            (self.rows, rows),
        ):
            buffer[slots] = values[kept].to(buffer.dtype)
        self.enqueued += batch
        self.by_teacher = self.by_teacher + batch if by_teacher else torch.zeros_like(self.by_teacher)

    def contents(self, *, by_teacher: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Copies of the filled part, oldest first: speech, image, image ids, rows. Autograd keeps what it
        multiplied while the queue is written on.

        Args:
            by_teacher: leave out what the student embedded.
        """
        size, enqueued = len(self.rows), int(self.enqueued)
        count = min(size, int(self.by_teacher) if by_teacher else enqueued)
        slots = torch.arange(enqueued - count, enqueued, device=self.rows.device) % size
        return self.speech[slots], self.image[slots], self.image_ids[slots], self.rows[slots]
