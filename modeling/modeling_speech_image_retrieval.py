"""Speech-image retrieval model: two encoders compared by similarity, one multimodal encoder that re-ranks.

The method is Zhou & Li, "Coarse-to-fine Alignment Makes Better Speech-image Retrieval" (arXiv 2408.13119).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbones import (
    build_speech_backbone,
    build_vision_backbone,
    encode_images,
    encode_speech_frames,
    grid_positions,
    speech_width,
    vision_width,
)
from .configuration_speech_image_retrieval import SpeechImageRetrievalConfig
from .losses import contrastive_loss, matching_loss, positive_targets, sample_hard_negatives
from .padding import leave_out_padding
from .pretrained_backbones import compose_config, load_speech_backbone, load_vision_backbone
from .speech_frames import join_chunks, pool_frames
from .supported_backbones import check_backbones, weighed_layers
from .transformer_layers import KeysValues, SpeechImageEncoder, SpeechImageRetrievalPreTrainedModel

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")


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
        check_backbones(config)
        super().__init__(config)
        self.hub_options: dict[str, Any] = {}
        multimodal = config.multimodal_config
        width = multimodal.hidden_size
        self.speech_backbone = speech_backbone or build_speech_backbone(config.speech_config)
        leave_out_padding(self.speech_backbone)
        self.vision_backbone = vision_backbone or build_vision_backbone(
            config.vision_config, config.qformer_config, config.num_query_tokens
        )
        self.speech_layers = weighed_layers(config)
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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SpeechImageRetrievalModel):
            std = self.config.multimodal_config.initializer_range
            init.zeros_(module.speech_layer_weights)
            init.normal_(module.speech_cls, mean=0.0, std=std)
            if hasattr(module, "image_cls"):
                init.normal_(module.image_cls, mean=0.0, std=std)
            init.constant_(module.logit_scale, -math.log(self.config.temperature))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> SpeechImageRetrievalModel:
        """As of every model of transformers. Where on the Hub it was found is kept in `hub_options`, so that what lies
        beside it is taken of the same revision."""
        model = super().from_pretrained(*args, **kwargs)
        given = model[0] if isinstance(model, tuple) else model  # with output_loading_info=True
        given.hub_options = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
        return model

    @classmethod
    def from_backbones(
        cls,
        speech: str,
        vision: str,
        *,
        qformer: bool = False,
        speech_hub_options: dict[str, Any] | None = None,
        vision_hub_options: dict[str, Any] | None = None,
        **config: Any,
    ) -> SpeechImageRetrievalModel:
        """A model on pretrained encoders, whose weights arrive unchanged in float32; all else is new.

        Args:
            speech: Hub name or folder of a speech encoder: HuBERT, wav2vec 2.0, WavLM, UniSpeech, data2vec-audio,
                wav2vec2-BERT, or Whisper (its encoder).
            vision: the same of an image encoder: ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP, ResNet, ConvNeXt, or BLIP-2,
                of which the vision transformer is taken.
            qformer: read a BLIP-2 encoder out by its Q-Former: 32 image tokens instead of 257.
            speech_hub_options, vision_hub_options: passed to `from_pretrained`: `revision`, `token`, `cache_dir`,
                `local_files_only`, `force_download`, `proxies`, `subfolder`.
            config: fields of [`SpeechImageRetrievalConfig`]; `speech_config` and `vision_config` as dictionaries
                change fields of the backbones' own configurations.

        Raises:
            ValueError: not a supported encoder of that kind, an unknown field, or weights that do not fit; the message
                says which.
        """
        hub = {"speech_hub_options": speech_hub_options, "vision_hub_options": vision_hub_options}
        composed = cls.config_from_backbones(speech, vision, qformer=qformer, **hub, **config)
        speech_backbone = load_speech_backbone(speech, composed.speech_config, **(speech_hub_options or {}))
        vision_backbone = load_vision_backbone(
            vision,
            composed.vision_config,
            composed.qformer_config,
            composed.num_query_tokens,
            **(vision_hub_options or {}),
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
        speech_hub_options: dict[str, Any] | None = None,
        vision_hub_options: dict[str, Any] | None = None,
        **config: Any,
    ) -> SpeechImageRetrievalConfig:
        """The configuration that :meth:`from_backbones` builds a model of; no weights are loaded."""
        return compose_config(speech, vision, qformer, speech_hub_options or {}, vision_hub_options or {}, config)

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        # Recomputed in the backward pass, norms over time would no longer know what is padding.
        for layer in getattr(getattr(self.speech_backbone, "feature_extractor", None), "conv_layers", ()):
            layer.gradient_checkpointing = False

    @property
    def temperature(self) -> Tensor:
        """The learned temperature, a float32 scalar."""
        return torch.exp(-self.logit_scale.float())

    @property
    def rerank_temperature(self) -> float:
        """What the similarity is divided by where it is added to the matching logit (`score_rule="sim+sic"`): the one
        in the configuration, which training fits on its validation split, or else the learned temperature."""
        fitted = self.config.rerank_temperature
        return self.temperature.item() if fitted is None else float(fitted)

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
            states, mask = zip(*(join_chunks(layer, mask, chunk_clips) for layer in states), strict=True)
            mask = mask[0]
        pooled = [pool_frames(layer, mask, self.config.speech_pooling) for layer in states]
        return torch.stack([layer for layer, _ in pooled], dim=2), pooled[0][1]

    @can_return_tuple
    def get_speech_features(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        chunk_clips: Tensor | None = None,
        backbone_features: Tensor | None = None,
        pooled_only: bool = False,
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
            pooled_only: leave `last_hidden_state` out and save the work for it, where only embeddings are asked for.
        """
        if backbone_features is None:
            backbone_features, attention_mask = self.get_speech_backbone_features(
                input_values, input_features, attention_mask, chunk_clips
            )
        weights = self.speech_layer_weights.float().softmax(0).to(backbone_features.dtype)
        tokens = self.speech_input(torch.einsum("btlw,l->btw", backbone_features, weights))
        tokens = torch.cat([self.speech_cls.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        mask = nn.functional.pad(attention_mask.bool(), (1, 0), value=True)
        states, _ = self.speech_transformer(tokens, mask, first_only=pooled_only)
        embeds = nn.functional.normalize(self.speech_projection(states[:, 0]).float(), dim=-1)
        return SpeechFeaturesOutput(
            last_hidden_state=None if pooled_only else states, pooler_output=embeds, attention_mask=mask
        )

    def get_image_backbone_features(self, pixel_values: Tensor) -> Tensor:
        """What the vision backbone alone makes of (batch, 3, height, width) pixels: (batch, tokens, width), or the
        (batch, width, rows, columns) feature map of a convolutional network."""
        return encode_images(self.vision_backbone, pixel_values, self.config.vision_feature_layer)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        backbone_features: Tensor | None = None,
        pooled_only: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode (batch, 3, height, width) pixels from the processor, or what :meth:`get_image_backbone_features` made
        of them.

        Returns:
            `.pooler_output` (batch, projection_dim) float32 of unit length, `.last_hidden_state` (batch, tokens,
            hidden_size), `[CLS]` first; with `pooled_only` it is left out, and the work for it saved.
        """
        if backbone_features is None:
            backbone_features = self.get_image_backbone_features(pixel_values)
        states = self._image_states(backbone_features, first_only=pooled_only)
        embeds = nn.functional.normalize(self.image_projection(states[:, 0]).float(), dim=-1)
        return BaseModelOutputWithPooling(last_hidden_state=None if pooled_only else states, pooler_output=embeds)

    def project_images(self, image_states: Tensor) -> tuple[KeysValues, ...]:
        """What the multimodal encoder attends to in (images, tokens, hidden_size) states: keys and values of that
        shape for each of its layers. Projected once, they serve several calls of :meth:`match`."""
        return self.multimodal_encoder.keys_values(image_states)

    def match(
        self,
        speech_states: Tensor,
        speech_mask: Tensor,
        image_states: Tensor | tuple[KeysValues, ...],
        image_rows: Tensor | None = None,
        speech_rows: Tensor | None = None,
    ) -> Tensor:
        """Matching logits of pairs: row i pairs speech i with image i; the higher the better they fit.

        Args:
            speech_states: (pairs, tokens, hidden_size), or with `speech_rows` (clips, tokens, hidden_size).
            speech_mask: the same without the last dimension, 0 on padding.
            image_states: (pairs, tokens, hidden_size), or with `image_rows` (images, tokens, hidden_size); or what
                :meth:`project_images` made of them.
            image_rows, speech_rows: (pairs,) int64, the image and the speech of each pair. Cheaper than repeating the
                states where several pairs share one.
        Returns:
            (pairs,) float32.
        """
        projected = image_states if isinstance(image_states, tuple) else self.project_images(image_states)
        states, _ = self.multimodal_encoder(
            speech_states, speech_mask, projected, image_rows, speech_rows, first_only=True
        )
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
        chunk_clips: Tensor | None = None,
        **kwargs,
    ) -> SpeechImageRetrievalOutput:
        """Compare every speech with every image; with `return_loss=True` also train on them as matched pairs.

        Args:
            image_ids: (batch,) integers; rows of the same id show the same image and are no negatives of each other.
                Every row is another image if not given.
            chunk_clips: as of :meth:`get_speech_features`; with it, the speeches are clips and not rows.
        """
        if pixel_values is None:
            raise ValueError("forward needs pixel_values beside the speech; for speech alone: get_speech_features")
        if return_loss and self.training:
            self.clamp_temperature()
        speech = self.get_speech_features(
            input_values, input_features, attention_mask, chunk_clips=chunk_clips, return_dict=True
        )
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

    def _image_states(self, features: Tensor, first_only: bool) -> Tensor:
        grid = features.shape[-2:] if features.dim() == 4 else None
        tokens = self.image_input(features if grid is None else features.flatten(2).transpose(1, 2))
        if not self.config.multimodal_config.num_image_layers:
            return self.image_norm(tokens)
        if grid is not None:
            tokens = tokens + grid_positions(*grid, width=tokens.shape[-1], like=tokens)
        tokens = torch.cat([self.image_cls.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        everywhere = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return self.image_transformer(tokens, everywhere, first_only=first_only)[0]


__all__ = [
    "SpeechFeaturesOutput",
    "SpeechImageRetrievalModel",
    "SpeechImageRetrievalOutput",
    "SpeechImageRetrievalPreTrainedModel",
]
