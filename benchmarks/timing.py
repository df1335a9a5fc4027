"""How long something takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def timed(work: Callable[..., Result], *arguments: object) -> tuple[float, Result]:
    """Seconds, and what the work returned."""
    started = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - started, result
