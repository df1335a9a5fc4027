"""Where in a picture the queries of a BLIP-2 Q-Former look, which have no place of their own."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn


def query_patches(backbone: nn.Module, pixel_values: Tensor) -> Tensor:
    """How the attention of each query is spread over the patches of one picture.

    The cross-attention of the Q-Former as a mean over heads and layers, without what falls on the vision transformer's
    `[CLS]`.

    Args:
        backbone: a :class:`..modeling.image_queries.Blip2ImageQueries`, in evaluation.
        pixel_values: (1, 3, height, width).

    Returns:
        (queries, patches) float32; rows add up to 1.
    """
    qformer, weights = _showing_its_weights(backbone.qformer), []
    for layer in qformer.encoder.layer:
        if layer.has_cross_attention:
            layer.crossattention.attention.register_forward_hook(lambda _, __, output: weights.append(output[1]))
    with torch.inference_mode():
        tokens = backbone.vision_model(pixel_values).last_hidden_state
        qformer(query_embeds=backbone.query_tokens, encoder_hidden_states=tokens)
    patches = torch.stack(weights).float().mean((0, 1, 2))[:, 1:]
    return patches / patches.sum(1, keepdim=True)


def _showing_its_weights(qformer: nn.Module) -> nn.Module:
    """The same parameters in modules of their own with eager attention: others may use the model meanwhile."""
    shared = {id(tensor): tensor for tensor in (*qformer.parameters(), *qformer.buffers())}
    twin = deepcopy(qformer, shared)
    twin.config._attn_implementation = "eager"
    return twin
