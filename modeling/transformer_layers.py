"""Stacks of transformer layers with or without cross-attention, and what transformers needs to know of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_speech_image_retrieval import SpeechImageMultimodalConfig, SpeechImageRetrievalConfig

KeysValues = tuple[Tensor, Tensor]


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention written out; returns (batch, queries, heads, head width) and (batch, heads, queries, keys) weights."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def select_rows(states: Tensor, rows: Tensor) -> Tensor:
    """`states[rows]`, as rows of a matrix: gradients that come with their heads apart in memory are then laid out anew
    before they are summed, which on a CPU takes less than half the time of summing them as they come."""
    return states.flatten(1).index_select(0, rows).unflatten(1, states.shape[1:])


class SpeechImageAttention(nn.Module):
    """Multi-head attention, to the states themselves or to those of the other modality."""

    def __init__(self, config: SpeechImageMultimodalConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def keys_values(self, source: Tensor) -> KeysValues:
        """What is attended to: (batch, tokens, width) keys and values, their heads side by side."""
        return self.k_proj(source), self.v_proj(source)

    def forward(
        self,
        hidden_states: Tensor,
        keys_values: KeysValues,
        attention_mask: Tensor | None,
        query_rows: Tensor | None = None,
        source_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        query, (key, value) = self.q_proj(hidden_states), keys_values
        if query_rows is not None:  # projected before they are repeated
            query = select_rows(query, query_rows)
        if source_rows is not None:
            key, value = select_rows(key, source_rows), select_rows(value, source_rows)
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for states in (query, key, value)
        )
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        output, weights = attention(self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout)
        return self.out_proj(output.flatten(2)), weights


class Dropout(nn.Dropout):
    """Dropout whose masks are drawn several times faster on a CPU, where torch draws them one element after another.

    An element needs 16 random bits, of which an int64 has four; the probability is rounded to a multiple of 1 / 65536.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(input)
        lowest, highest = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
        bits = torch.randint(lowest, highest, (-(-input.numel() // 4),)).view(torch.int16)
        dropped = min(max(round(self.p * 65536), 1), 65535)
        kept = bits[: input.numel()].view(input.shape) >= dropped - 32768
        return input * (kept.to(input.dtype) * (65536 / (65536 - dropped)))


class SpeechImageLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer: self-attention, cross-attention to the image if asked for, feed-forward."""

    def __init__(self, config: SpeechImageMultimodalConfig, cross_attention: bool):
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention = SpeechImageAttention(config)
        if cross_attention:
            self.cross_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.cross_attention = SpeechImageAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            ACT2FN[config.hidden_act],
            nn.Linear(config.intermediate_size, config.hidden_size),
        )
        self.dropout = Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        image_keys_values: KeysValues | None = None,
        image_rows: Tensor | None = None,
        speech_rows: Tensor | None = None,
        first_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """With `speech_rows` the states come by clip and leave by pair: what does not depend on the image is computed
        once for all pairs of a clip."""
        normed = queries = self.self_attention_norm(hidden_states)
        if first_only:
            hidden_states, queries = hidden_states[:, :1], normed[:, :1]
            attention_mask = None if attention_mask is None else attention_mask[:, :, :1]
        attended, _ = self.self_attention(queries, self.self_attention.keys_values(normed), attention_mask)
        hidden_states = hidden_states + self.dropout(attended)
        cross_weights = None
        if image_keys_values is not None:
            normed = self.cross_attention_norm(hidden_states)
            attended, cross_weights = self.cross_attention(normed, image_keys_values, None, speech_rows, image_rows)
            if speech_rows is not None:
                hidden_states = select_rows(hidden_states, speech_rows)
            hidden_states = hidden_states + self.dropout(attended)
        normed = self.feed_forward_norm(hidden_states)
        return hidden_states + self.dropout(self.feed_forward(normed)), cross_weights


class SpeechImageRetrievalPreTrainedModel(PreTrainedModel):
    """Initialisation and what transformers needs to know of the model and of its encoder stacks."""

    config_class = SpeechImageRetrievalConfig
    base_model_prefix = "speech_image_retrieval"
    main_input_name = "pixel_values"
    input_modalities = ("audio", "image")
    supports_gradient_checkpointing = True
    # The loss is a mean over the batch: Trainer has to divide it by the accumulation steps itself.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ("SpeechImageLayer",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = getattr(self.config, "multimodal_config", self.config).initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class SpeechImageEncoder(SpeechImageRetrievalPreTrainedModel):
    """A stack of layers and a final norm: the speech transformer, or with cross-attention the multimodal encoder."""

    config_class = SpeechImageMultimodalConfig

    def __init__(self, config: SpeechImageMultimodalConfig, num_layers: int, cross_attention: bool):
        super().__init__(config)
        self.layers = nn.ModuleList([SpeechImageLayer(config, cross_attention) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def keys_values(self, image_states: Tensor) -> tuple[KeysValues, ...]:
        """What the layers attend to in (images, tokens, width) states: of each layer keys and values of that shape."""
        return tuple(layer.cross_attention.keys_values(image_states) for layer in self.layers)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor,
        image_keys_values: tuple[KeysValues, ...] | None = None,
        image_rows: Tensor | None = None,
        speech_rows: Tensor | None = None,
        first_only: bool = False,
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """(batch, tokens, width) states and (batch, tokens) mask to states and each layer's cross weights.

        `image_rows` and `speech_rows` are the image and the row of `hidden_states` of each pair; row i pairs with
        image i without them. With `first_only` the states are those of the first token, (batch, 1, width), and the
        last layer computes no others.
        """
        attention_mask = self._attention_mask(hidden_states, mask)
        # Other kernels take masks of other shapes.
        shortened = first_only and self.config._attn_implementation in ("eager", "sdpa")
        cross_weights = []
        for number, layer in enumerate(self.layers):
            keys_values = None if image_keys_values is None else image_keys_values[number]
            last = shortened and layer is self.layers[-1]
            hidden_states, weights = layer(
                hidden_states, attention_mask, keys_values, image_rows, speech_rows, first_only=last
            )
            cross_weights.append(weights)
            if speech_rows is not None and not last:  # from here on all is by pair
                attention_mask = self._attention_mask(hidden_states, mask.index_select(0, speech_rows))
                speech_rows = None
        return self.norm(hidden_states[:, :1] if first_only else hidden_states), tuple(cross_weights)

    def _attention_mask(self, hidden_states: Tensor, mask: Tensor) -> Tensor | None:
        return create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=mask)
