"""Which rows each optimizer step takes, and which of them each process and micro-batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader

from .arguments import ArgumentError, TrainingArguments
from .embedding_queue import EmbeddingQueue
from .examples import Collator, SpokenCaptions, to_device
from .hard_batches import grouped_batches, length_bucketed_batches, shuffled_batches
from .objective import Batch
from .stopping import ignore_signals
from .streaming import StreamedCaptions


class EpochBatches:
    """Epochs of full batches; rows that are left over, others each time, wait for the next one.

    Attributes:
        step_batch: rows per optimizer step, of all processes.
        per_epoch: steps of an epoch.

    Raises:
        ArgumentError: there are fewer rows than several processes need for one step.
    """

    def __init__(self, arguments: TrainingArguments, examples: SpokenCaptions | StreamedCaptions, collator: Collator):
        self._arguments = arguments
        self._examples = examples
        self._collator = collator
        self._processes = PartialState()
        self.micro_batches = arguments.gradient_accumulation_steps * self._processes.num_processes
        self.step_batch = arguments.batch_size * self.micro_batches
        self.per_epoch = max(1, len(examples) // self.step_batch)
        if self._processes.num_processes > 1 and len(examples) < self.step_batch:
            raise ArgumentError(
                f"The training split has {len(examples)} rows, fewer than the {self.step_batch} of one step of "
                f"{self._processes.num_processes} processes. Lower batch_size, or use fewer processes."
            )

    def compose(self, epoch: int, queue: EmbeddingQueue | None) -> Tensor:
        """Row numbers of a whole epoch, batch after batch. Depends on the seed, the epoch and the queue alone.

        Args:
            queue: where hard neighbours are mined; None does not mine.
        """
        arguments, rows, size = self._arguments, len(self._examples), self.step_batch
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + epoch)
        if queue is not None and len(queue):
            batches = grouped_batches(queue, self._examples.image_ids, size, arguments.group_size, generator)
        elif arguments.length_bucketing:
            batches = length_bucketed_batches(self._examples.speech_sizes(), size, generator)
        else:
            batches = shuffled_batches(rows, size, generator)
        # A batch that is not full would be a whole step on a few pairs.
        return torch.cat(sorted(batches, key=len, reverse=True)[: self.per_epoch])

    def steps(self, epoch: int, order: Tensor) -> Iterator[list[Batch]]:
        """This process's micro-batches of every remaining optimizer step of the epoch.

        Args:
            order: what is left of the epoch's rows.
        """
        self._examples.start_epoch(epoch)
        done = min(self.per_epoch * self.step_batch, len(self._examples)) - len(order)
        steps = [
            [micro.tolist() for micro in rows.split(math.ceil(len(rows) / self.micro_batches))]
            for rows in order.split(self.step_batch)
        ]
        every = self._examples.batch_sampler([rows for step in steps for rows in step], first=done)
        loader = iter(
            DataLoader(
                self._examples,
                batch_sampler=self._own(every),
                collate_fn=self._collator,
                num_workers=self._arguments.num_workers,
                worker_init_fn=ignore_signals,
                # Workers take their seed from the given generator, not from the run's random state.
                generator=torch.Generator().manual_seed(self._arguments.seed),
            )
        )
        for step in steps:
            own = math.ceil(len(step) / self._processes.num_processes)
            yield [to_device(next(loader), self._processes.device) for _ in range(own)]

    def _own(self, micro_batches: Iterable[Any]) -> Iterable[Any]:
        """Of every step's micro-batches those of this process, which are next to each other."""
        if self._processes.num_processes == 1:
            return micro_batches
        each, processes = self._arguments.gradient_accumulation_steps, self._processes.num_processes
        own = self._processes.process_index
        return (batch for place, batch in enumerate(micro_batches) if place // each % processes == own)


__all__ = ["EpochBatches"]
