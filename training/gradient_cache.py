"""One optimizer step's losses on a batch that comes in parts: micro-batches, and each process's share of them.

The losses are those of the whole batch, as if it had been encoded at once: every pair is compared with all others, and
hard negatives come from anywhere in it. The encoders run without a graph first; from the losses the gradients of their
outputs are known, and with these the encoders run again, one micro-batch at a time (gradient caching, Gao et al. 2021,
arXiv 2101.06983). So the activations of one micro-batch are alive at a time, and the outputs of all. The multimodal
encoder's pairs, too, are taken for so few rows at a time that those and their negatives number a micro-batch.

Every process computes the share of its own rows in the losses; gradients are sums over the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather, pad_across_processes, reduce
from torch import Tensor, nn

from .objective import Batch, CoarseToFineObjective, EncodedBatch, Losses

_BUCKET = 2**24  # numbers that are summed over the processes at once
_WITH_GRADIENT = ("speech", "image", "speech_states", "image_states")


def backward(
    objective: CoarseToFineObjective,
    micro_batches: Sequence[Batch],
    *,
    alpha: float = 0.0,
    momentum: bool = True,
    matching: bool = True,
    generator: torch.Generator | None = None,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Losses:
    """Add the gradients of one step to the parameters, and return the losses, both the same in every process.

    Args:
        micro_batches: this process's share of the batch, which is as large as that of the others.
        alpha, momentum, matching: see :class:`CoarseToFineObjective`.
        generator: draws the hard negatives; in the same state in every process.
    """
    model, at_once = objective.model, len(micro_batches) == 1
    states, parts = [], []
    for batch in micro_batches:
        states.append(_random_state())
        with autocast(), nullcontext() if at_once else _without_graph(model):
            parts.append(objective.encode(batch, momentum, matching))
    whole = _as_leaves(_gathered(_joined(parts)))
    parts = parts if at_once else [None] * len(parts)  # what has no graph has served
    objective.remember(whole)
    negatives = objective.negatives(whole, generator) if objective.matches(matching) else None

    shares, losses = _own_rows(micro_batches), []
    # A row brings its negatives along, which may be of any micro-batch.
    divisions = 1 if at_once or negatives is None else 1 + objective.hard_negatives
    for rows in (part for own in shares for part in _divided(own, divisions)):
        with autocast():
            share = objective.losses(whole, alpha, negatives, rows)
        share.total.backward()
        losses.append(share)
    gradients = {name: _sum(leaf.grad) for name, leaf in _differentiable(whole) if leaf.grad is not None}
    del whole, share

    with _restoring_random_state():
        for batch, state, part, rows in zip(micro_batches, states, parts, shares, strict=True):
            if part is None:
                _set_random_state(state)
                with autocast():
                    part = objective.encode(batch, momentum=False, matching=matching)
            _backward_from(part, gradients, rows)
    _sum_gradients(model)
    _average_statistics(model)
    return _total(losses)


def _own_rows(micro_batches: Sequence[Batch]) -> list[slice]:
    """Where in the whole batch this process's micro-batches are: after those of the processes before it."""
    sizes = [len(batch.rows) for batch in micro_batches]
    ends = list(accumulate(sizes, initial=PartialState().process_index * sum(sizes)))
    return [slice(*ends_of) for ends_of in pairwise(ends)]


def _divided(rows: slice, parts: int) -> list[slice]:
    """Into so many of about the same length, or into single rows."""
    length = rows.stop - rows.start
    ends = [rows.start + length * part // parts for part in range(parts + 1)]
    return [slice(*ends_of) for ends_of in pairwise(ends) if ends_of[0] < ends_of[1]]


def _joined(parts: Sequence[EncodedBatch]) -> EncodedBatch:
    """One batch, its speech padded to the longest."""

    def join(values: list[Tensor | None]) -> Tensor | None:
        return None if values[0] is None else torch.cat(_padded_alike(values))

    tensors = {name: join([getattr(part, name) for part in parts]) for name in _tensor_names()}
    momentum = None
    if parts[0].momentum is not None:
        momentum = tuple(torch.cat(side) for side in zip(*(part.momentum for part in parts), strict=True))
    return EncodedBatch(**tensors, momentum=momentum)


def _gathered(own: EncodedBatch) -> EncodedBatch:
    """The batch of all processes."""

    def collect(part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        part = part.detach()
        padded = pad_across_processes(part, dim=1) if part.dim() > 1 else part
        return gather(padded.to(part.dtype).contiguous())  # padding makes integers of masks

    tensors = {name: collect(getattr(own, name)) for name in _tensor_names()}
    momentum = None if own.momentum is None else tuple(collect(part) for part in own.momentum)
    return EncodedBatch(**tensors, momentum=momentum)


def _as_leaves(batch: EncodedBatch) -> EncodedBatch:
    return replace(batch, **{name: part.detach().requires_grad_() for name, part in _differentiable(batch)})


def _backward_from(part: EncodedBatch, gradients: dict[str, Tensor], rows: slice) -> None:
    """From the gradients of what the encoders gave for some rows to those of the parameters."""
    outputs = [(name, output) for name, output in _differentiable(part) if output.requires_grad and name in gradients]
    if outputs:
        torch.autograd.backward(
            [output for _, output in outputs],
            # Without the tokens that other parts' speech has more.
            [gradients[name][rows][:, : output.shape[1]] for name, output in outputs],
        )


def _sum(part: Tensor) -> Tensor:
    return part if PartialState().num_processes == 1 else reduce(part, "sum")


def _sum_gradients(model: nn.Module) -> None:
    """Over the processes. A parameter that took no part in any process keeps no gradient."""
    if PartialState().num_processes == 1:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flags = [parameter.grad is not None for parameter in trained]
    took_part = reduce(torch.tensor(flags, dtype=torch.int32, device=PartialState().device), "sum")
    trained = [parameter for parameter, count in zip(trained, took_part.tolist(), strict=True) if count]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for gradients in _buckets([parameter.grad for parameter in trained]):
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)  # in place, as accelerate's `reduce` is not
        for gradient, total in zip(gradients, flat.split([part.numel() for part in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In parts of about equal size, so that what is sent is no second copy of all."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(part.numel() for part in bucket) >= _BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _average_statistics(model: nn.Module) -> None:
    """Let batch norms, each of which saw its process's rows, go on from the same statistics."""
    for part in _batch_norms(model):
        for statistic in (part.running_mean, part.running_var):
            statistic.copy_(reduce(statistic, "mean"))


def _total(shares: Sequence[Losses]) -> Losses:
    values = [[losses.total.detach(), losses.contrastive, losses.matching, losses.listwise] for losses in shares]
    return Losses(*_sum(torch.stack([torch.stack(of) for of in values]).sum(0)))


@contextmanager
def _without_graph(model: nn.Module) -> Iterator[None]:
    """The first of two equal passes: batch norms count the second alone."""
    norms = _batch_norms(model)
    counted = [
        [norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()] for norm in norms
    ]
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, (mean, variance, batches) in zip(norms, counted, strict=True):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.num_batches_tracked.copy_(batches)


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [
        part
        for part in model.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training and part.running_mean is not None
    ]


def _random_state() -> tuple:
    """What dropout and the masking of backbones draw from."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = None if accelerator is None else torch.get_device_module(accelerator).get_rng_state()
    return torch.get_rng_state(), device, np.random.get_state()


def _set_random_state(state: tuple) -> None:
    cpu, device, numpy = state
    torch.set_rng_state(cpu)
    if device is not None:
        torch.get_device_module(torch.accelerator.current_accelerator()).set_rng_state(device)
    np.random.set_state(numpy)


@contextmanager
def _restoring_random_state() -> Iterator[None]:
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)


def _tensor_names() -> tuple[str, ...]:
    return (*_WITH_GRADIENT, "speech_mask", "image_ids", "rows")


def _differentiable(batch: EncodedBatch) -> list[tuple[str, Tensor]]:
    values = [(name, getattr(batch, name)) for name in _WITH_GRADIENT]
    return [(name, value) for name, value in values if value is not None]


def _padded_alike(parts: list[Tensor]) -> list[Tensor]:
    """With as many tokens each as the longest has; what is added is 0, in masks too."""
    if parts[0].dim() < 2:
        return parts
    longest = max(part.shape[1] for part in parts)
    return [nn.functional.pad(part, (0, 0) * (part.dim() - 2) + (0, longest - part.shape[1])) for part in parts]


__all__ = ["backward"]
