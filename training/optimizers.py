"""Optimizers, the peak rate of every parameter, and the schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from .arguments import TrainingArguments
from .muon import Muon
from .policies import backbone_levels, is_lora


def build_optimizers(arguments: TrainingArguments, model: SpeechImageRetrievalModel) -> list[torch.optim.Optimizer]:
    """AdamW for every trained parameter; with `muon_learning_rate` Muon for the matrices inside layers.

    No weight decay on biases, norms and the temperature. Every group carries its peak rate as `peak_lr`; those at the
    rates of the arguments come first. Embeddings and the output layers stay with AdamW, as Muon's authors advise, and
    so do LoRA's matrices, whose low rank Muon's orthogonal updates were not made for.
    """
    matrices = _hidden_matrices(model) if arguments.muon_learning_rate else set()
    scales = _rate_scales(arguments, model)
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = arguments.weight_decay if parameter.ndim > 1 else 0.0
            key = (id(parameter) in matrices, scales.get(id(parameter), 1.0), decay)
            groups.setdefault(key, []).append(parameter)

    def settings(of_muon: bool, rate: float) -> list[dict[str, Any]]:
        return [
            {"params": params, "lr": scale * rate, "peak_lr": scale * rate, "weight_decay": decay}
            for (muon, scale, decay), params in sorted(groups.items(), key=lambda group: group[0][1] != 1.0)
            if muon is of_muon
        ]

    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(settings(False, arguments.learning_rate), betas=(0.9, arguments.adam_beta2), fused=True)
    ]
    if matrices:
        bfloat16 = arguments.mixed_precision != "no"
        optimizers.append(Muon(settings(True, arguments.muon_learning_rate), bfloat16=bfloat16))
    return optimizers


def _hidden_matrices(model: SpeechImageRetrievalModel) -> set[int]:
    """Identities of the trained weights of all linear layers but the last ones and LoRA's."""
    last = (model.speech_projection, model.image_projection, model.matching_head)
    linear = (
        part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and part not in last and not is_lora(name)
    )
    return {id(part.weight) for part in linear if part.weight.requires_grad}


def _rate_scales(arguments: TrainingArguments, model: SpeechImageRetrievalModel) -> dict[int, float]:
    """By identity: the share of the peak rates that each parameter of the backbones gets (layer-wise decay as in
    BEiT, Bao et al. 2022, arXiv 2106.08254)."""
    scales = {}
    for backbone, rate in (
        (model.speech_backbone, arguments.speech_learning_rate),
        (model.vision_backbone, arguments.vision_learning_rate),
    ):
        scale = 1.0 if rate is None else rate / arguments.learning_rate
        for below_top, level in enumerate(reversed(backbone_levels(backbone))):
            scales |= {id(parameter): scale * arguments.layer_decay**below_top for parameter in level}
    return scales


def learning_rate_factor(arguments: TrainingArguments, step: int, total_steps: int) -> float:
    """Share of the peak rate at optimizer step `step` of `total_steps`: linear warm-up, then a cosine."""
    if step < arguments.warmup_steps:
        return (step + 1) / arguments.warmup_steps
    progress = (step - arguments.warmup_steps) / max(1, total_steps - arguments.warmup_steps)
    low = arguments.min_learning_rate_ratio
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
