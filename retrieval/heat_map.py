"""A heat map over the part of a picture that a model saw."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor

from .token_places import Box

# From no relevance to the most: colour, and how much of the picture it covers.
_STEPS = np.array([0.0, 0.2, 0.5, 1.0])
_COLOURS = np.array([ImageColor.getrgb(name) for name in ("#ffe98a", "#ffd23f", "#f77f00", "#c1121f")], dtype=float)
_COVER = np.array([0.0, 0.25, 0.6, 0.75])
_TINY = float(np.finfo(np.float32).tiny)
_UNSEEN = 0.75  # of white over what the model did not see


def heated(picture: Image.Image, relevance: np.ndarray, cells: Box, seen: Box) -> Image.Image:
    """An RGB picture under the heat of its cells, smooth between their middles and scaled to the hottest.

    Args:
        relevance: (rows, columns) of the cells; what is 0 or negative leaves the picture as it is.
        cells: where they lie, in pixels of `picture`. Cells at its border go on outwards.
        seen: what the model saw, in pixels of `picture`. All around is paled.
    """
    left, top, right, bottom = (round(edge) for edge in seen)
    inside = (max(0, left), max(0, top), min(picture.width, right), min(picture.height, bottom))
    heat = _enlarged(relevance.clip(0), cells, inside).clip(0) / max(float(relevance.max()), _TINY)
    colours = np.stack([np.interp(heat, _STEPS, channel) for channel in _COLOURS.T], axis=-1)
    cover = np.interp(heat, _STEPS, _COVER)[..., None]
    plain = np.asarray(picture.crop(inside), dtype=float)
    paled = Image.blend(picture, Image.new("RGB", picture.size, "white"), _UNSEEN)
    paled.paste(Image.fromarray((plain * (1 - cover) + colours * cover).round().astype(np.uint8)), inside[:2])
    return paled


def _enlarged(values: np.ndarray, cells: Box, inside: tuple[int, int, int, int]) -> np.ndarray:
    """Values of cells at each pixel of a part of the picture."""
    rows, columns = values.shape
    width, height = (cells.right - cells.left) / columns, (cells.bottom - cells.top) / rows
    around = Image.fromarray(np.pad(values, 2, mode="edge").astype(np.float32))
    left, top = cells.left - 2 * width, cells.top - 2 * height
    part = (
        (inside[0] - left) / width,
        (inside[1] - top) / height,
        (inside[2] - left) / width,
        (inside[3] - top) / height,
    )
    return np.asarray(
        around.resize((inside[2] - inside[0], inside[3] - inside[1]), Image.Resampling.BICUBIC, box=part)
    )
