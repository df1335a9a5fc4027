"""A digest of weights: whether two sets of parameters are the same, without keeping either."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def weights_digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Hexadecimal digest of named tensors: of names, types, shapes and bytes, whatever their order and device."""
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        digests = pool.map(_digest, sorted(parameters, key=lambda item: item[0]))
        return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()


def _digest(item: tuple[str, Tensor]) -> bytes:
    name, part = item
    digest = hashlib.blake2b(f"{name} {part.dtype} {tuple(part.shape)}".encode(), digest_size=16)
    # As bytes, for NumPy has no bfloat16.
    digest.update(part.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.digest()
