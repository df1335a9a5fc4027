"""What a model's card says of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ..evaluation.standard_pools import corpus_name
from .arguments import TrainingArguments


def training_record(
    arguments: TrainingArguments,
    captions: int,
    rows: Dataset | None,
    *,
    steps: int,
    step_batch: int,
    precision: str,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """As `training.json` beside a model has it; without folders of this machine, which say nothing elsewhere.

    Args:
        captions: rows of the training split. rows: the split, whose languages are named; None if it is streamed.
        steps: optimizer steps so far, of `step_batch` pairs each.
        seconds: spent on training and validation so far, in all sessions of the run that left a checkpoint.
    """
    backbones = {"speech_backbone": arguments.speech_backbone, "vision_backbone": arguments.vision_backbone}
    languages = set() if rows is None else set(rows.unique("language")) - {None}
    return {
        "corpus": arguments.corpus if arguments.stream else corpus_name(arguments.corpus),
        "captions": captions,
        "languages": sorted(languages),
        "pretrained": arguments.speech_backbone is not None,
        **{name: given for name, given in backbones.items() if given and not Path(given).exists()},
        "steps": steps,
        "batch_size": step_batch,
        "seed": arguments.seed,
        "precision": precision,
        "device": describe(device),
        "hours": round(seconds / 3600, 4),
    }


def describe(device: torch.device) -> str:
    """What a device is called by people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}" if device.type == "cpu" else device.type


__all__ = ["describe", "training_record"]
