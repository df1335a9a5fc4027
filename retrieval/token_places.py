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
    """Rows and columns of cells in a picture; tokens stand for them line by line."""

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


def patch_grid(vision_config: Any, tokens: int, view: View) -> Grid:
    """The grid of a vision transformer's patches.

    Args:
        tokens: all image tokens; those of `[CLS]` and registers come before the patches.

    Raises:
        ValueError: there are fewer tokens than patches.
    """
    down, across = _patch(vision_config)
    grid = Grid(view.height // down, view.width // across)
    if not 0 < grid.rows * grid.columns <= tokens:
        raise ValueError(
            f"{tokens} image tokens are no grid of patches over {view.width} x {view.height} pixels, so where in the "
            "picture they lie is not known."
        )
    return grid


def cells_box(vision_config: Any, grid: Grid, view: View) -> Box:
    """The part of a picture that the cells of a grid lie over; it may reach beyond what the model saw, and beyond the
    picture.

    A cell of ResNet lies around its first pixel: padded convolutions of stride 2 keep every other pixel, the first one
    among them. Patches, and with them the cells of ConvNeXt, begin there.
    """
    down, across, first = _cell(vision_config)
    left, top, right, bottom = view.box
    pixel_across, pixel_down = (right - left) / view.width, (bottom - top) / view.height
    left, top = left + first * pixel_across, top + first * pixel_down
    return Box(left, top, left + grid.columns * across * pixel_across, top + grid.rows * down * pixel_down)


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


def _cell(vision_config: Any) -> tuple[int, int, float]:
    """Height and width of a cell, and where the first one begins, in pixels that the model sees."""
    if vision_config.model_type == "resnet":
        side = 4 * 2 ** (len(vision_config.depths) - 1 + vision_config.downsample_in_first_stage)
        return side, side, (1 - side) / 2
    if vision_config.model_type == "convnext":
        side = vision_config.patch_size * 2 ** (len(vision_config.depths) - 1)
        return side, side, 0.0
    return *_patch(vision_config), 0.0


def _patch(vision_config: Any) -> tuple[int, int]:
    size = vision_config.patch_size
    return (size, size) if isinstance(size, int) else tuple(size)


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
