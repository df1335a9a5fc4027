"""Why a recording and a picture match: which stretch of the speech looked at which part of the picture."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .token_places import Box


@dataclass(frozen=True)
class MatchRelevance:
    """What a matching logit rests on; relevance is 0 or more and has no unit, `[CLS]` of the speech is left out.

    Attributes:
        matching_score: the logit of :meth:`model.match`.
        joint: (speech tokens, image tokens) float32, how much the logit rests on speech token i having looked at image
            token j; image tokens are all that were given, `[CLS]` or registers before the others.
        speech: (speech tokens,), the sums of the rows.
        image: (image tokens,), how much it rests on each image token, whoever looked; `[CLS]` of the speech too.
    """

    matching_score: float
    joint: Tensor
    speech: Tensor
    image: Tensor


@dataclass(frozen=True)
class Explanation:
    """A recording, a picture, and what their matching score rests on.

    Attributes:
        picture: RGB, upright. box: the part of it that the model saw, over which the maps lie.
        samples: (samples,) mono float32 at `sampling_rate` Hz.
        edges: (tokens + 1,) seconds where the speech tokens begin, and where the last one ends.
        joint: (tokens, rows, columns) float32, how much the score rests on each stretch having looked at each cell.
        speech: (tokens,) and image: (rows, columns), the same of the stretches and of the cells alone.
        matching_score: matching logit, above 0 for "they match". coarse_score: cosine similarity.
        title: what was said, or the name of the recording. caption: the same of the picture; "" if not known.
    """

    picture: Image.Image
    box: Box
    samples: np.ndarray
    sampling_rate: int
    edges: np.ndarray
    joint: np.ndarray
    speech: np.ndarray
    image: np.ndarray
    matching_score: float
    coarse_score: float
    title: str
    caption: str


def explain_match(model: nn.Module, speech_states: Tensor, image_states: Tensor) -> MatchRelevance:
    """What the matching logit of one recording and one picture rests on, by Grad-CAM over the attention.

    As in ALBEF (Li et al. 2021, section 6.1) a cross-attention weight counts by its product with the gradient of the
    logit, where that is positive, as a mean over heads; layers are added up. What a layer's token holds comes from
    speech tokens that earlier self-attention mixed, and is traced back to them by the same products, as in Chefer et
    al. 2021 (arXiv 2103.15679), with rows that add up to 1. So tokens also have their share in what `[CLS]` alone
    looks at in the last layer, where no other token reaches the logit.

    The model itself is not touched; other threads may use it meanwhile.

    Args:
        model: a :class:`..modeling.modeling_speech_image_retrieval.SpeechImageRetrievalModel`.
        speech_states: (tokens, width) of one recording without padding, `[CLS]` first.
        image_states: (tokens, width) of one picture.

    Raises:
        ValueError: the model has no multimodal layer, or the logit is not finite.
    """
    if not len(model.multimodal_encoder.layers):
        raise ValueError(
            "This model has no multimodal layer (multimodal_config.num_hidden_layers is 0), so no speech looks at a "
            "picture and there is nothing to explain."
        )
    with torch.inference_mode(False), torch.enable_grad():
        encoder, self_weights = eager_twin(model.multimodal_encoder), []
        for layer in encoder.layers:
            layer.self_attention.register_forward_hook(lambda _, __, output: self_weights.append(output[1]))
        speech, image = (_leaf(states, model) for states in (speech_states, image_states))
        everywhere = torch.ones(speech.shape[:2], dtype=torch.bool, device=speech.device)
        states, cross_weights = encoder(speech, everywhere, image)
        logit = model.matching_head(states[0, 0]).float().squeeze()
        weights = [*self_weights, *cross_weights]
        gradients = torch.autograd.grad(logit, weights)
    if not logit.isfinite():
        raise ValueError(f"The matching score is {logit.item()}. Look for a diverged checkpoint.")
    products = [_positive_product(*pair) for pair in zip(weights, gradients, strict=True)]
    joint = _traced_back(products[: len(self_weights)], products[len(self_weights) :])
    return MatchRelevance(logit.item(), joint[1:], joint[1:].sum(1), joint.sum(0))


def eager_twin(encoder: nn.Module) -> nn.Module:
    """The same weights in modules of their own, in evaluation and with attention that shows its weights."""
    shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    twin = deepcopy(encoder, shared)
    twin.config._attn_implementation = "eager"
    return twin.eval()


def _leaf(states: Tensor, model: nn.Module) -> Tensor:
    return states.detach().to(model.device, model.dtype).clone()[None].requires_grad_()


def _positive_product(weights: Tensor, gradient: Tensor) -> Tensor:
    """(1, heads, queries, keys) to (queries, keys) float32 on the CPU."""
    return (weights.detach() * gradient)[0].float().relu().mean(0).cpu()


def _traced_back(self_products: list[Tensor], cross_products: list[Tensor]) -> Tensor:
    """(speech tokens, image tokens) of the speech tokens that went into the multimodal encoder."""
    joint = torch.zeros_like(cross_products[0])
    origin = torch.eye(len(joint))
    for mixed, looked in zip(self_products, cross_products, strict=True):
        passed_on = torch.nn.functional.normalize(mixed, p=1, dim=1) + torch.eye(len(mixed))
        origin = torch.nn.functional.normalize(passed_on, p=1, dim=1) @ origin
        joint += origin.T @ looked
    return joint
