"""From training arguments to the objects of a run."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_utils import BaseImageProcessor

from ..modeling.configuration_speech_image_retrieval import SpeechImageRetrievalConfig
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..modeling.supported_backbones import refuse_unknown
from ..processing.pretrained import object_of_type
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from .arguments import ArgumentError, TrainingArguments, refuse_unknown_names
from .embedding_queue import EmbeddingQueue
from .momentum import MomentumTeacher
from .objective import CoarseToFineObjective
from .policies import apply_policies


def build_model(arguments: TrainingArguments, device: torch.device) -> SpeechImageRetrievalModel:
    """The model that the configuration describes, on pretrained backbones or with new weights, frozen as asked for.

    Raises:
        ArgumentError: the configuration has an unknown field or an impossible value, or a backbone cannot be loaded.
    """
    try:
        if arguments.speech_backbone is None:
            model = SpeechImageRetrievalModel(build_config(arguments))
        else:
            model = SpeechImageRetrievalModel.from_backbones(
                **_backbones(arguments), qformer=arguments.qformer, **arguments.model
            )
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise as_argument_error("model", error) from error
    # transformers' own default is SDPA in every part that has it.
    if arguments.attention == "eager" or (arguments.attention == "auto" and device.type == "cpu"):
        model.set_attn_implementation("eager")
    apply_policies(arguments, model)
    if arguments.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def build_config(arguments: TrainingArguments) -> SpeechImageRetrievalConfig:
    """The model's configuration; of pretrained backbones only the configurations are read."""
    try:
        if arguments.speech_backbone is None:
            config = SpeechImageRetrievalConfig(**arguments.model)
            refuse_unknown(arguments.model, config, "model")
        else:
            config = SpeechImageRetrievalModel.config_from_backbones(
                **_backbones(arguments), qformer=arguments.qformer, **arguments.model
            )
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise as_argument_error("model", error) from error
    return config


def as_argument_error(where: str, error: Exception) -> ArgumentError:
    """What a part of the configuration was refused with, in one line that names the part."""
    # Errors of strict configurations have several lines.
    if isinstance(error, ArgumentError):
        return error
    said = " ".join(str(error).split())
    return ArgumentError(said if said.startswith((f"{where} ", f"{where}.")) else f"{where}: {said}")


def _backbones(arguments: TrainingArguments) -> dict[str, Any]:
    return {
        "speech": arguments.speech_backbone,
        "vision": arguments.vision_backbone,
        "speech_hub_options": arguments.speech_hub_options,
        "vision_hub_options": arguments.vision_hub_options,
    }


def build_processor(arguments: TrainingArguments) -> SpeechImageRetrievalProcessor:
    """The processor that the arguments describe: that of the pretrained backbones with other options, or
    `feature_extractor` and `image_processor` with the class name as `type` and the options of that class; and the
    processor's own options."""
    options = dict(arguments.processor)
    known = list(inspect.signature(SpeechImageRetrievalProcessor.__init__).parameters)[1:]
    refuse_unknown_names(options, known, "processor")
    try:
        if arguments.speech_backbone is not None:
            return SpeechImageRetrievalProcessor.from_backbones(**_backbones(arguments), **options)
        for name, base in (("feature_extractor", FeatureExtractionMixin), ("image_processor", BaseImageProcessor)):
            options[name] = object_of_type(options.get(name) or {}, base, name)
        return SpeechImageRetrievalProcessor(**options)
    except ValueError as error:
        raise as_argument_error("processor", error) from error


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


def refuse_sharded_parameters() -> None:
    """On CPUs Accelerate would go on without them in silence."""
    for name, written in (("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed")):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise ArgumentError(
                f"{written} is not supported: every process holds all parameters. Launch without it; for less memory, "
                "lower batch_size and raise gradient_accumulation_steps, or set activation_checkpointing."
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
