"""Muon, for the matrices inside layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .precision import has_native_bfloat16

# Keller Jordan's quintic, steepest at zero: singular values end between about 0.7 and 1.2 after five iterations.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al. 2024), at AdamW's update size (Liu et al. 2025,
    arXiv 2502.16982).

    It computes what `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` does, but matrices of one shape together, and
    in bfloat16 only where the device has it: torch's own is always in bfloat16, whose emulation takes most of a step.
    bfloat16 makes hundredths of differences of rounding.

    Args:
        params: matrices, or groups of them.
        lr: of AdamW, for an update of the same root mean square.
        bfloat16: False orthogonalises in float32 everywhere.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        *,
        bfloat16: bool = True,
    ) -> None:
        self.bfloat16 = bfloat16
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if parameter.ndim != 2:
                raise ValueError(f"Muon is for matrices, not for a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            same_shape: dict[tuple[torch.Size, torch.device], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape.setdefault((parameter.shape, parameter.device), []).append(parameter)
            for (shape, device), parameters in same_shape.items():
                dtype = torch.bfloat16 if self.bfloat16 and has_native_bfloat16(device) else torch.float32
                update = orthogonalized(torch.stack(self._nesterov(parameters, group["momentum"])).to(dtype))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                rate = 0.2 * math.sqrt(max(shape)) * group["lr"]
                torch._foreach_add_(parameters, list(update.to(parameters[0].dtype)), alpha=-rate)

    def _nesterov(self, parameters: list[nn.Parameter], momentum: float) -> list[Tensor]:
        grads = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        return list(torch._foreach_lerp(grads, buffers, momentum))


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, by five Newton-Schulz iterations.

    Args:
        matrices: (matrices, rows, columns)

    Returns:
        The same shape and type.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x.float(), keepdim=True).clamp(min=1e-7).to(x.dtype)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
