"""Pretrained speech and vision encoders out of any checkpoint that holds one, whole or not at all."""

from __future__ import annotations

import re
from inspect import signature
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionConfig, Blip2VisionModel
from transformers.models.whisper.modeling_whisper import WhisperConfig, WhisperEncoder
from transformers.utils import logging

from .configuration_speech_image_retrieval import SpeechImageRetrievalConfig
from .image_queries import Blip2ImageQueries, image_queries_config
from .supported_backbones import check_backbones, check_speech_type, check_vision_type, has_image_cls, refuse_unknown

# Backbones of larger models keep their names there: `encoder` in Whisper, `vision_model` in BLIP-2, CLIP and SigLIP.
_SPEECH_KEYS = {r"^(model\.)?encoder\.": ""}
_VISION_KEYS = {r"^vision_model\.": ""}
# Never read: they stand for masked patches and for poolings that only other heads use.
_NOT_NEEDED = ("mask_token", "pooler.")
# Of `from_pretrained`: what says where a checkpoint comes from. What is made of it is decided here.
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder")
_WHERE_FROM = (
    "Give the Hub name of a model, or a folder with its config.json and weights; without a connection "
    "(HF_HUB_OFFLINE=1) a Hub name must be in the cache."
)


def speech_backbone_config(source: str, **hub_options: Any) -> PreTrainedConfig:
    """The configuration of a checkpoint's speech encoder.

    Raises:
        ValueError: there is no checkpoint, or it is no supported speech encoder.
    """
    config = _config(source, "speech", **hub_options)
    check_speech_type(config, source)
    return config


def vision_backbone_config(source: str, **hub_options: Any) -> PreTrainedConfig:
    """The configuration of a checkpoint's image encoder; of a vision-language model that of its vision tower.

    Raises:
        ValueError: there is no checkpoint, or it has no supported image encoder.
    """
    config = _config(source, "vision", **hub_options)
    tower = getattr(config, "vision_config", None) or config
    check_vision_type(tower, source)
    return tower


def qformer_options(source: str, **hub_options: Any) -> dict[str, Any]:
    """`qformer_config` and `num_query_tokens` of a BLIP-2 checkpoint, for a SpeechImageRetrievalConfig.

    Raises:
        ValueError: the checkpoint has no Q-Former.
    """
    config = _config(source, "vision", **hub_options)
    qformer = getattr(config, "qformer_config", None)
    if qformer is None or config.model_type != "blip-2":
        raise ValueError(
            f"{source} is a {config.model_type} model without a Q-Former: leave qformer out, or name a "
            "BLIP-2 checkpoint."
        )
    return {"qformer_config": qformer, "num_query_tokens": config.num_query_tokens}


def load_speech_backbone(source: str, config: PreTrainedConfig, **hub_options: Any) -> PreTrainedModel:
    """The speech encoder with the weights of a checkpoint, in float32.

    Args:
        config: its configuration, with changes if wanted (dropout, masking).

    Raises:
        ValueError: weights are missing, left over or of another shape; the message names them.
    """
    if isinstance(config, WhisperConfig):
        return _load(WhisperEncoder, source, config, _SPEECH_KEYS, **hub_options)
    return _load(MODEL_MAPPING[type(config)], source, config, None, **hub_options)


def load_vision_backbone(
    source: str,
    config: PreTrainedConfig,
    qformer_config: PreTrainedConfig | None = None,
    num_query_tokens: int = 32,
    **hub_options: Any,
) -> PreTrainedModel:
    """The image encoder, with a Q-Former if one is given, with the weights of a checkpoint, in float32.

    Raises:
        ValueError: weights are missing, left over or of another shape; the message names them.
    """
    if qformer_config is not None:
        composite = image_queries_config(config, qformer_config, num_query_tokens)
        return _load(Blip2ImageQueries, source, composite, None, **hub_options)
    kind = Blip2VisionModel if isinstance(config, Blip2VisionConfig) else MODEL_MAPPING[type(config)]
    return _load(kind, source, config, _VISION_KEYS, **without_pooler(kind), **hub_options)


def without_pooler(kind: type[PreTrainedModel]) -> dict[str, bool]:
    """Options that build a model without the pooler that would never be trained: only token states are used."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in signature(kind.__init__).parameters else {}


def compose_config(
    speech: str,
    vision: str,
    qformer: bool,
    speech_hub_options: dict[str, Any],
    vision_hub_options: dict[str, Any],
    changes: dict[str, Any],
) -> SpeechImageRetrievalConfig:
    """The configuration of a model on the encoders of two checkpoints, with changed fields.

    Raises:
        ValueError: an encoder is not there or not supported, or a field does not exist or has an impossible value.
    """
    _check_hub_options("speech_hub_options", speech_hub_options)
    _check_hub_options("vision_hub_options", vision_hub_options)
    own = {
        "speech_config": speech_backbone_config(speech, **speech_hub_options),
        "vision_config": vision_backbone_config(vision, **vision_hub_options),
        **(qformer_options(vision, **vision_hub_options) if qformer else {}),
    }
    changes = dict(changes)
    try:
        for name in ("speech_config", "vision_config"):
            values = changes.pop(name, None) or {}
            refuse_unknown(values, own[name], name)
            own[name] = type(own[name])(**{**own[name].to_dict(), **values, "dtype": None})
        multimodal = dict(changes.pop("multimodal_config", None) or {})
        if not has_image_cls(own["vision_config"], own.get("qformer_config")):
            multimodal.setdefault("num_image_layers", 1)
        refuse_unknown({**changes, "multimodal_config": multimodal}, SpeechImageRetrievalConfig())
        config = SpeechImageRetrievalConfig(**{**own, **changes}, multimodal_config=multimodal)
    except StrictDataclassError as error:
        raise ValueError(_one_line(error)) from error
    check_backbones(config)
    return config


def _check_hub_options(name: str, options: dict[str, Any]) -> None:
    for option in options:
        if option not in _HUB_OPTIONS:
            raise ValueError(f"{name} cannot hold {option!r}: it takes {', '.join(_HUB_OPTIONS)}.")


def _config(source: str, modality: str, **hub_options: Any) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, **hub_options)
    except StrictDataclassError as error:
        raise ValueError(
            f"The {modality} backbone {source} cannot be loaded: its config.json is wrong. {_one_line(error)}"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        problem = _first_sentence(error)
        raise ValueError(f"The {modality} backbone {source} cannot be loaded: {problem}. {_WHERE_FROM}") from error


def _first_sentence(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _load(
    kind: type[PreTrainedModel],
    source: str,
    config: PreTrainedConfig,
    key_mapping: dict[str, str] | None,
    **options: Any,
) -> PreTrainedModel:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report calls the rest of a larger model unexpected
    try:
        backbone, report = kind.from_pretrained(
            source,
            config=config,
            key_mapping=key_mapping,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except SafetensorError as error:
        raise ValueError(
            f"The weights of {source} are damaged ({_one_line(error)}): download or copy them again."
        ) from error
    except OSError as error:
        problem = _first_sentence(error)
        if "model.safetensors" in problem:  # what transformers says where there are none, or only pickled ones
            raise ValueError(
                f"{source} has no safetensors weights, and pickled ones are not read: download the former, or load "
                "the latter once with transformers and save it again with save_pretrained, then name that folder."
            ) from error
        raise ValueError(f"The weights of {source} cannot be loaded: {problem}. {_WHERE_FROM}") from error
    finally:
        logging.set_verbosity(verbosity)
    _refuse_partial(source, backbone, report)
    return backbone


def _refuse_partial(source: str, backbone: PreTrainedModel, report: dict[str, Any]) -> None:
    # Weights of modules that the backbone has, or of a layer more; all others are the rest of a larger model.
    modules = {_without_numbers(name) for name, _ in backbone.named_modules()} - {""}
    left_over = {key for key in report["unexpected_keys"] if _without_numbers(key).rpartition(".")[0] in modules}
    problems = {
        "lacks": report["missing_keys"],
        "has no place for": left_over,
        "has other shapes of": {key for key, *_ in report["mismatched_keys"]},
    }
    for what, keys in problems.items():
        keys = sorted(key for key in keys if not any(part in key for part in _NOT_NEEDED))
        if keys:
            shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            raise ValueError(
                f"{source} does not fit {type(backbone).__name__}: the load {what} {shown}. Check that weights and "
                "config.json belong together."
            )


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)
