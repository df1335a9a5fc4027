"""A heat map over the part of a picture that a model saw."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor

from .token_places import Box

# From no relevance to the most: colour, and how much of the picture it covers.
_STEPS = np.array([0.0, 0.2, 0.5, 1.0])
_COLOURS = np.array([ImageColor.getrgb(name) for name in ("#ffe98a", "#ffd23f", "#f77f00", "#c1121f")], dtype=float)
_COVER = np.array([0.0, 0.25, 0.6, 0.75])
_UNSEEN = 0.75  # of white over what the model did not see


def heated(picture: Image.Image, cells: np.ndarray, box: Box) -> Image.Image:
    """An RGB picture under the heat of its cells, smooth between their middles and scaled to the hottest.

    Args:
        cells: (rows, columns), 0 or more; all 0 leaves the picture cold.
        box: what they cover, in pixels of `picture`. Around it the picture is paled.
    """
    left, top, right, bottom = (round(edge) for edge in box)
    inside = (max(0, left), max(0, top), min(picture.width, right), min(picture.height, bottom))
    smooth = Image.fromarray(cells.astype(np.float32)).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    visible = tuple(edge - corner for edge, corner in zip(inside, (left, top, left, top), strict=True))
    heat = np.asarray(smooth.crop(visible)).clip(0) / max(float(cells.max()), np.finfo(np.float32).tiny)
    colours = np.stack([np.interp(heat, _STEPS, channel) for channel in _COLOURS.T], axis=-1)
    cover = np.interp(heat, _STEPS, _COVER)[..., None]
    seen = np.asarray(picture.crop(inside), dtype=float)
    paled = Image.blend(picture, Image.new("RGB", picture.size, "white"), _UNSEEN)
    paled.paste(Image.fromarray((seen * (1 - cover) + colours * cover).round().astype(np.uint8)), inside[:2])
    return paled
