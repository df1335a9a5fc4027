"""Encoding and scoring shared out between the processes of a run: each does its part, and all get the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

Part = TypeVar("Part")
_PATIENCE = timedelta(days=1)  # with a process whose share takes longer
_group: ContextVar[dist.ProcessGroup | None] = ContextVar("the processes that share the work", default=None)


@contextmanager
def shared_between_processes() -> Iterator[None]:
    """Inside, share out what this package encodes and scores. Every process must come here and do the same."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)  # results lie in main memory
    token = _group.set(group)
    try:
        yield
    finally:
        _group.reset(token)
        dist.destroy_process_group(group)


def process_count() -> int:
    """How many share the work; 1 if it is not shared out."""
    group = _group.get()
    return 1 if group is None else dist.get_world_size(group)


def own_share(batches: Sequence[Part]) -> Sequence[Part]:
    """The batches that this process computes: all of them, unless they are shared out."""
    group = _group.get()
    return batches if group is None else batches[dist.get_rank(group) :: process_count()]


def of_all_processes(results: list[Part]) -> list[Part]:
    """The results of all batches in their order, from those of this process's share."""
    group = _group.get()
    if group is None:
        return results
    shares: list[list[Part]] = [[] for _ in range(process_count())]
    dist.all_gather_object(shares, results, group)
    return [shares[number % len(shares)][number // len(shares)] for number in range(sum(map(len, shares)))]
