"""What pretrained backbones want to be fed: feature extractor and image processor of a speech and a vision model."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    BitImageProcessorPil,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    SeamlessM4TFeatureExtractor,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

logger = logging.get_logger(__name__)

_WAVEFORM_MODELS = {
    "data2vec-audio",
    "hubert",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    "wavlm",
}
_KINDS_OF_SPEECH = (Wav2Vec2FeatureExtractor, WhisperFeatureExtractor, SeamlessM4TFeatureExtractor)


def load_config(repo: str, **hub_options: Any) -> PreTrainedConfig:
    """The model configuration of a Hub repository or a local folder.

    Raises:
        ValueError: there is none that transformers can read.
    """
    try:
        return AutoConfig.from_pretrained(repo, **hub_options)
    except StrictDataclassError as error:
        raise ValueError(f"The configuration of {repo} is wrong: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"The configuration of {repo} cannot be read ({_first_line(error)}) Give the Hub name of a pretrained "
            "model, or a folder with its config.json; without a connection (HF_HUB_OFFLINE=1) a Hub name must be in "
            "the cache."
        ) from error


def load_feature_extractor(
    repo: str, config: PreTrainedConfig, overrides: dict[str, Any] | None = None, **hub_options: Any
) -> FeatureExtractionMixin:
    """The feature extractor of a speech backbone.

    Args:
        repo: Hub name or local folder. Without a preprocessor configuration there, `config` says what is needed.
        config: the backbone's configuration.
        overrides: other values of the feature extractor's options; with `type`, a class name of transformers, they
            are all the options of a feature extractor of that class.
        **hub_options: passed to `from_pretrained`, for instance `revision` or `token`.

    Raises:
        ValueError: the backbone is no speech encoder, or it cannot read what the feature extractor gives.
    """
    extractor = _from_overrides(overrides, FeatureExtractionMixin, "feature_extractor")
    if extractor is None:
        extractor = _changed(_own_feature_extractor(repo, config, **hub_options), overrides, "feature_extractor")
    if not isinstance(extractor, _KINDS_OF_SPEECH):
        raise ValueError(
            f"{repo} is fed by {type(extractor).__name__}; speech backbones can be fed by "
            f"{', '.join(kind.__name__ for kind in _KINDS_OF_SPEECH)}. Choose another backbone."
        )
    _check_speech_features(repo, config, extractor)
    return extractor


def load_image_processor(
    repo: str, config: PreTrainedConfig, overrides: dict[str, Any] | None = None, **hub_options: Any
) -> BaseImageProcessor:
    """The image processor of a vision backbone, on PIL where transformers has that; the arguments are those of
    :func:`load_feature_extractor`.

    Raises:
        ValueError: the backbone is no image encoder, or pictures would come out in a size that it cannot divide into
            patches.
    """
    processor = _from_overrides(overrides, BaseImageProcessor, "image_processor")
    if processor is None:
        processor = _changed(_own_image_processor(repo, config, **hub_options), overrides, "image_processor")
    _check_patches(repo, config, *_final_size(repo, processor))
    return processor


def seconds_of_positions(config: PreTrainedConfig, extractor: FeatureExtractionMixin) -> float:
    """How long a clip a speech backbone has positions for; infinite where they are relative."""
    if config.model_type != "whisper":
        return float("inf")
    # Its second convolution halves the mel frames.
    return config.max_source_positions * 2 * extractor.hop_length / extractor.sampling_rate


def _own_feature_extractor(repo: str, config: PreTrainedConfig, **hub_options: Any) -> FeatureExtractionMixin:
    try:
        return AutoFeatureExtractor.from_pretrained(repo, **hub_options)
    except (OSError, ValueError, ImportError) as error:
        implied = _implied_feature_extractor(config)
        if implied is None:
            raise ValueError(
                f"{repo} ({config.model_type}) has no feature extractor for speech. Give a speech encoder such as "
                "HuBERT or Whisper, or pass feature_extractor={'type': 'Wav2Vec2FeatureExtractor', ...}."
            ) from error
    logger.warning(f"{repo} has no preprocessor configuration: taking the {type(implied).__name__} of its model type.")
    return implied


def _implied_feature_extractor(config: PreTrainedConfig) -> FeatureExtractionMixin | None:
    if config.model_type in _WAVEFORM_MODELS:
        return Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    if config.model_type == "whisper":
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    if config.model_type == "wav2vec2-bert":
        bins = config.feature_projection_input_dim // 2  # two frames make one input
        return SeamlessM4TFeatureExtractor(feature_size=bins, num_mel_bins=bins)
    return None


def _check_speech_features(repo: str, config: PreTrainedConfig, extractor: FeatureExtractionMixin) -> None:
    implied = _implied_feature_extractor(config)
    if implied is not None and not isinstance(extractor, type(implied)):
        raise ValueError(
            f"{repo} ({config.model_type}) cannot read what {type(extractor).__name__} gives: pass "
            f"feature_extractor={{'type': '{type(implied).__name__}', ...}}."
        )
    if config.model_type == "whisper" and extractor.feature_size != config.num_mel_bins:
        raise ValueError(
            f"{repo} reads {config.num_mel_bins} mel bins, and its feature extractor gives {extractor.feature_size}: "
            f"pass feature_extractor={{'feature_size': {config.num_mel_bins}}}."
        )
    if config.model_type == "wav2vec2-bert":
        width = extractor.num_mel_bins * extractor.stride
        if width != config.feature_projection_input_dim:
            raise ValueError(
                f"{repo} reads {config.feature_projection_input_dim} features a frame, and its feature extractor "
                f"gives {width}: pass feature_extractor={{'num_mel_bins': ..., 'feature_size': ...}} that fit its "
                f"stride of {extractor.stride}."
            )


def _own_image_processor(repo: str, config: PreTrainedConfig, **hub_options: Any) -> BaseImageProcessor:
    try:
        return AutoImageProcessor.from_pretrained(repo, backend="pil", **hub_options)
    except (OSError, ValueError, ImportError) as error:
        implied = _implied_image_processor(config)
        if implied is None:
            raise ValueError(
                f"{repo} ({config.model_type}) has no image processor that runs here ({_first_line(error)}) Give an "
                "image encoder such as DINOv2 or BLIP-2, or pass image_processor={'type': 'ViTImageProcessorPil', "
                "...}."
            ) from error
    try:
        # DINOv3's own class needs torchvision; the options it was saved with do not.
        return type(implied).from_pretrained(repo, **hub_options)
    except OSError:
        logger.warning(
            f"{repo} has no preprocessor configuration: taking the {type(implied).__name__} of its model type."
        )
        return implied


def _implied_image_processor(config: PreTrainedConfig) -> BaseImageProcessor | None:
    size = getattr(_vision_config(config), "image_size", None)
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    box = {"height": height, "width": width}
    imagenet = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    match config.model_type:
        case "blip-2" | "blip_2_vision_model":
            return BlipImageProcessorPil(size=box)
        case "clip" | "clip_vision_model":
            return CLIPImageProcessorPil(size={"shortest_edge": min(height, width)}, crop_size=box)
        case "siglip" | "siglip_vision_model":
            return SiglipImageProcessorPil(size=box)
        case "vit":
            return ViTImageProcessorPil(size=box)
        case "dinov2" | "dinov2_with_registers":
            # Its image_size, 518, is that of the last stage of its training; it is used at 224, cut out of 256.
            side = min(224, height, width)
            crop = {"height": side, "width": side}
            return BitImageProcessorPil(size={"shortest_edge": side * 8 // 7}, crop_size=crop, **imagenet)
        case "dinov3_vit":
            return ViTImageProcessorPil(size=box, **imagenet)
    return None


def _final_size(repo: str, processor: BaseImageProcessor) -> tuple[int, ...]:
    """Height and width of every picture that the processor gives."""
    size, crop = getattr(processor, "size", None), getattr(processor, "crop_size", None)
    if getattr(processor, "do_center_crop", None) and processor.do_resize and size and crop:
        height, width = size.height or size.shortest_edge, size.width or size.shortest_edge
        if height and width and (height < crop.height or width < crop.width):
            raise ValueError(
                f"Pictures for {repo} are resized to {height} x {width} and then cropped to {crop.height} x "
                f"{crop.width}, which would add black borders: pass 'do_center_crop': False or a 'crop_size' that "
                "fits in image_processor={...}."
            )
    # Every class names its sizes in its own way; a wide and a high picture tell.
    pictures = [Image.new("RGB", size) for size in ((96, 64), (64, 96))]
    sizes = {processor(picture, return_tensors="np")["pixel_values"].shape[2:] for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(
            f"Pictures for {repo} would keep their proportions and could not form a batch: pass "
            "image_processor={'size': {'height': ..., 'width': ...}, 'do_resize': True}."
        )
    return sizes.pop()


def _check_patches(repo: str, config: PreTrainedConfig, height: int, width: int) -> None:
    patch = getattr(_vision_config(config), "patch_size", None)
    if patch is None:
        return
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    if height % rows == 0 and width % columns == 0:
        return
    sizes = [f"{_multiple(height, rows, up)} x {_multiple(width, columns, up)}" for up in (False, True)]
    fitting = " or ".join(dict.fromkeys(sizes))
    raise ValueError(
        f"Pictures of {height} x {width} pixels do not divide into the {rows} x {columns} patches of {repo}: pass "
        f"image_processor={{...}} with a 'size' (where it crops, a 'crop_size') of {fitting}."
    )


def _multiple(size: int, patch: int, up: bool) -> int:
    return max(patch, (-(-size // patch) if up else size // patch) * patch)


def _vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    return getattr(config, "vision_config", config)


def _from_overrides(overrides: dict[str, Any] | None, base: type, argument: str) -> Any:
    """An object of the class that the overrides name; None if they name none."""
    return None if (overrides or {}).get("type") is None else object_of_type(overrides, base, argument)


def object_of_type(options: dict[str, Any], base: type, argument: str) -> Any:
    """An object of the class of transformers that `options["type"]` names, made with the other options.

    Raises:
        ValueError: there is no such class, it is no `base`, or it has no such option: transformers would keep any.
    """
    name = options.get("type")
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ValueError(f"{argument}: {name!r} is no {base.__name__} of transformers; give its class name as 'type'.")
    others = {option: value for option, value in options.items() if option != "type"}
    _refuse_unknown_options(others, kind(), argument)
    return kind(**others)


def _changed(processor: Any, overrides: dict[str, Any] | None, argument: str) -> Any:
    """The same kind of processor with other values of some options."""
    if not overrides:
        return processor
    _refuse_unknown_options(overrides, processor, argument)
    return type(processor).from_dict({**processor.to_dict(), **overrides})


def _refuse_unknown_options(options: dict[str, Any], processor: Any, argument: str) -> None:
    known = {*processor.to_dict(), *inspect.signature(type(processor).__init__).parameters}
    if isinstance(processor, BaseImageProcessor):
        known |= set(type(processor).valid_kwargs.__annotations__)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"{argument}: {type(processor).__name__} has no option {name!r}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )


def _first_line(error: Exception) -> str:
    """The first sentence of a message of many, with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0].split('. ')[0].rstrip('.:')}." if lines else f"{type(error).__name__}."
