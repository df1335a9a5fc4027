"""Keeps padding out of speech backbones whose norms or convolutions over time would read it.

Attention masks keep padding out of attention only. Group norm over time (HuBERT base, wav2vec 2.0 base, WavLM base)
and stacked or normalised positional convolutions (data2vec-audio, HuBERT with batch norm) mix it into speech, so that
a clip would have other states in a batch than alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

# Of the forward pass under way: a context variable, for several threads may run one model.
_sample_lengths: ContextVar[Tensor | None] = ContextVar("sample_lengths", default=None)
_frame_mask: ContextVar[Tensor | None] = ContextVar("frame_mask", default=None)


def leave_out_padding(backbone: nn.Module) -> None:
    """Make the norms and convolutions of a speech backbone obey :func:`padding_of`. Others stay as they are, and so
    does a backbone that was given here before."""
    for layer in getattr(getattr(backbone, "feature_extractor", None), "conv_layers", ()):
        norm = getattr(layer, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            norm.time_kernel, norm.time_stride = layer.conv.kernel_size[0], layer.conv.stride[0]
            _hook_once(norm, _masked_group_norm)
    positions = getattr(getattr(backbone, "encoder", None), "pos_conv_embed", None)
    for part in (getattr(positions, "batch_norm", None), *getattr(positions, "layers", ())):
        if part is not None:
            _hook_once(part, _zero_padding)


def _hook_once(module: nn.Module, hook: Callable[..., Tensor]) -> None:
    if hook not in module._forward_hooks.values():
        module.register_forward_hook(hook)


@contextmanager
def padding_of(sample_lengths: Tensor, frame_mask: Tensor) -> Iterator[None]:
    """Say what is speech in the forward pass inside: (batch,) samples and a (batch, frames) bool mask."""
    tokens = _sample_lengths.set(sample_lengths), _frame_mask.set(frame_mask)
    try:
        yield
    finally:
        _sample_lengths.reset(tokens[0])
        _frame_mask.reset(tokens[1])


def mask_of_lengths(lengths: Tensor, size: int) -> Tensor:
    """(batch,) lengths to a (batch, size) bool mask."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def _masked_group_norm(norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """The norm of one channel a group, with the statistics of the frames that see nothing but speech."""
    lengths = _sample_lengths.get()
    if lengths is None:
        return output
    states = inputs[0].float()
    mask = mask_of_lengths((lengths - norm.time_kernel) // norm.time_stride + 1, states.shape[-1])[:, None]
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    centred = states - (states * mask).sum(-1, keepdim=True) / count
    variance = (centred.square() * mask).sum(-1, keepdim=True) / count
    normed = centred * (variance + norm.eps).rsqrt()
    return (normed * norm.weight[:, None].float() + norm.bias[:, None].float()).to(output.dtype)


def _zero_padding(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    mask = _frame_mask.get()
    return output if mask is None else output.masked_fill(~mask[:, None], 0)
