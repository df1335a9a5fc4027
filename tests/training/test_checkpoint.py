from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from speech_image_retrieval.evaluation.digest import weights_digest
from speech_image_retrieval.training import checkpoint as checkpoint_module
from speech_image_retrieval.training.arguments import ArgumentError
from speech_image_retrieval.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from speech_image_retrieval.training.muon import Muon
from speech_image_retrieval.training.optimizers import build_optimizers
from speech_image_retrieval.training.setup import build_model, build_objective
from torch import nn


class Shared(nn.Module):
    """A student with a frozen part, a teacher that shares it and moves another of its own, and a buffer."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.model = nn.ModuleDict({"frozen": nn.Linear(width, width), "head": nn.Linear(width, 2)})
        self.model["frozen"].requires_grad_(False)
        self.teacher = nn.ModuleDict({"frozen": self.model["frozen"], "head": nn.Linear(width, 2)}).requires_grad_(
            False
        )
        self.register_buffer("empty", torch.empty(0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model["head"](self.model["frozen"](inputs))


def optimizers_of(module: Shared, lr: float) -> list[torch.optim.Optimizer]:
    head = module.model["head"]
    return [torch.optim.AdamW([head.bias], lr=lr), Muon([head.weight], lr=lr)]


def same_frozen_weights(module: Shared) -> Shared:
    """A new run of the same configuration: other weights, but for what is loaded from a pretrained backbone."""
    other = Shared()
    other.model["frozen"].load_state_dict(module.model["frozen"].state_dict())
    return other


def trained(steps: int = 3) -> tuple[Shared, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    module = Shared()
    optimizers = optimizers_of(module, lr=0.1)
    for _ in range(steps):
        step(module, optimizers)
    return module, optimizers


def step(module: Shared, optimizers: list[torch.optim.Optimizer]) -> None:
    module(torch.randn(4, 3)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        module.teacher["head"].weight.lerp_(module.model["head"].weight, 0.5)


def test_a_restored_run_continues_bit_for_bit(tmp_path):
    module, optimizers = trained()
    progress = {"step": 3, "epoch": 1, "best": [True, 12.5]}
    folder = save_checkpoint(tmp_path, module, optimizers, progress, {"order": torch.tensor([4, 2])})
    assert folder == tmp_path / "checkpoint-3"
    step(module, optimizers)

    other = same_frozen_weights(module)
    other_optimizers = optimizers_of(other, lr=0.1)
    restored, extra = load_checkpoint(folder, other, other_optimizers)
    assert restored == progress
    assert extra["order"].tolist() == [4, 2]
    assert other.teacher["frozen"] is other.model["frozen"]
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


@pytest.mark.parametrize("failing_call", [1, 2, 3, 4])
def test_a_failed_write_leaves_the_previous_checkpoint(failing_call, tmp_path, monkeypatch):
    module, optimizers = trained()
    save_checkpoint(tmp_path, module, optimizers, {"step": 3}, {})
    before = {name: part.clone() for name, part in module.state_dict().items()}
    step(module, optimizers)
    calls = []
    original = checkpoint_module.save_file

    def failing(tensors, path, metadata=None):
        calls.append(path)
        if len(calls) == failing_call:
            path.write_bytes(b"half a file")
            raise OSError("No space left on device")
        original(tensors, path, metadata)

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


def test_what_somebody_keeps_beside_checkpoints_stays(tmp_path):
    save_checkpoint(tmp_path, *trained(), {"step": 1}, {})
    (tmp_path / "checkpoint-1").rename(tmp_path / "checkpoint-1-kept")
    (tmp_path / "checkpoint-1.tar").write_bytes(b"")
    (tmp_path / ".partial-checkpoint-7").mkdir()  # of a save at another step, for which the disk was too small
    save_checkpoint(tmp_path, *trained(), {"step": 2}, {})
    save_checkpoint(tmp_path, *trained(), {"step": 3}, {})
    kept = ["checkpoint-1-kept", "checkpoint-1.tar", "checkpoint-3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    assert latest_checkpoint(tmp_path).name == "checkpoint-3"


def test_a_checkpoint_that_is_saved_again_is_never_missing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, *trained(), {"step": 1}, {})
    monkeypatch.setattr(checkpoint_module.shutil, "rmtree", lambda path: None)  # killed before it removes anything
    module, optimizers = trained()
    save_checkpoint(tmp_path, module, optimizers, {"step": 1}, {})
    load_checkpoint(tmp_path / "checkpoint-1", module, optimizers)


def test_another_model_is_refused_with_what_to_do(tmp_path):
    module, optimizers = trained()
    folder = save_checkpoint(tmp_path, module, optimizers, {"step": 1}, {})
    with pytest.raises(ArgumentError, match="another output_dir"):
        load_checkpoint(folder, Shared(width=4), optimizers)


def test_nothing_is_pickled(tmp_path):
    folder = save_checkpoint(tmp_path, *trained(), {"step": 1}, {})
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


def test_a_lower_learning_rate_takes_effect_on_resume(tmp_path):
    module, optimizers = trained()
    folder = save_checkpoint(tmp_path, module, optimizers, {"step": 3}, {})
    other = same_frozen_weights(module)
    optimizers = optimizers_of(other, lr=0.01)
    load_checkpoint(folder, other, optimizers)
    assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [0.01, 0.01]
    assert optimizers[0].state_dict()["state"][0]["step"] == 3


def test_a_checkpoint_of_other_optimizers_is_refused(tmp_path):
    module, optimizers = trained()
    folder = save_checkpoint(tmp_path, module, optimizers, {"step": 3}, {})
    other = same_frozen_weights(module)
    with pytest.raises(ArgumentError, match="another optimizer or with other layers frozen"):
        load_checkpoint(folder, other, [torch.optim.AdamW(other.model["head"].parameters())])


def test_frozen_weights_are_not_written_and_nothing_is_written_twice(tmp_path):
    folder = save_checkpoint(tmp_path, *trained(), {"step": 3}, {})
    heads = {f"{of}.head.{name}" for of in ("model", "teacher") for name in ("weight", "bias")}
    assert set(load_file(folder / "objective.safetensors")) == {*heads, "empty"}


def test_a_module_without_frozen_weights_is_written_whole(tmp_path):
    module, optimizers = trained()
    module.model.requires_grad_(True)
    folder = save_checkpoint(tmp_path, module, optimizers, {"step": 3}, {})
    names = {name for name in module.state_dict() if not name.startswith("teacher.frozen")}
    assert set(load_file(folder / "objective.safetensors")) == names
    other = Shared()
    other.model.requires_grad_(True)
    load_checkpoint(folder, other, optimizers_of(other, lr=0.1))
    assert all(torch.equal(other.state_dict()[name], part) for name, part in module.state_dict().items())


def test_other_frozen_weights_are_refused_and_nothing_is_touched(tmp_path):
    module, optimizers = trained()
    folder = save_checkpoint(tmp_path, module, optimizers, {"step": 3}, {})
    other = same_frozen_weights(module)
    with torch.no_grad():
        other.model["frozen"].weight[0, 0] += 1e-6
    before = {name: part.clone() for name, part in other.state_dict().items()}
    with pytest.raises(ArgumentError, match="other weights of the frozen layers") as caught:
        load_checkpoint(folder, other, optimizers_of(other, lr=0.1))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(part, before[name]) for name, part in other.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "unexpected", "frozen", "shape"])
def test_a_checkpoint_with_other_tensors_is_refused(change, tmp_path):
    module, optimizers = trained()
    folder = save_checkpoint(tmp_path, module, optimizers, {"step": 3}, {})
    tensors = load_file(folder / "objective.safetensors")
    if change == "missing":
        del tensors["teacher.head.bias"]
    else:
        name = {"unexpected": "model.tail.bias", "frozen": "model.frozen.bias", "shape": "model.head.bias"}[change]
        tensors[name] = torch.zeros(5)
    save_file(tensors, folder / "objective.safetensors")
    with pytest.raises(ArgumentError, match="another model, queue or teacher"):
        load_checkpoint(folder, module, optimizers)


def test_a_run_with_lora_and_a_teacher_resumes_into_the_same_model(make_arguments, tmp_path):
    lora = {"r": 2, "target_modules": ["q_proj"]}
    arguments = make_arguments(tmp_path, speech_lora=lora, trainable_vision_layers=1)

    def run() -> tuple[nn.Module, list[torch.optim.Optimizer]]:
        torch.manual_seed(0)
        model = build_model(arguments, torch.device("cpu"))
        return build_objective(arguments, model, train_rows=8), build_optimizers(arguments, model)

    objective, optimizers = run()
    with torch.no_grad():
        for parameter in objective.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    objective.teacher.update(objective.model, 1)
    folder = save_checkpoint(tmp_path, objective, optimizers, {"step": 1}, {})
    names = set(load_file(folder / "objective.safetensors"))
    for of in ("model", "teacher.model"):
        backbones = [name for name in names if name.startswith((f"{of}.speech_backbone", f"{of}.vision_backbone"))]
        assert all(".lora_" in name or ".layers.1." in name or "post_layernorm" in name for name in backbones)
        assert len(backbones) > 10
    other, other_optimizers = run()
    load_checkpoint(folder, other, other_optimizers)
    for name, part in objective.state_dict().items():
        assert torch.equal(other.state_dict()[name], part), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_digest_tells_weights_apart(dtype):
    def digest(**changes):
        weights = {"a": torch.ones(2, 3), "b": torch.zeros(()), "c": torch.empty(0)}
        weights = {name: part.to(dtype) for name, part in weights.items()} | changes
        return weights_digest(weights.items())

    other = torch.ones(2, 3).to(dtype)
    other[1, 2] = 0
    strided = torch.ones(3, 2).to(dtype).T
    assert digest() == digest() == digest(a=strided) == digest(a=nn.Parameter(strided, requires_grad=False))
    changes = [
        {"a": other},
        {"a": strided.T},
        {"a": torch.ones(2, 3).half()},
        {"b": torch.ones(()).to(dtype)},
        {"d": other},
    ]
    digests = [digest(), *(digest(**change) for change in changes)]
    assert len(set(digests)) == len(digests)
    one, two = torch.ones(2).to(dtype), torch.zeros(2).to(dtype)
    assert weights_digest([("a", one), ("b", two)]) == weights_digest([("b", two), ("a", one)])
    assert weights_digest([("a", one), ("b", two)]) != weights_digest([("a", two), ("b", one)])


def test_a_process_that_has_no_random_state_in_the_checkpoint_says_so_and_goes_on(tmp_path, caplog):
    module, optimizers = trained()
    folder = save_checkpoint(tmp_path, module, optimizers, {"step": 3}, {})
    (folder / "random-0.safetensors").rename(folder / "random-1.safetensors")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert load_checkpoint(folder, module, optimizers)[0] == {"step": 3}
    assert torch.equal(torch.get_rng_state(), before)
    assert "saved by fewer processes" in caplog.text
