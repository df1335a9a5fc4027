"""Which encoders can be backbones, and what of a configuration is impossible: refused before weights are loaded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.whisper.modeling_whisper import WhisperConfig

from .configuration_speech_image_retrieval import SpeechImageRetrievalConfig

# Each of them gives a clip the same states alone and in a batch, and each of its layers as many frames.
SPEECH_MODEL_TYPES = frozenset(
    {
        "data2vec-audio",
        "hubert",
        "unispeech",
        "unispeech-sat",
        "wav2vec2",
        "wav2vec2-bert",
        "wavlm",
        "whisper",
    }
)
# Each of them is deterministic in evaluation; SigLIP and the convolutional networks have no [CLS].
VISION_MODEL_TYPES = frozenset(
    {
        "blip_2_vision_model",
        "clip_vision_model",
        "convnext",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "resnet",
        "siglip_vision_model",
        "vit",
    }
)


def check_speech_type(config: PreTrainedConfig, name: str) -> None:
    """Refuse what is no supported speech encoder; `name` is what the error calls it.

    Raises:
        ValueError: it is not; the message says what is supported.
    """
    _check_type(config, SPEECH_MODEL_TYPES, f"{name} is a {config.model_type} model, not a supported speech encoder")


def check_vision_type(config: PreTrainedConfig, name: str) -> None:
    """Refuse what is no supported image encoder, as :func:`check_speech_type` does."""
    _check_type(config, VISION_MODEL_TYPES, f"{name} is a {config.model_type} model, not a supported image encoder")


def check_backbones(config: SpeechImageRetrievalConfig) -> None:
    """Refuse backbones, and numbers of their layers, that the model cannot be built on.

    Raises:
        ValueError: an encoder is not supported, an adapter would shorten the last layer's frames, which could not be
            weighed with the others, there is no `[CLS]`, or a layer that is asked for does not exist.
    """
    check_speech_type(config.speech_config, "speech_config")
    check_vision_type(config.vision_config, "vision_config")
    if getattr(config.speech_config, "add_adapter", False):
        raise ValueError(
            f"{config.speech_config.model_type} with add_adapter=True is not supported: set add_adapter=False in "
            "speech_config"
        )
    if (
        not has_image_cls(config.vision_config, config.qformer_config)
        and not config.multimodal_config.num_image_layers
    ):
        raise ValueError(
            f"The {config.vision_config.model_type} backbone has no [CLS]: set multimodal_config.num_image_layers to "
            "at least 1, so that an image transformer adds one."
        )
    weighed_layers(config)
    _check_vision_layer(config)


def weighed_layers(config: SpeechImageRetrievalConfig) -> list[int]:
    """Which hidden states of the speech backbone are weighed."""
    count = speech_layer_count(config.speech_config)
    layers = list(range(count)) if config.speech_layers is None else list(config.speech_layers)
    if max(layers) >= count:
        raise ValueError(
            f"speech_layers names {max(layers)}, but the speech backbone has hidden states 0 to {count - 1}"
        )
    return layers


def speech_layer_count(config: PreTrainedConfig) -> int:
    """How many hidden states a speech backbone of this configuration returns."""
    return (config.encoder_layers if isinstance(config, WhisperConfig) else config.num_hidden_layers) + 1


def has_image_cls(config: PreTrainedConfig, qformer_config: PreTrainedConfig | None) -> bool:
    """Whether the first image token stands for the whole picture: not with a Q-Former, of a feature map or of SigLIP,
    which pools its patches."""
    return qformer_config is None and not hasattr(config, "hidden_sizes") and "siglip" not in config.model_type


def refuse_unknown(values: Mapping[str, Any], config: PreTrainedConfig, where: str = "") -> None:
    """Refuse names that a configuration does not have, of its parts too: transformers would keep any name as an
    attribute, and a misspelt one would silently do nothing.

    Args:
        where: where the values stand in the configuration, for the error; empty for the whole.

    Raises:
        ValueError: there is such a name; the message gives the nearest.
    """
    known = {spec.name for spec in fields(config)} | set(config.attribute_map) | {"model_type"}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"{where or type(config).__name__} has no field {name!r}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
        if isinstance(value, dict) and isinstance(getattr(config, name, None), PreTrainedConfig):
            refuse_unknown(value, getattr(config, name), f"{where}.{name}" if where else name)


def _check_type(config: PreTrainedConfig, supported: frozenset[str], problem: str) -> None:
    if config.model_type not in supported:
        raise ValueError(f"{problem}: choose one of {', '.join(sorted(supported))}.")


def _check_vision_layer(config: SpeechImageRetrievalConfig) -> None:
    layer, count = config.vision_feature_layer, getattr(config.vision_config, "num_hidden_layers", None)
    if layer is None:
        return
    if count is None or config.qformer_config is not None:
        raise ValueError("vision_feature_layer needs a vision transformer without a Q-Former: leave it out")
    if not 0 <= layer <= count:
        raise ValueError(f"vision_feature_layer is {layer}, but the vision backbone has hidden states 0 to {count}")
