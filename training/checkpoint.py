"""Checkpoints that resume exactly and survive being killed while they are written.

A checkpoint is a folder of safetensors and JSON, never pickle. It is written beside its final place and renamed, so a
folder with a final name is whole.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..evaluation.digest import weights_digest
from .arguments import ArgumentError

logger = logging.getLogger(__name__)

_NAME = "checkpoint-"


def save_checkpoint(
    directory: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: dict[str, Any],
    extra: dict[str, Tensor],
) -> Path:
    """Save the objective (student, teacher, queue), the optimizers, the random states, and where the run stands.

    The student's frozen parameters are not written, but a digest of them; what is shared is written once.

    Args:
        module: the objective, with the student as `module.model`.
        progress: JSON-serialisable; `progress["step"]` names the checkpoint.
        extra: further tensors.

    Every process of a run calls it and adds its random state; the rest is the same in all and written once.

    Returns:
        The folder `directory/checkpoint-<step>`. Older checkpoints there are removed once it is whole.
    """
    final = directory / f"{_NAME}{progress['step']}"
    partial = directory / f".partial-{final.name}"
    processes = PartialState()
    if processes.is_main_process:
        for leftover in directory.glob(f".partial-{_NAME}*"):  # of a run that was killed, or whose disk was full
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
    processes.wait_for_everyone()
    random_tensors, random_settings = _random_states()
    save_file(random_tensors, partial / _random_file(), {"settings": json.dumps(random_settings)})
    if processes.is_main_process:
        save_file(tensors_to_save(module), partial / "objective.safetensors")
        save_file(_optimizer_tensors(optimizers), partial / "optimizers.safetensors")
        save_file(extra, partial / "extra.safetensors")
        state = {"progress": progress, "optimizers": _group_sizes(optimizers), "frozen": _frozen_digest(module)}
        (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
    processes.wait_for_everyone()
    if processes.is_main_process:
        _publish(partial, final)
    processes.wait_for_everyone()
    return final


def _publish(partial: Path, final: Path) -> None:
    """Give a whole checkpoint its name, and remove the others."""
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    older = [path for path in _checkpoints(final.parent) if path != final]
    if final.exists():
        older.append(final.rename(final.with_name(f".partial-{final.name}-before")))
    partial.rename(final)
    for path in older:
        shutil.rmtree(path)


def _random_file() -> str:
    return f"random-{PartialState().process_index}.safetensors"


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    return max(_checkpoints(directory), key=lambda path: int(path.name.removeprefix(_NAME)), default=None)


def _checkpoints(directory: Path) -> list[Path]:
    """Whole ones of this run, and nothing that somebody keeps beside them."""
    return [path for path in directory.glob(f"{_NAME}*") if path.name.removeprefix(_NAME).isdigit() and path.is_dir()]


def saved_progress(checkpoint: Path) -> dict[str, Any]:
    """Where the run stood, as :func:`save_checkpoint` was told."""
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["progress"]


def load_checkpoint(
    checkpoint: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore all that :func:`save_checkpoint` saved; returns `progress` and `extra`.

    Raises:
        ArgumentError: it was saved by a module of another shape, or with other frozen weights.
    """
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    saved = load_file(checkpoint / "objective.safetensors")
    if _shapes(saved) != _shapes(tensors_to_save(module)):
        raise ArgumentError(
            f"{checkpoint} was saved with another model, queue or teacher. Choose another output_dir, or remove it."
        )
    if state["optimizers"] != _group_sizes(optimizers):
        raise ArgumentError(
            f"{checkpoint} was saved by another optimizer or with other layers frozen. Choose another output_dir, or "
            "remove it."
        )
    if state["frozen"] != _frozen_digest(module):
        raise ArgumentError(
            f"{checkpoint} was trained on other weights of the frozen layers. Choose another output_dir, or remove it."
        )
    module.load_state_dict(saved, strict=False)
    _restore_optimizers(optimizers, load_file(checkpoint / "optimizers.safetensors"))
    _restore_random_states(checkpoint)
    return state["progress"], load_file(checkpoint / "extra.safetensors")


def tensors_to_save(module: nn.Module) -> dict[str, Tensor]:
    """The state without the student's frozen parameters, each tensor under its first name: a teacher shares some."""
    seen = {id(parameter) for _, parameter in _frozen_parameters(module)}
    own = {}
    for name, part in module.state_dict(keep_vars=True).items():
        if id(part) not in seen:
            own[name] = part.detach().contiguous()
            seen.add(id(part))
    return own


def _frozen_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    # Only the student's: no parameter of the teacher requires a gradient, but most of them move.
    return [(name, part) for name, part in module.model.named_parameters() if not part.requires_grad]


def _frozen_digest(module: nn.Module) -> str | None:
    frozen = _frozen_parameters(module)
    return weights_digest(frozen) if frozen else None


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: part.shape for name, part in tensors.items()}


def _group_sizes(optimizers: Sequence[torch.optim.Optimizer]) -> list[list[int]]:
    return [[len(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers]


def _optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"{number}.{index}.{name}": part.contiguous()
        for number, optimizer in enumerate(optimizers)
        for index, parts in optimizer.state_dict()["state"].items()
        for name, part in parts.items()
    }


def _restore_optimizers(optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, part in tensors.items():
        number, index, name = key.split(".", 2)
        states[int(number)].setdefault(int(index), {})[name] = part
    for optimizer, state in zip(optimizers, states, strict=True):
        # Rates and decay are the new run's: a lower learning rate is what helps a run that diverged.
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    algorithm, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors, {
        "numpy": [algorithm, position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def _restore_random_states(checkpoint: Path) -> None:
    path = checkpoint / _random_file()
    if not path.is_file():
        logger.warning(
            "%s was saved by fewer processes: the random states of this one start anew, so that the run does not go "
            "on exactly as it would have.",
            checkpoint,
        )
        return
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["settings"])
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    algorithm, position, has_gauss, cached = settings["numpy"]
    np.random.set_state((algorithm, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = settings["python"]
    random.setstate((version, tuple(internal), gauss))
