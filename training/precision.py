"""What this machine computes natively."""

from __future__ import annotations

import torch


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware. One that does not emulates it, tens of times slower than
    float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(present for name, present in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
    return False


def resolve_precision(asked: str, device: torch.device) -> str:
    """`bf16` or `no`, for `auto` what is faster on the device."""
    if asked != "auto":
        return asked
    return "bf16" if has_native_bfloat16(device) else "no"
