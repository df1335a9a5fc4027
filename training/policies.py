"""How much of each pretrained backbone trains: its top layers, LoRA matrices, all of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from .arguments import ArgumentError, TrainingArguments, refuse_unknown_names
from .momentum import is_frozen

# Encoders that hold their norm before the list of layers and apply it after them.
_NORM_COMES_LAST = "StableLayerNorm"
# Fields of LoraConfig whose result the merged weights could not hold, or transformers could not load as an adapter
# (of DoRA its load_adapter leaves the magnitudes out, transformers 5.23).
_NOT_EXPORTABLE = (
    "inference_mode",
    "layer_replication",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
)
# The other initialisations of PEFT change the frozen weights, so that the adapter would not fit the original backbone.
_LORA_INITIALISATIONS = (True, False, "gaussian", "orthogonal")


def apply_policies(arguments: TrainingArguments, model: SpeechImageRetrievalModel) -> None:
    """Freeze both backbones as far as asked for, and add their LoRA matrices.

    Raises:
        ArgumentError: a backbone has fewer layers, or its LoRA is impossible.
    """
    _apply("speech", model.speech_backbone, arguments.trainable_speech_layers, arguments.speech_lora)
    _apply("vision", model.vision_backbone, arguments.trainable_vision_layers, arguments.vision_lora)


def _apply(side: str, backbone: PreTrainedModel, count: int | None, lora: dict[str, Any] | None) -> None:
    if count is None and lora is None:
        return
    levels = backbone_levels(backbone)
    if count and count >= len(levels):
        raise ArgumentError(
            f"trainable_{side}_layers: {type(backbone).__name__} has {len(levels) - 1} layers, not {count}"
        )
    backbone.requires_grad_(False)
    if lora is not None:
        _add_lora(f"{side}_lora", backbone, lora)
    for level in levels[len(levels) - (count or 0) :]:
        for parameter in level:
            parameter.requires_grad_(True)
    if any(parameter.requires_grad for parameter in backbone.parameters()):
        _never_drop_layers(backbone)


def _never_drop_layers(backbone: PreTrainedModel) -> None:
    # LayerDrop is drawn by the encoder, for frozen layers too.
    for name in ("layerdrop", "encoder_layerdrop"):
        if hasattr(backbone.config, name):
            setattr(backbone.config, name, 0.0)
    for part in backbone.modules():
        if isinstance(getattr(part, "layerdrop", None), float):
            part.layerdrop = 0.0


def backbone_levels(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """A backbone's parameters from the bottom up: its front end, then one level per layer.

    What comes after the last layer (a final norm) belongs to that layer. Of a backbone that stands on another, as a
    Q-Former on its vision transformer, everything before its first layer belongs to that layer.
    """
    parts = [part for part in backbone.children() if isinstance(part, PreTrainedModel) and len(_encoder_layers(part))]
    if len(parts) < 2:
        return _part_levels(backbone, backbone.parameters())
    inside = {id(parameter) for part in parts[:-1] for parameter in part.parameters()}
    *lower, top = parts
    levels = [_part_levels(part, part.parameters()) for part in lower]
    # Learned queries belong to no part: they are what the last one reads.
    levels.append(_part_levels(top, (p for p in backbone.parameters() if id(p) not in inside)))
    joined = levels[0]
    for front, first, *others in levels[1:]:
        joined += [front + first, *others]
    return joined


def _part_levels(part: nn.Module, parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    layers = _encoder_layers(part)
    number_of = {id(parameter): number for number, layer in enumerate(layers, 1) for parameter in layer.parameters()}
    last = _norms_applied_last(part, layers)
    levels: list[list[nn.Parameter]] = [[] for _ in range(len(layers) + 1)]
    outside = 0
    for parameter in parameters:
        if id(parameter) in number_of:
            outside = len(layers)  # what is registered after the layers is applied after them
            levels[number_of[id(parameter)]].append(parameter)
        else:
            levels[len(layers) if id(parameter) in last else outside].append(parameter)
    return levels


def _norms_applied_last(part: nn.Module, layers: nn.ModuleList) -> set[int]:
    """Identities of the parameters of norms that are registered before the layers and applied after them."""
    for encoder in part.modules():
        named = _NORM_COMES_LAST in type(encoder).__name__
        if named and any(child is layers for child in encoder.children()):
            norms = (child for child in encoder.children() if isinstance(child, nn.LayerNorm))
            return {id(parameter) for norm in norms for parameter in norm.parameters()}
    return set()


def _encoder_layers(backbone: nn.Module) -> nn.ModuleList:
    """The last list of layers that is not part of another list: a front end's convolutions come before it."""
    lists = {name: part for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList)}
    outermost = [part for name, part in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    return outermost[-1] if outermost else nn.ModuleList()


def _add_lora(where: str, backbone: PreTrainedModel, options: dict[str, Any]) -> None:
    """Put LoRA matrices beside the weights that `options`, the fields of `peft.LoraConfig`, name."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ArgumentError(f"{where} needs the package peft: pip install peft") from error
    known = [spec.name for spec in fields(LoraConfig) if spec.init and spec.name not in _NOT_EXPORTABLE]
    refuse_unknown_names(options, known, where)
    if options.get("init_lora_weights", True) not in _LORA_INITIALISATIONS:
        raise ArgumentError(f"{where}: init_lora_weights must be one of {_LORA_INITIALISATIONS}")
    targets = options.get("target_modules")
    names = [f".{name}" for name, _ in backbone.named_modules()]
    for target in targets if isinstance(targets, (list, tuple)) else ():
        if not any(name.endswith(f".{target}") for name in names):
            raise ArgumentError(f"{where}: no module is named {target!r}. {_linear_modules(backbone)}")
    try:
        backbone.add_adapter(LoraConfig(**options))
    except (ImportError, TypeError, ValueError) as error:
        raise ArgumentError(f"{where}: {' '.join(str(error).split())} {_linear_modules(backbone)}") from error
    # WavLM hands the weights of its attention to a function and so would leave the matrices beside them out.
    for part in backbone.modules():
        if type(part).__name__ == "WavLMAttention" and any(is_lora(name) for name, _ in part.named_parameters()):
            raise ArgumentError(
                f"{where}: WavLM's attention cannot have LoRA; target intermediate_dense and output_dense"
            )


def _linear_modules(backbone: nn.Module) -> str:
    names = sorted({name.rpartition(".")[2] for name, part in backbone.named_modules() if isinstance(part, nn.Linear)})
    return f"The linear modules of {type(backbone).__name__} are {', '.join(names)}."


def is_lora(name: str) -> bool:
    """Whether a parameter of this name was added by LoRA."""
    return ".lora_" in f".{name}"


def keep_frozen_in_evaluation(model: SpeechImageRetrievalModel) -> None:
    """Frozen parts of the backbones behave as in evaluation: no dropout, fixed batch statistics. So does what has no
    parameters and comes before a frozen first layer.

    A layer with LoRA matrices trains, and with it its dropout. A backbone that trains in part also keeps the masking
    that its configuration asks for (`mask_time_prob`, `mask_feature_prob`): it is drawn at the frozen input, and the
    trained layers are what it regularises. One that is frozen as a whole masks nothing.
    """
    for backbone in (model.speech_backbone, model.vision_backbone):
        for part in backbone.modules():
            if is_frozen(part):
                part.eval()
        for part in (part for part in backbone.modules() if isinstance(part, PreTrainedModel)):
            layers = _encoder_layers(part)
            if len(layers) and is_frozen(layers[0]):
                _outside_in_evaluation(part, layers)


def _outside_in_evaluation(backbone: nn.Module, layers: nn.ModuleList) -> None:
    inside = {id(part) for part in layers.modules()}
    for part in backbone.modules():
        if id(part) not in inside and not any(True for _ in part.parameters()):
            part.eval()
