"""From training arguments to the objects of a run."""

from __future__ import annotations

import difflib
import inspect
import math
from dataclasses import fields
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_utils import BaseImageProcessor

from ..modeling.configuration_speech_image_retrieval import SpeechImageRetrievalConfig
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from .arguments import ArgumentError, TrainingArguments
from .embedding_queue import EmbeddingQueue
from .momentum import MomentumTeacher
from .objective import CoarseToFineObjective


def build_model(arguments: TrainingArguments, device: torch.device) -> SpeechImageRetrievalModel:
    """A model with new weights as the configuration says, frozen as asked for.

    Raises:
        ArgumentError: the configuration has an unknown field or an impossible value.
    """
    try:
        config = SpeechImageRetrievalConfig(**arguments.model)
        _refuse_unknown(arguments.model, config, "model")
        model = SpeechImageRetrievalModel(config)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"model: {error}") from error
    # transformers' own default is SDPA in every part that has it.
    if arguments.attention == "eager" or (arguments.attention == "auto" and device.type == "cpu"):
        model.set_attn_implementation("eager")
    freeze_bottom_layers(model.speech_backbone, arguments.frozen_speech_layers)
    freeze_bottom_layers(model.vision_backbone, arguments.frozen_vision_layers)
    if arguments.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def _refuse_unknown(values: dict[str, Any], config: PreTrainedConfig, where: str) -> None:
    # transformers keeps any name as an attribute, so a misspelt one would silently do nothing.
    known = {spec.name for spec in fields(config)} | set(config.attribute_map) | {"model_type"}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ArgumentError(
                f"model: {where} has no field {name!r}." + (f" Did you mean {near[0]!r}?" if near else "")
            )
        if isinstance(value, dict) and isinstance(getattr(config, name), PreTrainedConfig):
            _refuse_unknown(value, getattr(config, name), f"{where}.{name}")


def freeze_bottom_layers(backbone: nn.Module, count: int) -> None:
    """Freeze a backbone's front end and its first `count` layers; -1 freezes all of it, 0 nothing.

    Raises:
        ArgumentError: it has fewer layers.
    """
    if count == 0:
        return
    if count == -1:
        backbone.requires_grad_(False)
        return
    layers = _encoder_layers(backbone)
    if count > len(layers):
        raise ArgumentError(f"{type(backbone).__name__} has {len(layers)} layers; {count} of them cannot be frozen")
    trained = {id(parameter) for layer in layers[count:] for parameter in layer.parameters()}
    for parameter in backbone.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def keep_frozen_in_evaluation(model: SpeechImageRetrievalModel) -> None:
    """Parts of the backbones without a trained parameter behave as in evaluation: no dropout, no masking, fixed
    batch statistics."""
    for backbone in (model.speech_backbone, model.vision_backbone):
        for part in backbone.modules():
            parameters = list(part.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                part.eval()


def _encoder_layers(backbone: nn.Module) -> nn.ModuleList:
    """The last list of layers that is not part of another list: a front end's convolutions come before it."""
    lists = {name: part for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList)}
    outermost = [part for name, part in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    return outermost[-1] if outermost else nn.ModuleList()


def build_processor(arguments: TrainingArguments) -> SpeechImageRetrievalProcessor:
    """The processor that the arguments describe: `feature_extractor` and `image_processor` with the class name as
    `type` and the options of that class, and the processor's own options."""
    options = dict(arguments.processor)
    known = list(inspect.signature(SpeechImageRetrievalProcessor.__init__).parameters)[1:]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ArgumentError(f"processor has no field {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
    feature_extractor = _transformers_object(options.pop("feature_extractor", None), FeatureExtractionMixin)
    image_processor = _transformers_object(options.pop("image_processor", None), BaseImageProcessor)
    try:
        return SpeechImageRetrievalProcessor(feature_extractor, image_processor, **options)
    except ValueError as error:
        raise ArgumentError(f"processor: {error}") from error


def build_objective(
    arguments: TrainingArguments, model: SpeechImageRetrievalModel, train_rows: int
) -> CoarseToFineObjective:
    """The objective with the parts that the arguments switch on."""
    queue = None
    if arguments.queue_size:
        queue = EmbeddingQueue(min(arguments.queue_size, train_rows), model.config.projection_dim)
    teacher = MomentumTeacher(model, arguments.momentum) if arguments.momentum is not None else None
    return CoarseToFineObjective(
        model,
        queue,
        teacher,
        contrastive_weight=arguments.contrastive_weight,
        matching_weight=arguments.matching_weight,
        listwise_weight=arguments.listwise_weight,
        hard_negatives=arguments.hard_negatives,
        negative_sampling=arguments.negative_sampling,
    )


@torch.no_grad()
def initialize_from_speech_transformer(model: SpeechImageRetrievalModel) -> None:
    """Give every layer of the multimodal encoder the weights of the speech transformer's last layer, its
    cross-attention those of the self-attention: after contrastive steps a better start than random weights."""
    if not len(model.speech_transformer.layers):
        return
    source = model.speech_transformer.layers[-1]
    for layer in model.multimodal_encoder.layers:
        layer.load_state_dict(source.state_dict(), strict=False)
        layer.cross_attention.load_state_dict(source.self_attention.state_dict())
        layer.cross_attention_norm.load_state_dict(source.self_attention_norm.state_dict())


def build_optimizers(arguments: TrainingArguments, model: SpeechImageRetrievalModel) -> list[torch.optim.Optimizer]:
    """AdamW for every trained parameter; with `muon_learning_rate` Muon for the matrices inside layers.

    No weight decay on biases, norms and the temperature. Every group carries its peak rate as `peak_lr`. Muon (Jordan
    et al. 2024) is scaled to AdamW's update size (Liu et al. 2025, arXiv 2502.16982); embeddings and the output layers
    stay with AdamW, as both advise.
    """
    matrices = _hidden_matrices(model) if arguments.muon_learning_rate else set()
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = arguments.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((id(parameter) in matrices, decay), []).append(parameter)

    def settings(of_muon: bool, rate: float) -> list[dict[str, Any]]:
        return [
            {"params": params, "lr": rate, "peak_lr": rate, "weight_decay": decay}
            for (muon, decay), params in groups.items()
            if muon is of_muon
        ]

    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(settings(False, arguments.learning_rate), betas=(0.9, arguments.adam_beta2), fused=True)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(settings(True, arguments.muon_learning_rate), adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def _hidden_matrices(model: SpeechImageRetrievalModel) -> set[int]:
    """Identities of the weights of all linear layers but the last ones."""
    last = (model.speech_projection, model.image_projection, model.matching_head)
    linear = (part for part in model.modules() if isinstance(part, nn.Linear) and part not in last)
    return {id(part.weight) for part in linear if part.weight.requires_grad}


def learning_rate_factor(arguments: TrainingArguments, step: int, total_steps: int) -> float:
    """Share of the peak rate at optimizer step `step` of `total_steps`: linear warm-up, then a cosine."""
    if step < arguments.warmup_steps:
        return (step + 1) / arguments.warmup_steps
    progress = (step - arguments.warmup_steps) / max(1, total_steps - arguments.warmup_steps)
    low = arguments.min_learning_rate_ratio
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _transformers_object(options: dict[str, Any] | None, base: type) -> Any:
    options = dict(options or {})
    name = options.pop("type", None)
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ArgumentError(
            f"processor: {name!r} is no {base.__name__} of transformers; give its class name as `type`"
        )
    return kind(**options)
