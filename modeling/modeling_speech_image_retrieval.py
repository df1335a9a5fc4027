"""Speech-image retrieval model: two encoders compared by similarity, one multimodal encoder that re-ranks.

The method is Zhou & Li, "Coarse-to-fine Alignment Makes Better Speech-image Retrieval" (arXiv 2408.13119).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbones import (
    build_speech_backbone,
    build_vision_backbone,
    encode_images,
    encode_speech_frames,
    grid_positions,
    has_image_cls,
    speech_layer_count,
    speech_width,
    vision_width,
)
from .configuration_speech_image_retrieval import SpeechImageMultimodalConfig, SpeechImageRetrievalConfig
from .losses import contrastive_loss, matching_loss, positive_targets, sample_hard_negatives
from .padding import leave_out_padding, mask_of_lengths
from .pretrained_backbones import (
    load_speech_backbone,
    load_vision_backbone,
    qformer_options,
    speech_backbone_config,
    vision_backbone_config,
)


@dataclass
class SpeechFeaturesOutput(BaseModelOutputWithPooling):
    """Encoded speech.

    pooler_output: (batch, projection_dim) float32 embeddings of unit length.
    last_hidden_state: (batch, tokens, hidden_size) speech states, `[CLS]` first.
    attention_mask: (batch, tokens) bool, False on padding.
    """

    attention_mask: Tensor | None = None


@dataclass
class SpeechImageRetrievalOutput(ModelOutput):
    """Output of [`SpeechImageRetrievalModel`].

    loss: SIC + SIM, returned with `return_loss=True`.
    logits_per_speech: (speeches, images) similarities divided by the temperature.
    logits_per_image: its transpose.
    speech_embeds, image_embeds: embeddings of unit length, (batch, projection_dim).
    """

    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    matching_loss: Tensor | None = None
    logits_per_speech: Tensor | None = None
    logits_per_image: Tensor | None = None
    speech_embeds: Tensor | None = None
    image_embeds: Tensor | None = None


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

    def forward(
        self,
        hidden_states: Tensor,
        source: Tensor,
        attention_mask: Tensor | None,
        source_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = (
            projection(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, states in ((self.q_proj, hidden_states), (self.k_proj, source), (self.v_proj, source))
        )
        if source_rows is not None:  # projected before they are repeated
            key, value = key[source_rows], value[source_rows]
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        output, weights = attention(self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout)
        return self.out_proj(output.flatten(2)), weights


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
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        image_states: Tensor | None = None,
        image_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        normed = self.self_attention_norm(hidden_states)
        hidden_states = hidden_states + self.dropout(self.self_attention(normed, normed, attention_mask)[0])
        cross_weights = None
        if image_states is not None:
            normed = self.cross_attention_norm(hidden_states)
            attended, cross_weights = self.cross_attention(normed, image_states, None, image_rows)
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
        elif isinstance(module, SpeechImageRetrievalModel):
            init.zeros_(module.speech_layer_weights)
            init.normal_(module.speech_cls, mean=0.0, std=std)
            if hasattr(module, "image_cls"):
                init.normal_(module.image_cls, mean=0.0, std=std)
            init.constant_(module.logit_scale, -math.log(self.config.temperature))


class SpeechImageEncoder(SpeechImageRetrievalPreTrainedModel):
    """A stack of layers and a final norm: the speech transformer, or with cross-attention the multimodal encoder."""

    config_class = SpeechImageMultimodalConfig

    def __init__(self, config: SpeechImageMultimodalConfig, num_layers: int, cross_attention: bool):
        super().__init__(config)
        self.layers = nn.ModuleList([SpeechImageLayer(config, cross_attention) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor,
        image_states: Tensor | None = None,
        image_rows: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """(batch, tokens, width) states and (batch, tokens) mask to states and each layer's cross weights."""
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=mask
        )
        cross_weights = []
        for layer in self.layers:
            hidden_states, weights = layer(hidden_states, attention_mask, image_states, image_rows)
            cross_weights.append(weights)
        return self.norm(hidden_states), tuple(cross_weights)


class SpeechImageRetrievalModel(SpeechImageRetrievalPreTrainedModel):
    """Speech encoder, image encoder, and the multimodal encoder that decides whether the two match.

    Coarse: :meth:`get_speech_features` and :meth:`get_image_features` give embeddings whose cosine similarity ranks a
    whole gallery. Fine: :meth:`match` scores single pairs from the states of the two encoders.
    """

    def __init__(
        self,
        config: SpeechImageRetrievalConfig,
        speech_backbone: PreTrainedModel | None = None,
        vision_backbone: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        multimodal = config.multimodal_config
        width = multimodal.hidden_size
        if not has_image_cls(config.vision_config, config.qformer_config) and not multimodal.num_image_layers:
            raise ValueError(
                f"The {config.vision_config.model_type} backbone has no [CLS]: set multimodal_config.num_image_layers "
                "to at least 1, so that an image transformer adds one."
            )
        self.speech_backbone = speech_backbone or build_speech_backbone(config.speech_config)
        leave_out_padding(self.speech_backbone)
        self.vision_backbone = vision_backbone or build_vision_backbone(
            config.vision_config, config.qformer_config, config.num_query_tokens
        )
        _check_vision_layer(config)
        self.speech_layers = _checked_layers(config)
        self.speech_layer_weights = nn.Parameter(torch.zeros(len(self.speech_layers)))
        self.speech_input = nn.Linear(speech_width(config.speech_config), width)
        self.speech_cls = nn.Parameter(torch.zeros(1, 1, width))
        self.speech_transformer = SpeechImageEncoder._from_config(
            multimodal, num_layers=multimodal.num_speech_layers, cross_attention=False
        )
        self.image_input = nn.Linear(vision_width(config.qformer_config or config.vision_config), width)
        if multimodal.num_image_layers:
            self.image_cls = nn.Parameter(torch.zeros(1, 1, width))
            self.image_transformer = SpeechImageEncoder._from_config(
                multimodal, num_layers=multimodal.num_image_layers, cross_attention=False
            )
        else:
            self.image_norm = nn.LayerNorm(width, eps=multimodal.layer_norm_eps)
        self.speech_projection = nn.Linear(width, config.projection_dim)
        self.image_projection = nn.Linear(width, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(0.0))
        self.multimodal_encoder = SpeechImageEncoder._from_config(
            multimodal, num_layers=multimodal.num_hidden_layers, cross_attention=True
        )
        self.matching_head = nn.Linear(width, 1)
        self.post_init()

    @classmethod
    def from_backbones(
        cls,
        speech: str,
        vision: str,
        *,
        qformer: bool = False,
        hub_options: dict[str, Any] | None = None,
        **config: Any,
    ) -> SpeechImageRetrievalModel:
        """A model on pretrained encoders, whose weights arrive unchanged in float32; all else is new.

        Args:
            speech: Hub name or folder of a speech encoder: HuBERT, wav2vec 2.0, WavLM, data2vec-audio, wav2vec2-BERT,
                Whisper (its encoder), or any other of transformers that hears a waveform.
            vision: the same of an image encoder: ViT, DINOv2, DINOv3, CLIP, SigLIP, or BLIP-2, of which the vision
                transformer is taken.
            qformer: read a BLIP-2 encoder out by its Q-Former: 32 image tokens instead of 257.
            hub_options: passed to `from_pretrained` of both, for instance `revision` or `token`.
            config: fields of [`SpeechImageRetrievalConfig`]; `speech_config` and `vision_config` as dictionaries
                change fields of the backbones' own configurations.

        Raises:
            ValueError: not an encoder of that kind, or weights that do not fit; the message says which.
        """
        composed = cls.config_from_backbones(speech, vision, qformer=qformer, hub_options=hub_options, **config)
        options = hub_options or {}
        speech_backbone = load_speech_backbone(speech, composed.speech_config, **options)
        vision_backbone = load_vision_backbone(
            vision, composed.vision_config, composed.qformer_config, composed.num_query_tokens, **options
        )
        # One object for model and backbone, so that a setting of the one (attention, output of states) is the other's.
        composed.speech_config = speech_backbone.config
        if qformer:
            composed.vision_config = vision_backbone.vision_model.config
            composed.qformer_config = vision_backbone.qformer.config
        else:
            composed.vision_config = vision_backbone.config
        return cls(composed, speech_backbone, vision_backbone).eval()

    @classmethod
    def config_from_backbones(
        cls,
        speech: str,
        vision: str,
        *,
        qformer: bool = False,
        hub_options: dict[str, Any] | None = None,
        **config: Any,
    ) -> SpeechImageRetrievalConfig:
        """The configuration that :meth:`from_backbones` builds a model of; no weights are loaded."""
        options = hub_options or {}
        own = {
            "speech_config": speech_backbone_config(speech, **options),
            "vision_config": vision_backbone_config(vision, **options),
            **(qformer_options(vision, **options) if qformer else {}),
        }
        for name in ("speech_config", "vision_config"):
            changes = config.pop(name, None) or {}
            own[name] = type(own[name])(**{**own[name].to_dict(), **changes, "dtype": None})
        multimodal = dict(config.pop("multimodal_config", None) or {})
        if not has_image_cls(own["vision_config"], own.get("qformer_config")):
            multimodal.setdefault("num_image_layers", 1)
        return SpeechImageRetrievalConfig(**own, multimodal_config=multimodal, **config)

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        # Recomputed in the backward pass, norms over time would no longer know what is padding.
        for layer in getattr(getattr(self.speech_backbone, "feature_extractor", None), "conv_layers", ()):
            layer.gradient_checkpointing = False

    @property
    def temperature(self) -> Tensor:
        """The learned temperature, a float32 scalar."""
        return torch.exp(-self.logit_scale.float())

    @torch.no_grad()
    def clamp_temperature(self, low: float = 0.001, high: float = 0.5) -> None:
        """Keep the temperature in ALBEF's range; training calls this after each step."""
        self.logit_scale.clamp_(-math.log(high), -math.log(low))

    def get_speech_backbone_features(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        chunk_clips: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the speech backbone alone makes of speech: all that can be kept while it does not train.

        Args: as of :meth:`get_speech_features`.

        Returns:
            (clips, tokens, layers, width), every hidden state of the weighted sum without mean and scale and averaged
            over `speech_pooling` frames, and a (clips, tokens) bool mask.
        """
        inputs = input_values if input_values is not None else input_features
        if inputs is None:
            raise ValueError("get_speech_features needs input_values or input_features from the processor")
        states, mask = encode_speech_frames(self.speech_backbone, inputs, attention_mask)
        states = [nn.functional.layer_norm(states[layer], states[layer].shape[-1:]) for layer in self.speech_layers]
        if chunk_clips is not None:
            states, mask = zip(*(_join_chunks(layer, mask, chunk_clips) for layer in states), strict=True)
            mask = mask[0]
        pooled = [_pool_frames(layer, mask, self.config.speech_pooling) for layer in states]
        return torch.stack([layer for layer, _ in pooled], dim=2), pooled[0][1]

    @can_return_tuple
    def get_speech_features(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        chunk_clips: Tensor | None = None,
        backbone_features: Tensor | None = None,
        **kwargs,
    ) -> SpeechFeaturesOutput:
        """Encode speech.

        Args:
            input_values: (batch, samples) 16 kHz waveform, for backbones that take one.
            input_features: (batch, mel bins, frames) or (batch, frames, features), for the others.
            attention_mask: (batch, samples or frames), 1 on speech and 0 on padding; all speech if not given.
            chunk_clips: (batch,) int64, ascending: which clip a row is a chunk of, where the processor split long
                ones. The backbone hears chunks; their frames are joined in order, so that all else sees whole clips.
            backbone_features: instead of the inputs above, what :meth:`get_speech_backbone_features` made of them,
                with its mask as `attention_mask`.
        """
        if backbone_features is None:
            backbone_features, attention_mask = self.get_speech_backbone_features(
                input_values, input_features, attention_mask, chunk_clips
            )
        weights = self.speech_layer_weights.float().softmax(0).to(backbone_features.dtype)
        tokens = self.speech_input(torch.einsum("btlw,l->btw", backbone_features, weights))
        tokens = torch.cat([self.speech_cls.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        mask = nn.functional.pad(attention_mask.bool(), (1, 0), value=True)
        states, _ = self.speech_transformer(tokens, mask)
        embeds = nn.functional.normalize(self.speech_projection(states[:, 0]).float(), dim=-1)
        return SpeechFeaturesOutput(last_hidden_state=states, pooler_output=embeds, attention_mask=mask)

    def get_image_backbone_features(self, pixel_values: Tensor) -> Tensor:
        """What the vision backbone alone makes of (batch, 3, height, width) pixels: (batch, tokens, width), or the
        (batch, width, rows, columns) feature map of a convolutional network."""
        return encode_images(self.vision_backbone, pixel_values, self.config.vision_feature_layer)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor | None = None, backbone_features: Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encode (batch, 3, height, width) pixels from the processor, or what :meth:`get_image_backbone_features` made
        of them.

        Returns:
            `.pooler_output` (batch, projection_dim) float32 of unit length, `.last_hidden_state` (batch, tokens,
            hidden_size), `[CLS]` first.
        """
        if backbone_features is None:
            backbone_features = self.get_image_backbone_features(pixel_values)
        states = self._image_states(backbone_features)
        embeds = nn.functional.normalize(self.image_projection(states[:, 0]).float(), dim=-1)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=embeds)

    def match(
        self, speech_states: Tensor, speech_mask: Tensor, image_states: Tensor, image_rows: Tensor | None = None
    ) -> Tensor:
        """Matching logits of pairs: row i pairs speech i with image i; above 0 means "they match".

        Args:
            speech_states: (pairs, tokens, hidden_size). speech_mask: (pairs, tokens), 0 on padding.
            image_states: (pairs, tokens, hidden_size), or with `image_rows` (images, tokens, hidden_size).
            image_rows: (pairs,) int64, the image of each pair. Cheaper than repeating `image_states` where several
                pairs have the same image.
        Returns:
            (pairs,) float32.
        """
        states, _ = self.multimodal_encoder(speech_states, speech_mask, image_states, image_rows)
        return self.matching_head(states[:, 0]).squeeze(-1).float()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_ids: Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs,
    ) -> SpeechImageRetrievalOutput:
        """Compare every speech with every image; with `return_loss=True` also train on them as matched pairs.

        Args:
            image_ids: (batch,) integers; rows of the same id show the same image and are no negatives of each other.
                Every row is another image if not given.
        """
        if pixel_values is None:
            raise ValueError("forward needs pixel_values beside the speech; for speech alone: get_speech_features")
        if return_loss and self.training:
            self.clamp_temperature()
        speech = self.get_speech_features(input_values, input_features, attention_mask, return_dict=True)
        image = self.get_image_features(pixel_values, return_dict=True)
        # Not under autocast: bfloat16 would round similarities by more than what separates hard negatives.
        with torch.autocast(speech.pooler_output.device.type, enabled=False):
            logits = speech.pooler_output @ image.pooler_output.T / self.temperature
        output = SpeechImageRetrievalOutput(
            logits_per_speech=logits,
            logits_per_image=logits.T,
            speech_embeds=speech.pooler_output,
            image_embeds=image.pooler_output,
        )
        if return_loss:
            output.contrastive_loss, output.matching_loss = self._in_batch_losses(logits, speech, image, image_ids)
            output = SpeechImageRetrievalOutput(loss=output.contrastive_loss + output.matching_loss, **output)
        return output

    def _in_batch_losses(
        self,
        logits: Tensor,
        speech: SpeechFeaturesOutput,
        image: BaseModelOutputWithPooling,
        image_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        batch = logits.shape[0]
        if logits.shape[1] != batch:
            raise ValueError(f"return_loss needs matched pairs; got {batch} speeches and {logits.shape[1]} images")
        ids = torch.arange(batch, device=logits.device) if image_ids is None else image_ids
        targets = positive_targets(ids, ids)
        same = targets > 0
        image_negative, image_found = sample_hard_negatives(logits, same)
        speech_negative, speech_found = sample_hard_negatives(logits.T, same)
        rows = torch.arange(batch, device=logits.device)
        speech_rows = torch.cat([rows, rows, speech_negative[:, 0]])
        image_rows = torch.cat([rows, image_negative[:, 0], rows])
        weight = torch.cat([torch.ones_like(image_found), image_found, speech_found])[:, 0].float()
        labels = (torch.arange(3 * batch, device=logits.device) < batch).float()
        scores = self.match(
            speech.last_hidden_state[speech_rows],
            speech.attention_mask[speech_rows],
            image.last_hidden_state,
            image_rows,
        )
        return contrastive_loss(logits, logits.T, targets, targets), matching_loss(scores, labels, weight)

    def _image_states(self, features: Tensor) -> Tensor:
        grid = features.shape[-2:] if features.dim() == 4 else None
        tokens = self.image_input(features if grid is None else features.flatten(2).transpose(1, 2))
        if not self.config.multimodal_config.num_image_layers:
            return self.image_norm(tokens)
        if grid is not None:
            tokens = tokens + grid_positions(*grid, width=tokens.shape[-1], like=tokens)
        tokens = torch.cat([self.image_cls.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        everywhere = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return self.image_transformer(tokens, everywhere)[0]


def _checked_layers(config: SpeechImageRetrievalConfig) -> list[int]:
    """Which hidden states of the speech backbone are weighed."""
    count = speech_layer_count(config.speech_config)
    layers = list(range(count)) if config.speech_layers is None else list(config.speech_layers)
    if max(layers) >= count:
        raise ValueError(
            f"speech_layers names {max(layers)}, but the speech backbone has hidden states 0 to {count - 1}"
        )
    return layers


def _check_vision_layer(config: SpeechImageRetrievalConfig) -> None:
    layer, count = config.vision_feature_layer, getattr(config.vision_config, "num_hidden_layers", None)
    if layer is None:
        return
    if count is None or config.qformer_config is not None:
        raise ValueError("vision_feature_layer needs a vision transformer without a Q-Former: leave it out")
    if not 0 <= layer <= count:
        raise ValueError(f"vision_feature_layer is {layer}, but the vision backbone has hidden states 0 to {count}")


def _join_chunks(frames: Tensor, mask: Tensor, chunk_clips: Tensor) -> tuple[Tensor, Tensor]:
    """Frames of consecutive chunks, padding between them left out: (chunks, frames, width) to (clips, frames, width)
    and its mask."""
    clips = int(chunk_clips[-1]) + 1
    lengths = mask.new_zeros(clips, dtype=torch.long).index_add(0, chunk_clips, mask.sum(1))
    joined_mask = mask_of_lengths(lengths, int(lengths.max()))
    joined = frames.new_zeros(*joined_mask.shape, frames.shape[-1])
    return joined.masked_scatter(joined_mask.unsqueeze(-1), frames[mask]), joined_mask


def _pool_frames(frames: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Average each run of `size` frames, padding left out: (batch, ceil(frames / size), width) and its mask."""
    if size == 1:
        return frames, mask
    short = -frames.shape[1] % size
    frames = nn.functional.pad(frames * mask.unsqueeze(-1), (0, 0, 0, short)).unflatten(1, (-1, size))
    counts = nn.functional.pad(mask, (0, short)).unflatten(1, (-1, size)).sum(2)
    return frames.sum(2) / counts.clamp(min=1).unsqueeze(-1).to(frames.dtype), counts > 0


__all__ = [
    "SpeechFeaturesOutput",
    "SpeechImageRetrievalModel",
    "SpeechImageRetrievalOutput",
    "SpeechImageRetrievalPreTrainedModel",
]
