"""Explanation of one recording and one picture, whether they are encoded here or were kept in an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..evaluation.embedding import inference, inputs_for
from ..processing.media import load_image, load_speech
from .encoding import encode_inputs
from .explanation import Explanation, explain_match
from .query_places import query_patches
from .sources import Modality
from .token_places import View, image_grid, speech_token_edges, view_of

Processor = Callable[..., Mapping[str, Tensor]]


class Encoded(NamedTuple):
    """One item on the CPU: a (projection,) embedding and (tokens, width) states without padding."""

    embedding: Tensor
    states: Tensor


def explain_pair(
    model: nn.Module, processor: Processor, speech: Any, picture: Any, *, title: str = "", caption: str = ""
) -> Explanation:
    """Why a recording and a picture match.

    Args:
        speech, picture: whatever the processor reads.
        title, caption: what they are called, see :class:`.explanation.Explanation`.

    Raises:
        ValueError: one of them cannot be read, or the model cannot be explained.
    """
    samples, shown = load_speech(speech, None, processor.sampling_rate), load_image(picture)
    heard, seen = encode_one(model, processor, samples, "speech"), encode_one(model, processor, shown, "image")
    return explain_encoded(model, processor, samples, shown, heard, seen, title=title, caption=caption)


def encode_one(
    model: nn.Module, processor: Processor, medium: np.ndarray | Image.Image, modality: Modality
) -> Encoded:
    """Encode samples at the processor's rate, or a picture."""
    if modality == "speech":
        inputs = processor(audio=[medium], sampling_rate=processor.sampling_rate, return_tensors="pt")
    else:
        inputs = processor(images=[medium], return_tensors="pt")
    embeddings, states = encode_inputs(model, inputs, modality)
    return Encoded(embeddings[0], states.tokens)


def explain_encoded(
    model: nn.Module,
    processor: Processor,
    samples: np.ndarray,
    picture: Image.Image,
    heard: Encoded,
    seen: Encoded,
    *,
    title: str,
    caption: str,
) -> Explanation:
    """The same of what is encoded already: `heard` are the samples at the processor's rate, `seen` is the picture."""
    relevance = explain_match(model, heard.states, seen.states)
    view = view_of(processor.image_processor, *picture.size)
    by_image_token = torch.cat([relevance.joint, relevance.image[None]])
    cells = _on_grid(model, processor, picture, view, by_image_token).numpy()
    return Explanation(
        picture=picture,
        box=view.box,
        samples=samples,
        sampling_rate=processor.sampling_rate,
        edges=speech_token_edges(model, processor, samples),
        joint=cells[:-1],
        speech=relevance.speech.numpy(),
        image=cells[-1],
        matching_score=relevance.matching_score,
        coarse_score=float(heard.embedding @ seen.embedding),
        title=title,
        caption=caption,
    )


def _on_grid(model: nn.Module, processor: Processor, picture: Image.Image, view: View, values: Tensor) -> Tensor:
    """(…, image tokens) to (…, rows, columns) of the cells in the picture."""
    config = model.config.vision_config
    patch_size = None if hasattr(config, "hidden_sizes") else config.patch_size
    if model.config.qformer_config is None:
        grid = image_grid(patch_size, values.shape[-1], view)
        return values[..., -grid.rows * grid.columns :].unflatten(-1, grid)
    with inference(model):
        inputs = inputs_for(model, processor(images=[picture], return_tensors="pt"))
        patches = query_patches(model.vision_backbone, inputs["pixel_values"]).cpu()
    grid = image_grid(patch_size, patches.shape[1], view)
    return (values[..., -len(patches) :] @ patches).unflatten(-1, grid)
