"""Spoken queries, decoded; silence is none, whoever asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..processing.media import is_silent, load_speech


def read_spoken_queries(queries: Sequence[Any], names: Sequence[str] | None, rate: int) -> list[dict[str, Any]]:
    """Each as the processor reads it: `array` (samples,) float32 at `rate` Hz, and `sampling_rate`.

    Args:
        queries: whatever :func:`..processing.media.load_speech` reads.
        names: what errors call them; without it their places.

    Raises:
        ValueError: one cannot be read, or is silent.
    """
    read = []
    for place, query in enumerate(queries):
        name = names[place] if names else f"Query {place}"
        if not isinstance(query, str | Path | bytes | Mapping):
            raise ValueError(f"{name}: samples do not say their rate. Give {{'array': ..., 'sampling_rate': ...}}.")
        try:
            samples = load_speech(query, None, rate)
        except ValueError as error:
            raise ValueError(str(error) if _names_itself(query, error) else f"{name}: {error}") from error
        if is_silent(samples):
            raise ValueError(f"{name}: there is no sound in this recording, or it is too quiet to be heard.")
        read.append({"array": samples, "sampling_rate": rate})
    return read


def _names_itself(query: Any, error: Exception) -> bool:
    return isinstance(query, str | Path) and str(query) in str(error)
