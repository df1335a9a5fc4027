"""The few stretches of a recording that a match rests on most."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_LONGEST = 0.7  # seconds, that of a long word
_SMOOTHED = (
    0.06  # seconds over which neighbouring tokens of 0.02 s are averaged: one of them is no sound that is heard
)
_FAINT = 0.15  # of the highest relevance: what lies below is not worth showing


class Stretch(NamedTuple):
    """Speech tokens from `first` up to, not including, `end`."""

    first: int
    end: int


def salient_stretches(relevance: np.ndarray, edges: np.ndarray, most: int = 4) -> list[Stretch]:
    """Up to `most` stretches around the peaks of relevance, in the order of time; they do not overlap.

    A stretch reaches to where relevance has fallen to half of its peak, and is not longer than a long word.

    Args:
        relevance: (tokens,); what is negative counts as none.
        edges: (tokens + 1,) seconds where they begin, and where the last one ends.
    """
    density = _smoothed(relevance.clip(0) / np.diff(edges), edges)
    faintest = max(_FAINT * density.max(), np.finfo(np.float32).tiny)
    free = density >= faintest
    stretches: list[Stretch] = []
    while len(stretches) < most and free.any():
        peak = int(np.where(free, density, -1).argmax())
        if density[peak] < density[max(0, peak - 1) : peak + 2].max():  # the slope of a stretch found before
            free[peak] = False
            continue
        stretch = _around(peak, density, free, edges)
        free[stretch.first : stretch.end] = False
        stretches.append(stretch)
    return sorted(stretches)


def _smoothed(density: np.ndarray, edges: np.ndarray) -> np.ndarray:
    reach = round(_SMOOTHED / 2 / float(np.median(np.diff(edges))))
    kernel = np.ones(2 * reach + 1)
    sums, counts = (
        np.convolve(values, kernel)[reach : reach + len(density)] for values in (density, np.ones_like(density))
    )
    return sums / counts


def _around(peak: int, density: np.ndarray, free: np.ndarray, edges: np.ndarray) -> Stretch:
    first, end = peak, peak + 1
    while True:
        grown = {first - 1: Stretch(first - 1, end), end: Stretch(first, end + 1)}
        fitting = [
            token
            for token, stretch in grown.items()
            if 0 <= token < len(density)
            and free[token]
            and density[token] >= density[peak] / 2
            and edges[stretch.end] - edges[stretch.first] <= _LONGEST
        ]
        if not fitting:
            return Stretch(first, end)
        first, end = grown[max(fitting, key=lambda token: density[token])]
