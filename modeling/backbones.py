"""Any speech or vision encoder of transformers behind one call each."""

from __future__ import annotations

import functools
import inspect
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionConfig, Blip2VisionModel
from transformers.models.whisper.modeling_whisper import WhisperConfig, WhisperEncoder, _compute_mask_indices

from .image_queries import Blip2ImageQueries, image_queries_config
from .padding import mask_of_lengths, padding_of
from .pretrained_backbones import without_pooler


class SpeechFrames(NamedTuple):
    """What a speech backbone heard.

    hidden_states: one (batch, frames, width) tensor for the input of the first layer and for every layer's output.
    mask: (batch, frames) bool, False on frames that stand for padding.
    """

    hidden_states: tuple[Tensor, ...]
    mask: Tensor


def build_speech_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """The speech encoder that a configuration describes; of Whisper only the encoder."""
    if isinstance(config, WhisperConfig):
        return WhisperEncoder._from_config(config)
    return AutoModel.from_config(config)


def build_vision_backbone(
    config: PreTrainedConfig, qformer_config: PreTrainedConfig | None, num_query_tokens: int
) -> PreTrainedModel:
    """The image encoder that a configuration describes, read out by a Q-Former if there is one."""
    if qformer_config is not None:
        return Blip2ImageQueries._from_config(image_queries_config(config, qformer_config, num_query_tokens))
    # AutoModel has no entry for BLIP-2's vision model (transformers 5.23).
    if isinstance(config, Blip2VisionConfig):
        return Blip2VisionModel._from_config(config)
    return AutoModel.from_config(config, **without_pooler(MODEL_MAPPING[type(config)]))


def speech_width(config: PreTrainedConfig) -> int:
    """Width of the backbone's hidden states."""
    return config.d_model if isinstance(config, WhisperConfig) else config.hidden_size


def encode_speech_frames(backbone: PreTrainedModel, inputs: Tensor, mask: Tensor | None) -> SpeechFrames:
    """Run a speech backbone.

    Args:
        inputs: (batch, samples) waveform, or (batch, mel bins, mel frames) for Whisper, or (batch, frames, features).
        mask: (batch, samples or frames), 1 on speech and 0 on padding; all speech if None.
    """
    log_mel = isinstance(backbone, WhisperEncoder)
    if mask is None:
        mask = torch.ones(len(inputs), inputs.shape[-1 if log_mel else 1], dtype=torch.long, device=inputs.device)
    if log_mel:
        return _encode_log_mel(backbone, inputs, mask)
    lengths = mask.sum(-1)
    frames, frame_lengths = inputs.shape[1], lengths
    if inputs.dim() == 2:
        frames, frame_lengths = (backbone._get_feat_extract_output_lengths(count) for count in (frames, lengths))
    frame_mask = mask_of_lengths(frame_lengths.clamp(1, frames), frames)
    with padding_of(lengths, frame_mask):
        output = backbone(inputs, attention_mask=mask, output_hidden_states=True)
    states = list(output.hidden_states)
    # Pre-norm encoders (HuBERT large) record their last layer before the final norm.
    states[-1] = output.last_hidden_state
    return SpeechFrames(tuple(states), frame_mask)


def vision_width(config: PreTrainedConfig) -> int:
    """Width of the image tokens; of a hierarchical backbone that of its last stage."""
    return config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size


def encode_images(backbone: PreTrainedModel, pixel_values: Tensor, layer: int | None = None) -> Tensor:
    """(batch, 3, height, width) pixels to (batch, tokens, width) tokens, or the (batch, width, rows, columns) feature
    map of a convolutional network. Positions of a transformer are interpolated to the size of the pixels.

    Args:
        layer: the hidden state to take, without its mean and scale; None for the backbone's output.
    """
    size = getattr(backbone.config, "image_size", None)
    resized = isinstance(size, int) and tuple(pixel_values.shape[-2:]) != (size, size)
    options = {"interpolate_pos_encoding": True} if resized and _interpolates(type(backbone)) else {}
    if layer is None:
        return backbone(pixel_values, **options).last_hidden_state
    states = backbone(pixel_values, output_hidden_states=True, **options).hidden_states[layer]
    return nn.functional.layer_norm(states, states.shape[-1:])


@functools.cache
def _interpolates(kind: type[PreTrainedModel]) -> bool:
    """Whether a model must be asked to interpolate its positions; DINO does it unasked."""
    return "interpolate_pos_encoding" in inspect.signature(inspect.unwrap(kind.forward)).parameters


def grid_positions(rows: int, columns: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal positions of a feature map's cells, (rows * columns, width): half the width for each axis."""
    quarter = width // 4
    frequencies = 100.0 ** -(torch.arange(quarter, device=like.device) / quarter)
    down, across = (torch.arange(size, device=like.device)[:, None] * frequencies for size in (rows, columns))
    down, across = (torch.cat([angles.sin(), angles.cos()], dim=1) for angles in (down, across))
    grid = torch.cat([down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)], dim=2)
    return nn.functional.pad(grid.flatten(0, 1), (0, width - 4 * quarter)).to(like.dtype)


def _encode_log_mel(encoder: WhisperEncoder, features: Tensor, mask: Tensor) -> SpeechFrames:
    """Whisper's encoder on just the mel frames there are, with padding masked.

    `WhisperEncoder.forward` insists on 30 s and has no mask. Here padding is zeroed wherever a convolution could carry
    it into speech, so a clip gives the same states alone and in a batch.
    """
    config = encoder.config
    longest = encoder.embed_positions.num_embeddings * encoder.conv2.stride[0]
    if features.shape[-1] > longest:
        raise ValueError(
            f"{features.shape[-1]} mel frames exceed the {longest} that this speech encoder has positions for"
        )
    padding = mask[:, None] == 0
    features = _spec_augment(features, mask, config) if encoder.training else features
    hidden = nn.functional.gelu(encoder.conv1(features.masked_fill(padding, 0))).masked_fill(padding, 0)
    hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    frames = hidden.shape[1]
    frame_mask = mask[:, :: encoder.conv2.stride[0]].bool()
    hidden = hidden + encoder.embed_positions.weight[:frames].to(hidden.dtype)
    # Of the first layer: an encoder whose top layers alone train is not in evaluation, but its input is.
    hidden = nn.functional.dropout(hidden, p=encoder.dropout, training=encoder.layers[0].training)
    attention_mask = create_bidirectional_mask(config=config, inputs_embeds=hidden, attention_mask=frame_mask)
    states = [hidden]
    for layer in encoder.layers:
        hidden = layer(hidden, attention_mask)
        states.append(hidden)
    states[-1] = encoder.layer_norm(hidden)
    return SpeechFrames(tuple(states), frame_mask)


def _spec_augment(features: Tensor, mask: Tensor, config: WhisperConfig) -> Tensor:
    """SpecAugment as the configuration asks for it (`apply_spec_augment`, `mask_time_*`, `mask_feature_*`)."""
    if not config.apply_spec_augment:
        return features
    batch, bins, frames = features.shape
    blank = torch.zeros(batch, bins, frames, dtype=torch.bool, device=features.device)
    if config.mask_time_prob > 0:
        spans = _compute_mask_indices(
            (batch, frames), config.mask_time_prob, config.mask_time_length, mask, config.mask_time_min_masks
        )
        blank |= torch.from_numpy(spans).to(features.device)[:, None]
    if config.mask_feature_prob > 0:
        bands = _compute_mask_indices(
            (batch, bins),
            config.mask_feature_prob,
            config.mask_feature_length,
            min_masks=config.mask_feature_min_masks,
        )
        blank |= torch.from_numpy(bands).to(features.device)[:, :, None]
    return features.masked_fill(blank, 0.0)
