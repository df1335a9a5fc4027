"""Several processes, of gloo on the loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from speech_image_retrieval.training.arguments import ArgumentError, TrainingArguments, save_arguments
from speech_image_retrieval.training.checkpoint import latest_checkpoint
from speech_image_retrieval.training.epoch_batches import EpochBatches
from speech_image_retrieval.training.examples import Collator
from speech_image_retrieval.training.log import read_log
from speech_image_retrieval.training.loop import Trainer

from ..fresh_process import run_script

TRAIN = Path(__file__).parents[2] / "train.py"
STEPS = 5


# Two processes without torchrun, which share what takes long to import; killed at their first checkpoint, if asked.
TWO_PROCESSES = """
import os, runpy, signal, sys, time
from pathlib import Path
import torch
from speech_image_retrieval.training import loop
from speech_image_retrieval.training.checkpoint import latest_checkpoint
train, config, port, *checkpoints = sys.argv[1:]
torch.set_num_threads(1)
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2")
running = []
for rank in "01":
    running.append(os.fork())
    if not running[-1]:
        os.environ.update(RANK=rank, LOCAL_RANK=rank)
        sys.argv = [train, config]
        runpy.run_path(train, run_name="__main__")
        sys.exit()
for folder in checkpoints:
    nobody_ended = lambda: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    while latest_checkpoint(Path(folder)) is None and nobody_ended():
        time.sleep(0.01)
    for process in running:
        os.kill(process, signal.SIGKILL)
ends = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in running]
assert ends == [-signal.SIGKILL if checkpoints else 0] * 2, ends
"""


# Put into the second process, before it trains.
FAULT = """
        if rank == "1":
            optimize = loop.Trainer._optimize
            def faulty(self, batches):
                if self.step == 2:
                    {fault}
                return optimize(self, batches)
            loop.Trainer._optimize = faulty
"""


def run_two_processes(config: Path, *checkpoints: Path, script: str = TWO_PROCESSES) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run_script(script, TRAIN, config, port, *checkpoints)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are started: threads sum in another order, and AdamW enlarges that where a gradient is
    next to nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def without_noise(make_arguments) -> Callable[..., TrainingArguments]:
    """Arguments of runs that draw nothing but negatives: dropout and masking depend on the order of the draws.

    At a small rate: AdamW's first steps are as large for gradients of rounding as for any other.
    """

    def make(output_dir: Path, **changes) -> TrainingArguments:
        arguments = make_arguments(
            output_dir,
            max_steps=STEPS,
            group_start_step=2,
            matching_weight=0.7,
            listwise_weight=0.3,
            learning_rate=3e-4,
            muon_learning_rate=1e-3,
            **changes,
        )
        quiet = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "hidden_dropout": 0.0, "attention_dropout": 0.0}
        quiet |= {"activation_dropout": 0.0, "feat_proj_dropout": 0.0}
        model = dict(arguments.model)
        model["speech_config"] = model["speech_config"] | quiet
        model["multimodal_config"] = model["multimodal_config"] | {"hidden_dropout": 0.0, "attention_dropout": 0.0}
        return replace(arguments, model=model)

    return make


def losses_of(folder: Path) -> list[tuple[int, str, float]]:
    return [row for row in read_log(folder / "log.csv") if row[1] != "pairs_per_second"]


def assert_same(folder: Path, expected: Path, within: float = 0.0) -> None:
    """Losses, validation, weights, optimizers, teacher and queue after the last step."""
    rows, wanted = losses_of(folder), losses_of(expected)
    assert [row[:2] for row in rows] == [row[:2] for row in wanted]
    rounding = 5 * within  # six digits are logged
    assert [row[2] for row in rows] == pytest.approx([row[2] for row in wanted], abs=within, rel=rounding)
    final, other = (latest_checkpoint(part / "checkpoints") for part in (folder, expected))
    assert final.name == other.name == f"checkpoint-{STEPS}"
    for name in ("objective", "optimizers"):
        states, others = (load_file(part / f"{name}.safetensors") for part in (final, other))
        for key, value in others.items():
            torch.testing.assert_close(states[key], value, atol=within, rtol=0, msg=f"{name} {key}")


@pytest.fixture(scope="module")
def one_process(without_noise, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    Trainer(without_noise(folder, batch_size=4, gradient_accumulation_steps=1)).run()
    return folder


@pytest.fixture(scope="module")
def two_processes(without_noise, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    arguments = without_noise(folder / "run", batch_size=2, gradient_accumulation_steps=1)
    save_arguments(arguments, folder / "run.yaml")
    # As users start them: of CPUs `accelerate launch` starts one process only; on them it is torchrun.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([*command, TRAIN, folder / "run.yaml"], env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("validation mean R@1") == 2, "not one process reports, but both"
    return folder / "run"


def test_two_processes_train_as_one_does(one_process, two_processes):
    assert_same(two_processes, one_process, within=1e-5)
    random_states = latest_checkpoint(two_processes / "checkpoints").glob("random-*")
    assert {path.name for path in random_states} == {"random-0.safetensors", "random-1.safetensors"}


def test_two_micro_batches_train_as_one_batch_does(without_noise, one_process, tmp_path):
    Trainer(without_noise(tmp_path, batch_size=2, gradient_accumulation_steps=2)).run()
    assert_same(tmp_path, one_process, within=1e-5)


def test_two_processes_that_were_killed_end_as_two_that_were_not(without_noise, two_processes, tmp_path):
    arguments = without_noise(tmp_path / "run", batch_size=2, gradient_accumulation_steps=1, checkpoint_every_steps=1)
    save_arguments(arguments, tmp_path / "run.yaml")
    run_two_processes(tmp_path / "run.yaml", tmp_path / "run/checkpoints")
    assert latest_checkpoint(tmp_path / "run/checkpoints").name != f"checkpoint-{STEPS}"
    run_two_processes(tmp_path / "run.yaml")
    assert_same(tmp_path / "run", two_processes)


def test_a_run_of_one_process_goes_on_in_two_with_micro_batches(without_noise, one_process, tmp_path):
    folder = tmp_path / "run"
    sizes = {"batch_size": 2, "gradient_accumulation_steps": 2}
    Trainer(replace(without_noise(folder, **sizes), max_steps=3)).run()
    save_arguments(
        without_noise(folder, batch_size=1, gradient_accumulation_steps=2, num_workers=1), tmp_path / "run.yaml"
    )
    assert "Continuing with other values of" in run_two_processes(tmp_path / "run.yaml")
    assert_same(folder, one_process, within=1e-5)


@pytest.mark.parametrize(
    ("fault", "end", "said"),
    [
        ('batches[0].image["pixel_values"].fill_(float("nan"))', 1, "not finite at step 3"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 0, "Ended by SIGTERM at step 3 of 5"),
        ("raise ChildProcessError('a worker')", 1, "Error: a worker"),
    ],
    ids=["NaN", "SIGTERM", "an error"],
)
def test_what_befalls_one_of_two_processes_ends_both(without_noise, tmp_path, fault: str, end: int, said: str):
    save_arguments(without_noise(tmp_path / "run", batch_size=2, gradient_accumulation_steps=1), tmp_path / "run.yaml")
    before = "        sys.argv = [train, config]"
    script = TWO_PROCESSES.replace(before, FAULT.format(fault=fault) + before)
    script = script.replace("[-signal.SIGKILL if checkpoints else 0] * 2", f"[{end}] * 2")
    printed = run_two_processes(tmp_path / "run.yaml", script=script)
    assert said in printed
    assert end != 1 or printed.count("Error: ") == 2
    assert "Traceback" not in printed


def test_fewer_rows_than_a_step_of_all_processes_are_refused(without_noise, tmp_path, monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    arguments = without_noise(tmp_path, batch_size=7, gradient_accumulation_steps=1)
    with pytest.raises(ArgumentError, match="fewer than the 14 of one step of 2 processes"):
        EpochBatches(arguments, range(12), Collator(0))


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed"])
def test_sharded_parameters_are_refused(without_noise, tmp_path, monkeypatch, name: str):
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(ArgumentError, match=f"{name} is not supported"):
        Trainer(without_noise(tmp_path))
