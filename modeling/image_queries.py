"""BLIP-2's vision transformer read out by its Q-Former: a fixed, small number of image tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Blip2Config, PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.blip_2.modeling_blip_2 import Blip2PreTrainedModel, Blip2QFormerModel, Blip2VisionModel


class Blip2ImageQueries(Blip2PreTrainedModel):
    """Vision transformer, learned queries and Q-Former of a BLIP-2 checkpoint, under the checkpoint's names.

    The queries attend to the image tokens (257 for 224 pixels and patches of 14) and are what remains of them, 32 in
    the published checkpoints: re-ranking and stored states cost an eighth.
    """

    # The text half of the Q-Former.
    _keys_to_ignore_on_load_unexpected = (r"^qformer\.encoder\.layer\.\d+\.(intermediate|output)\.",)

    def __init__(self, config: Blip2Config):
        super().__init__(config)
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Blip2ImageQueries):
            init.normal_(module.query_tokens, std=self.config.qformer_config.initializer_range)

    def forward(self, pixel_values: Tensor) -> BaseModelOutput:
        """(batch, 3, height, width) pixels; `last_hidden_state` is (batch, queries, Q-Former width)."""
        tokens = self.vision_model(pixel_values).last_hidden_state
        queries = self.query_tokens.expand(tokens.shape[0], -1, -1)
        return BaseModelOutput(self.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state)


def image_queries_config(
    vision_config: PreTrainedConfig, qformer_config: PreTrainedConfig, num_query_tokens: int
) -> Blip2Config:
    """What :class:`Blip2ImageQueries` is built from; the text half of the Q-Former is left out."""
    qformer = {**qformer_config.to_dict(), "use_qformer_text_input": False}
    vision = vision_config.to_dict()
    return Blip2Config(vision_config=vision, qformer_config=qformer, num_query_tokens=num_query_tokens)
