"""What a run trains and needs, from its configuration alone: no weights, no corpus, nothing written.

One micro-batch goes forward and backward through a model of fake tensors, which have shapes and no values. What
autograd keeps, and the most that is alive at once, are counted rather than estimated.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BatchFeature

from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from .arguments import ArgumentError, TrainingArguments
from .checkpoint import tensors_to_save
from .matching import HardNegatives
from .momentum import is_frozen
from .muon import Muon
from .objective import Batch, CoarseToFineObjective, EncodedBatch
from .optimizers import build_optimizers
from .policies import apply_policies, keep_frozen_in_evaluation
from .setup import as_argument_error, build_config, build_objective, build_processor, refuse_sharded_parameters

SPEECH, VISION, MULTIMODAL = "speech backbone", "vision backbone", "multimodal encoder"
ENCODERS = "transformers and projections"
PARTS = (SPEECH, VISION, ENCODERS, MULTIMODAL)


@dataclass
class Measured:
    """What one micro-batch needs, beside what is there during the whole run.

    memory: bytes by name: the batch, what autograd keeps of each part, and the most that is alive while a frozen
        backbone or the teacher encodes without gradients.
    highest: the most bytes alive at once in forward and backward pass, batch and gradients included.
    tokens: of each clip and of each picture, as the multimodal encoder reads them.
    """

    memory: dict[str, int]
    highest: int
    tokens: tuple[int, int]


@dataclass
class DryRun(Measured):
    """All that a run needs; with numbers of parameters by part and of `all`, and bytes on disk."""

    parameters: dict[str, int]
    trained: dict[str, int]
    disk: dict[str, int]
    max_seconds: float


class LiveBytes(TorchDispatchMode):
    """Bytes, alive now and at the `peak`, of the storages that operations inside it create, of real or fake tensors;
    those of `known` tensors do not count."""

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self._parts = [ENCODERS]
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._bytes: dict[int, int] = {}
        self._kept: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        passing = _copied_inside(func, args)
        for storage in (part.untyped_storage() for part in tree_leaves(result) if isinstance(part, Tensor)):
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known and key not in self._bytes:
                self._bytes[key] = size
                self.live += size
                self.peak = max(self.peak, self.live + passing)
                weakref.finalize(storage, self._remove, key)
        return result

    def _remove(self, key: int) -> None:
        self.live -= self._bytes.pop(key)
        self._kept.pop(key, None)

    def keep(self, tensor: Tensor) -> Tensor:
        """Pack hook of autograd: a storage belongs to the part that keeps it first."""
        key = tensor.untyped_storage()._cdata
        if key in self._bytes:
            self._kept.setdefault(key, self._parts[-1])
        return tensor

    def kept(self) -> dict[str, int]:
        """Bytes by part of what was given to :meth:`keep` and is alive."""
        return {part: sum(self._bytes[key] for key, of in self._kept.items() if of == part) for part in PARTS}

    def watch(self, module: nn.Module, part: str) -> None:
        """Give a part what a module, or a layer of it that is called alone, keeps."""
        for layer in module.modules():
            layer.register_forward_pre_hook(lambda *_: self._parts.append(part))
            layer.register_forward_hook(lambda *_: self._parts.pop() and None)


def _copied_inside(func: Any, args: Any) -> int:
    """Bytes of the input that norms and convolutions copy, and free again, where it does not lie in order."""
    if func not in (torch.ops.aten.native_layer_norm.default, torch.ops.aten.convolution.default):
        return 0
    in_order = args[0].is_contiguous() or (
        args[0].dim() == 4 and args[0].is_contiguous(memory_format=torch.channels_last)
    )
    return 0 if in_order else args[0].nbytes


def dry_run(arguments: TrainingArguments) -> DryRun:
    """Count it.

    Raises:
        ArgumentError: the configuration is impossible, that of a backbone cannot be read, or what a backbone computes
            depends on more than shapes.
    """
    with torch.device("meta"):
        model = _build(arguments)
        objective = build_objective(arguments, model, train_rows=max(1, arguments.queue_size))
    memory = {
        "weights": _bytes(_tensors(model)),
        "teacher": _bytes({*_tensors(objective.teacher)} - {*_tensors(model)}),
        "queue": _bytes(_tensors(objective.queue)),
    }
    saved = _bytes(tensors_to_save(objective).values())
    processor = build_processor(arguments)
    clip = np.zeros(int(processor.max_seconds * processor.sampling_rate), np.float32)
    example = processor(audio=clip, images=Image.new("RGB", (640, 480)), sampling_rate=processor.sampling_rate)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _make_fake(objective)
        memory["optimizer states"] = sum(
            (1 if isinstance(optimizer, Muon) else 2) * _bytes(group["params"])
            for optimizer in build_optimizers(arguments, model)
            for group in optimizer.param_groups
        )
        measured = _measured_fake(arguments, objective, example)
    gradients = _bytes(parameter for parameter in model.parameters() if parameter.requires_grad)
    return DryRun(
        memory={**memory, "gradients": gradients, **measured.memory},
        highest=sum(memory.values()) + measured.highest,
        tokens=measured.tokens,
        parameters=_count(model, trained_only=False),
        trained=_count(model, trained_only=True),
        # LoRA's matrices are merged into the exported model, and beside it once more.
        disk={"checkpoint": saved + memory["optimizer states"], "exported model": _bytes(model.state_dict().values())},
        max_seconds=processor.max_seconds,
    )


def _on_a_gpu(arguments: TrainingArguments) -> str:
    return "bf16" if arguments.mixed_precision == "auto" else arguments.mixed_precision


def measure(arguments: TrainingArguments, objective: CoarseToFineObjective, batch: Batch) -> Measured:
    """Train on a batch, of real or of fake tensors alike; gradients are left."""
    objective.train()
    keep_frozen_in_evaluation(objective.model)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=_on_a_gpu(arguments) == "bf16")
    with torch.no_grad(), autocast():
        speech, clip_tokens, speech_transient = _encoded(arguments, objective, SPEECH, batch.speech)
        image, picture_tokens, image_transient = _encoded(arguments, objective, VISION, batch.image)
    batch = Batch(speech, image, batch.image_ids, batch.rows)
    inputs = [*speech.values(), *image.values(), batch.image_ids, batch.rows]
    meter = LiveBytes([*_tensors(objective), *inputs])
    meter.watch(objective.model.speech_backbone, SPEECH)
    meter.watch(objective.model.vision_backbone, VISION)
    meter.watch(objective.model.multimodal_encoder, MULTIMODAL)
    with meter:
        # The second micro-batch of a step finds the gradients of the first.
        for _ in range(min(2, arguments.gradient_accumulation_steps)):
            with autocast(), torch.autograd.graph.saved_tensors_hooks(meter.keep, lambda tensor: tensor):
                loss = objective(batch, alpha=arguments.alpha).total
            kept = meter.kept()
            loss.backward()
            del loss
    memory = {"micro-batch": _bytes(inputs), **{f"activations: {part}": size for part, size in kept.items()}}
    memory["encoding without gradients"] = max(speech_transient, image_transient)
    memory["gradient cache"] = _gradient_cache(arguments, objective, batch)
    return Measured(
        memory, memory["micro-batch"] + memory["gradient cache"] + meter.peak, (clip_tokens, picture_tokens)
    )


def _gradient_cache(arguments: TrainingArguments, objective: CoarseToFineObjective, batch: Batch) -> int:
    """Bytes of what the encoders give for all micro-batches of a step, and of its gradients."""
    if arguments.gradient_accumulation_steps == 1:
        return 0
    with torch.no_grad():
        encoded = objective.encode(batch)
    outputs = [part for part in vars(encoded).values() if isinstance(part, Tensor) and part.is_floating_point()]
    return 2 * arguments.gradient_accumulation_steps * _bytes(outputs)


def _encoded(
    arguments: TrainingArguments, objective: CoarseToFineObjective, side: str, inputs: dict[str, Tensor]
) -> tuple[dict[str, Tensor], int, int]:
    """What the objective is given of one side, its number of tokens, and the most that is alive in encoding it if
    training encodes it without gradients."""
    model = objective.model
    with LiveBytes(_tensors(objective)) as meter:
        if side == SPEECH:
            features, mask = model.get_speech_backbone_features(**inputs)
            known = {"backbone_features": features.float(), "attention_mask": mask}
            states = model.get_speech_features(**known, return_dict=True).last_hidden_state
        else:
            known = {"backbone_features": model.get_image_backbone_features(**inputs).float()}
            states = model.get_image_features(**known, return_dict=True).last_hidden_state
    frozen = is_frozen(model.speech_backbone if side == SPEECH else model.vision_backbone)
    cached = arguments.feature_cache and frozen
    without_gradients = not cached and (frozen or objective.teacher is not None)
    return known if cached else inputs, states.shape[1], meter.peak if without_gradients else 0


def _measured_fake(arguments: TrainingArguments, objective: CoarseToFineObjective, example: BatchFeature) -> Measured:
    """:func:`measure` inside a fake mode, on a batch of copies of a processed example."""
    size = arguments.batch_size
    speech = {name: torch.zeros(size, *value.shape[1:], dtype=value.dtype) for name, value in example.items()}
    image = {"pixel_values": speech.pop("pixel_values")}
    if objective.queue is not None:
        full = len(objective.queue.rows)
        objective.queue.enqueued, objective.queue.by_teacher = torch.tensor(full), torch.tensor(full)  # known values
    objective.negatives = partial(_any_negatives, min(arguments.hard_negatives, size))
    for part in objective.modules():
        if isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
            # As CUDA's autocast has it, and the CPU's not (torch.amp, operations by precision).
            part.register_forward_pre_hook(lambda _, args: tuple(arg.float() for arg in args))
    try:
        return measure(arguments, objective, Batch(speech, image, torch.arange(size), torch.arange(size)))
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ArgumentError(f"--dry-run knows shapes, no values, but a backbone's {error.func} needs them") from error


def _any_negatives(count: int, encoded: EncodedBatch, generator: torch.Generator | None) -> HardNegatives:
    """As many as the objective would draw; which ones depends on values."""
    rows, found = (torch.zeros(len(encoded.rows), count, dtype=dtype) for dtype in (torch.long, torch.bool))
    return HardNegatives((rows, found), (rows, found))


def _build(arguments: TrainingArguments) -> SpeechImageRetrievalModel:
    """The model with new weights on the current device, without what depends on drawn values."""
    try:
        config = build_config(arguments)
        for part in (config.speech_config, config.vision_config, config.multimodal_config, config.qformer_config):
            changes = {"layerdrop": 0.0, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
            if arguments.attention != "eager":
                # Fused attention keeps no weights for its dropout, but the CPU has none that is fused.
                changes |= {"attention_dropout": 0.0, "attention_probs_dropout_prob": 0.0}
            for name in (name for name in changes if hasattr(part, name)):
                setattr(part, name, changes[name])
        model = SpeechImageRetrievalModel(config)
    except (KeyError, TypeError, ValueError) as error:
        raise as_argument_error("model", error) from error
    if arguments.attention == "eager":
        model.set_attn_implementation("eager")
    apply_policies(arguments, model)
    if arguments.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def _make_fake(module: nn.Module) -> None:
    """Replace every tensor by one of the CPU, without memory inside a fake mode. What is shared stays shared, which
    `Module.to_empty` does not grant."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in made:
                    empty = torch.empty_like(tensor, device="cpu")
                    parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
                own[name] = made.get(id(tensor))


def _tensors(module: nn.Module | None) -> list[Tensor]:
    return [] if module is None else [*module.parameters(), *module.buffers()]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _count(model: SpeechImageRetrievalModel, trained_only: bool) -> dict[str, int]:
    numbers = dict.fromkeys((*PARTS, "all"), 0)
    parts = {"speech_backbone": SPEECH, "vision_backbone": VISION}
    parts |= {"multimodal_encoder": MULTIMODAL, "matching_head": MULTIMODAL}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trained_only:
            numbers[parts.get(name.partition(".")[0], ENCODERS)] += parameter.numel()
            numbers["all"] += parameter.numel()
    return numbers


def print_dry_run(arguments: TrainingArguments) -> None:
    """Count it and print it; GB are 10^9 bytes."""
    refuse_sharded_parameters()
    run, console = dry_run(arguments), Console()
    table = Table("part", *(Column(name, justify="right") for name in ("parameters", "trained")))
    for part in run.parameters:
        table.add_row(part, *(f"{numbers[part] / 1e6:,.1f} M" for numbers in (run.parameters, run.trained)))
    console.print(table)
    totals = {"sum": sum(run.memory.values()), "most at once": run.highest}
    table = Table("memory of one process", Column("GB", justify="right"))
    for section in (run.memory, totals, {f"on disk: {name}": size for name, size in run.disk.items()}):
        for name, size in section.items():
            table.add_row(name, f"{size / 1e9:.2f}")
        table.add_section()
    console.print(table)
    checkpointing = "with" if arguments.activation_checkpointing else "without"
    attention = "eager" if arguments.attention == "eager" else "fused"
    console.print(
        f"{arguments.batch_size} pairs on a GPU, clips of {run.max_seconds:g} s or {run.tokens[0]} tokens, pictures "
        f"of {run.tokens[1]} tokens, precision {_on_a_gpu(arguments)}, {attention} attention, {checkpointing} "
        "activation checkpointing. What CUDA itself and the fragmentation of its memory take comes on top. A CPU "
        "attends eagerly, which keeps more.",
        highlight=False,
    )
    if not arguments.stream and not Path(arguments.corpus).is_dir():
        console.print(f"There is no corpus {arguments.corpus} yet: see `sir corpus build --help`.", highlight=False)
