"""Explanation of one recording and one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..evaluation.embedding import inference, inputs_for
from ..processing.media import load_image, load_speech
from .explanation import Explanation, StretchRelevance
from .match_relevance import MatchedPair
from .query_places import query_patches
from .speech_stretches import salient_stretches
from .token_places import Grid, View, cells_box, patch_grid, speech_token_edges, view_of

Processor = Callable[..., Mapping[str, Tensor]]


def explain_pair(
    model: nn.Module, processor: Processor, speech: Any, picture: Any, *, title: str = "", caption: str = ""
) -> Explanation:
    """Why a recording and a picture match, or do not.

    Args:
        speech, picture: whatever the processor reads; bare arrays of samples at its own rate.
        title, caption: what they are called, see :class:`.explanation.Explanation`.

    Raises:
        ValueError: one of them cannot be read, or the model cannot be explained.
    """
    rate = processor.sampling_rate
    samples, shown = load_speech(speech, rate, rate), load_image(picture)
    inputs = inputs_for(model, processor(audio=[samples], images=[shown], sampling_rate=rate, return_tensors="pt"))
    pixels = inputs.pop("pixel_values")
    with inference(model):
        heard, mask = model.get_speech_backbone_features(**inputs)
        seen = model.get_image_backbone_features(pixels)
        said = model.get_speech_features(backbone_features=heard, attention_mask=mask, pooled_only=True)
        shows = model.get_image_features(backbone_features=seen, pooled_only=True)
    view = view_of(processor.image_processor, *shown.size)
    grid, places = _grid(model, seen, pixels, view)
    placeless = seen.shape[1] - grid.rows * grid.columns if places is None and seen.dim() == 3 else 0
    pair = MatchedPair(model, heard, seen, placeless)

    def on_grid(relevance: Tensor) -> np.ndarray:
        return (relevance if places is None else relevance @ places).view(grid).numpy()

    image, of_speech = pair.image_relevance(), pair.speech_relevance().numpy()
    edges = speech_token_edges(model, processor, samples)
    stretches = tuple(
        StretchRelevance(
            float(edges[first]), float(edges[end]), on_grid(image - pair.without(first, end).image_relevance())
        )
        for first, end in salient_stretches(of_speech, edges)
    )
    return Explanation(
        picture=shown,
        seen=view.box,
        cells=cells_box(model.config.vision_config, grid, view),
        samples=samples,
        sampling_rate=rate,
        edges=edges,
        speech=of_speech,
        image=on_grid(image),
        stretches=stretches,
        matching_score=pair.matching_score(),
        coarse_score=float(said.pooler_output[0] @ shows.pooler_output[0]),
        title=title,
        caption=caption,
    )


def _grid(model: nn.Module, seen: Tensor, pixels: Tensor, view: View) -> tuple[Grid, Tensor | None]:
    """The cells in the picture, and of a Q-Former where its queries look, (queries, cells)."""
    if seen.dim() == 4:
        return Grid(*seen.shape[2:]), None
    config = model.config.vision_config
    if model.config.qformer_config is None:
        return patch_grid(config, seen.shape[1], view), None
    with inference(model):
        places = query_patches(model.vision_backbone, pixels)
    # Not of inference: the relevance that it maps is not either.
    return patch_grid(config, places.shape[1], view), places.cpu().clone()
