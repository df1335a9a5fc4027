from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from speech_image_retrieval.training import checkpoint as checkpoint_module
from speech_image_retrieval.training.arguments import ArgumentError
from speech_image_retrieval.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from torch import nn


class Shared(nn.Module):
    """Two views of one parameter, as a teacher shares what its student froze, and a buffer."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.student = nn.Linear(width, 2)
        self.teacher = nn.Linear(width, 2)
        self.teacher.weight = self.student.weight
        self.register_buffer("empty", torch.empty(0))


def optimizers_of(module: Shared, lr: float) -> list[torch.optim.Optimizer]:
    matrix, *others = module.parameters()
    return [torch.optim.AdamW(others, lr=lr), torch.optim.Muon([matrix], lr=lr)]


def trained(steps: int = 3) -> tuple[Shared, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    module = Shared()
    optimizers = optimizers_of(module, lr=0.1)
    for _ in range(steps):
        step(module, optimizers)
    return module, optimizers


def step(module: Shared, optimizers: list[torch.optim.Optimizer]) -> None:
    module.student(torch.randn(4, 3)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def test_a_restored_run_continues_bit_for_bit(tmp_path):
    module, optimizers = trained()
    progress = {"step": 3, "epoch": 1, "best": [True, 12.5]}
    folder = save_checkpoint(tmp_path, module, optimizers, progress, {"order": torch.tensor([4, 2])})
    assert folder == tmp_path / "checkpoint-3"
    step(module, optimizers)

    other = Shared()
    other_optimizers = optimizers_of(other, lr=0.1)
    restored, extra = load_checkpoint(folder, other, other_optimizers)
    assert restored == progress
    assert extra["order"].tolist() == [4, 2]
    assert other.teacher.weight is other.student.weight
    step(other, other_optimizers)
    for name, part in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], part), name


@pytest.mark.parametrize("drawn_before", [0, 1])
def test_all_random_sequences_continue(drawn_before, tmp_path):
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), random.gauss(0, 1)

    module, optimizers = trained()
    for _ in range(drawn_before):  # leaves a cached second normal number behind in numpy and in Python
        draw()
    folder = save_checkpoint(tmp_path, module, optimizers, {"step": 1}, {})
    expected = draw()
    draw()
    load_checkpoint(folder, module, optimizers)
    assert draw() == expected


def test_only_the_newest_checkpoint_is_kept_and_found_by_number(tmp_path):
    module, optimizers = trained()
    assert latest_checkpoint(tmp_path) is None
    for number in (9, 10):
        save_checkpoint(tmp_path, module, optimizers, {"step": number}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-notes").mkdir()
    assert latest_checkpoint(tmp_path).name == "checkpoint-10"


@pytest.mark.parametrize("failing_call", [1, 2, 3])
def test_a_failed_write_leaves_the_previous_checkpoint(failing_call, tmp_path, monkeypatch):
    module, optimizers = trained()
    save_checkpoint(tmp_path, module, optimizers, {"step": 3}, {})
    before = {name: part.clone() for name, part in module.state_dict().items()}
    step(module, optimizers)
    calls = []
    original = checkpoint_module.save_file

    def failing(tensors, path):
        calls.append(path)
        if len(calls) == failing_call:
            path.write_bytes(b"half a file")
            raise OSError("No space left on device")
        original(tensors, path)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "save_file", failing)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, module, optimizers, {"step": 4}, {})
    newest = latest_checkpoint(tmp_path)
    assert newest.name == "checkpoint-3"
    load_checkpoint(newest, module, optimizers)
    assert all(torch.equal(module.state_dict()[name], part) for name, part in before.items())
    save_checkpoint(tmp_path, module, optimizers, {"step": 4}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_partial_folder_of_a_killed_process_is_no_checkpoint(tmp_path):
    module, optimizers = trained()
    (tmp_path / ".partial-checkpoint-5").mkdir()
    (tmp_path / ".partial-checkpoint-5" / "objective.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, module, optimizers, {"step": 5}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    load_checkpoint(tmp_path / "checkpoint-5", module, optimizers)


def test_another_model_is_refused_with_what_to_do(tmp_path):
    module, optimizers = trained()
    folder = save_checkpoint(tmp_path, module, optimizers, {"step": 1}, {})
    with pytest.raises(ArgumentError, match="another output_dir"):
        load_checkpoint(folder, Shared(width=4), optimizers)


def test_nothing_is_pickled(tmp_path):
    folder = save_checkpoint(tmp_path, *trained(), {"step": 1}, {})
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


def test_a_lower_learning_rate_takes_effect_on_resume(tmp_path):
    folder = save_checkpoint(tmp_path, *trained(), {"step": 3}, {})
    other = Shared()
    optimizers = optimizers_of(other, lr=0.01)
    load_checkpoint(folder, other, optimizers)
    assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [0.01, 0.01]
    assert optimizers[0].state_dict()["state"][0]["step"] == 3


def test_a_checkpoint_of_other_optimizers_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path, *trained(), {"step": 3}, {})
    other = Shared()
    with pytest.raises(ArgumentError, match="another optimizer or with other layers frozen"):
        load_checkpoint(folder, other, [torch.optim.AdamW(other.parameters())])
