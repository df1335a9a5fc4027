"""Where in a picture the queries of a BLIP-2 Q-Former look, which have no place of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .explanation import eager_twin


def query_patches(backbone: nn.Module, pixel_values: Tensor) -> Tensor:
    """How the attention of each query is spread over the patches of one picture.

    The cross-attention of the Q-Former as a mean over heads and layers, without what falls on the vision transformer's
    `[CLS]`.

    Args:
        backbone: a :class:`..modeling.image_queries.Blip2ImageQueries`. pixel_values: (1, 3, height, width).

    Returns:
        (queries, patches) float32; rows add up to 1.
    """
    qformer, weights = eager_twin(backbone.qformer), []
    for layer in qformer.encoder.layer:
        if layer.has_cross_attention:
            layer.crossattention.attention.register_forward_hook(lambda _, __, output: weights.append(output[1]))
    with torch.inference_mode():
        tokens = backbone.vision_model(pixel_values).last_hidden_state
        qformer(query_embeds=backbone.query_tokens, encoder_hidden_states=tokens)
    patches = torch.stack(weights).float().mean((0, 1, 2))[:, 1:]
    return patches / patches.sum(1, keepdim=True)
