"""Where the tokens of a model lie: image tokens in the original picture, speech tokens in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

_CONVNEXT_WARPS_FROM = 384  # its processor crops smaller pictures and squeezes larger ones into a square


class Box(NamedTuple):
    """A part of a picture, in its pixels. Where a processor adds black borders, it is larger than the picture."""

    left: float
    top: float
    right: float
    bottom: float


class View(NamedTuple):
    """What a model sees of a picture: which part of it, and at how many pixels."""

    box: Box
    width: int
    height: int


class Grid(NamedTuple):
    """Rows and columns of cells, read line by line: the last rows x columns image tokens stand for them."""

    rows: int
    columns: int


def view_of(image_processor: Any, width: int, height: int) -> View:
    """What an image processor of transformers shows of a picture of this size.

    Raises:
        ValueError: it resizes in a way that is not known here.
    """
    resized, cut = _resized(image_processor, width, height)
    shown = cut or resized
    # Processors round the corner of what they cut out down to a whole pixel.
    left, top = (resized[0] - shown[0]) // 2, (resized[1] - shown[1]) // 2
    across, down = width / resized[0], height / resized[1]
    box = Box(left * across, top * down, (left + shown[0]) * across, (top + shown[1]) * down)
    return View(box, *shown)


def image_grid(patch_size: Any, tokens: int, view: View) -> Grid:
    """The grid behind image tokens.

    Args:
        patch_size: of a vision transformer, whose `[CLS]` and registers come before the patches; None for a
            convolutional network, whose feature map follows the `[CLS]` of the image transformer.
        tokens: all of them.

    Raises:
        ValueError: the tokens do not form a grid of this shape.
    """
    if patch_size is None:
        rows = max(1, round(((tokens - 1) * view.height / view.width) ** 0.5))
        grid, cells = Grid(rows, (tokens - 1) // rows), tokens - 1
    else:
        down, across = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        grid = Grid(view.height // down, view.width // across)
        cells = min(tokens, grid.rows * grid.columns)
    if not cells or grid.rows * grid.columns != cells:
        raise ValueError(
            f"{tokens} image tokens form no grid over {view.width} x {view.height} pixels, so where in the picture "
            "they lie is not known."
        )
    return grid


def speech_token_edges(
    model: nn.Module, processor: Callable[..., Mapping[str, Tensor]], samples: np.ndarray
) -> np.ndarray:
    """Where the speech tokens of a clip begin and end: (tokens + 1,) seconds, `[CLS]` not counted.

    Frames of the backbone are taken for equally long parts of the clip. That is right within one of them, 0.02 s for
    most backbones, also where the processor splits the clip: its chunks are of nearly equal length.

    Args:
        samples: (samples,) mono, at the rate of the processor.
    """
    rate = processor.sampling_rate
    inputs = processor(audio=[samples], sampling_rate=rate, return_tensors="pt")
    frames = int(_frames(model.speech_backbone, inputs["attention_mask"].sum(1)).sum())
    seconds = max(len(samples) / rate, processor.min_seconds)
    edges = np.linspace(0, seconds, frames + 1)
    return np.append(edges[: -1 : model.config.speech_pooling], seconds)


def _frames(backbone: nn.Module, lengths: Tensor) -> Tensor:
    """How many frames a speech backbone makes of inputs of these lengths."""
    if backbone.config.model_type == "whisper":
        stride = backbone.conv2.stride[0]
        return (lengths + stride - 1) // stride
    if backbone.config.model_type == "wav2vec2-bert":
        return lengths
    return backbone._get_feat_extract_output_lengths(lengths).clamp(min=1)


def _resized(processor: Any, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Width and height of a picture after resizing, and of what is cut out of its middle, None for all of it."""
    size, crop = processor.size, getattr(processor, "crop_size", None)
    cut = (crop.width, crop.height) if getattr(processor, "do_center_crop", None) and crop else None
    if not processor.do_resize:
        return (width, height), cut
    edge = size.shortest_edge
    if edge and hasattr(processor, "crop_pct"):
        if edge >= _CONVNEXT_WARPS_FROM:
            return (edge, edge), cut
        return _by_shortest_edge(int(edge / processor.crop_pct), width, height), cut or (edge, edge)
    if edge and not size.longest_edge:
        return _by_shortest_edge(edge, width, height), cut
    if size.height and size.width:
        return (size.width, size.height), cut
    raise ValueError(
        f"{type(processor).__name__} resizes pictures to {dict(size)}, and which part of them the model then sees is "
        "not known. Explained can be what is resized to a height and a width, or by its shortest edge."
    )


def _by_shortest_edge(edge: int, width: int, height: int) -> tuple[int, int]:
    longer = int(edge * max(width, height) / min(width, height))
    return (edge, longer) if width <= height else (longer, edge)
