"""The three graphs that retrieval is served with, each with an example of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor

_LONGEST_SECONDS = 2.0
_SHARES_OF_LONGEST = (1.0, 0.7, 0.5)  # clips of several lengths, so that the example is padded
_PICTURES = 2


class Graph(NamedTuple):
    """What one graph is traced from.

    module: takes the inputs by name and returns outputs by name.
    inputs: an example.
    dynamic_axes: of each input, which of its axes may have any size.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic_axes: dict[str, tuple[int, ...]]


def serving_graphs(model: SpeechImageRetrievalModel, processor: SpeechImageRetrievalProcessor) -> dict[str, Graph]:
    """`speech_encoder`, `image_encoder` and `matching`, whose inputs are what the first two put out."""
    speech, pictures = _example(processor)
    with torch.no_grad():
        heard, seen = encode_speech(model, **speech), encode_images(model, **pictures)
    clips = torch.arange(len(_SHARES_OF_LONGEST))
    pairs = {
        "speech_states": heard["last_hidden_state"],
        "speech_mask": heard["states_mask"],
        "image_states": seen["last_hidden_state"],
        "speech_rows": clips.repeat_interleave(_PICTURES),
        "image_rows": torch.arange(_PICTURES).repeat(len(clips)),
    }
    time = processor.time_axis + 1
    of_speech = {name: (0, 1 if name == "attention_mask" else time) for name in speech}
    of_pairs = {name: (0, 1) if name in ("speech_states", "speech_mask") else (0,) for name in pairs}
    return {
        "speech_encoder": Graph(_Module(model, encode_speech), speech, of_speech),
        "image_encoder": Graph(_Module(model, encode_images), pictures, {"pixel_values": (0,)}),
        "matching": Graph(_Module(model, match), pairs, of_pairs),
    }


def encode_speech(model: SpeechImageRetrievalModel, **inputs: Tensor) -> dict[str, Tensor]:
    """The processor's speech to `pooler_output` (clips, projection) of unit length, `last_hidden_state` (clips,
    tokens, width) and `states_mask` (clips, tokens) bool, False on padding."""
    output = model.get_speech_features(**inputs)
    return {
        "pooler_output": output.pooler_output,
        "last_hidden_state": output.last_hidden_state,
        "states_mask": output.attention_mask,  # an output must not be called as an input is
    }


def encode_images(model: SpeechImageRetrievalModel, pixel_values: Tensor) -> dict[str, Tensor]:
    """The processor's pictures to `pooler_output` (images, projection) of unit length and `last_hidden_state` (images,
    tokens, width)."""
    output = model.get_image_features(pixel_values)
    return {"pooler_output": output.pooler_output, "last_hidden_state": output.last_hidden_state}


def match(model: SpeechImageRetrievalModel, **inputs: Tensor) -> dict[str, Tensor]:
    """The states of clips and images, and the rows of each pair among them, to `logits` (pairs,)."""
    return {"logits": model.match(**inputs)}


class _Module(nn.Module):
    """A use of the model as a module of its own, which is what can be traced."""

    def __init__(self, model: SpeechImageRetrievalModel, use: Callable[..., dict[str, Tensor]]):
        super().__init__()
        self.model = model
        self.use = use

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return self.use(self.model, **inputs)


def _example(processor: SpeechImageRetrievalProcessor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Noise as the processor gives it to the model: of speech, and of pictures."""
    noise, rate = np.random.default_rng(0), processor.sampling_rate
    longest = min(_LONGEST_SECONDS, processor.max_seconds)
    clips = [noise.normal(0, 0.1, round(share * longest * rate)) for share in _SHARES_OF_LONGEST]
    pictures = list(noise.integers(0, 256, (_PICTURES, 64, 64, 3), dtype=np.uint8))
    speech = processor(audio=clips, sampling_rate=rate, return_tensors="pt")
    return dict(speech), dict(processor(images=pictures, return_tensors="pt"))
