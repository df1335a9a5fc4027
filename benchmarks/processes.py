"""Training steps of two processes with a core each, beside one process on one core; SIC and SIM, equal batches.

python -m benchmarks.processes configs/spoken_shapes.yaml [field=value ...] [--steps 10] [--rounds 3]

Both take the same pairs a step: the one process all, each of the two a half. The first two steps are not timed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from statistics import median

_WARM_UP = 2


def main() -> None:
    """Run both in turns, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.measure:
        _measure(options)
        return
    ratios = []
    for _ in range(options.rounds):
        one, two = (_seconds(options, processes) for processes in (1, 2))
        ratios.append(one / two)
        pairs = options.batch_size
        print(f"one process {pairs / one:.1f} pairs/s, two {pairs / two:.1f}: {one / two:.2f} times", flush=True)
    print(f"median {median(ratios):.2f} times")


def _seconds(options: argparse.Namespace, processes: int) -> float:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    sizes = ["--batch-size", str(options.batch_size), "--steps", str(options.steps)]
    own = ["-m", "benchmarks.processes", options.config, *options.overrides, *sizes, "--measure"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run([*torchrun, *own], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(ended.stdout.split()[-1])


def _measure(options: argparse.Namespace) -> None:
    from speech_image_retrieval.training.arguments import load_arguments
    from speech_image_retrieval.training.loop import Trainer

    process, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[process]})
    own = [f"batch_size={options.batch_size // processes}", "matching_start_step=0", "group_start_step=1000000"]
    trainer = Trainer(load_arguments(options.config, [*own, "output_dir=outputs/processes", *options.overrides]))
    steps, taken = trainer.batches.steps(0, trainer.batches.compose(epoch=0, queue=None)), []
    for _ in range(options.steps + _WARM_UP):
        batch = next(steps)
        started = time.perf_counter()
        trainer._optimize(batch)
        taken.append(time.perf_counter() - started)
        trainer.step += 1
    trainer.accelerator.wait_for_everyone()
    if process == 0:
        print(median(taken[_WARM_UP:]))


if __name__ == "__main__":
    main()
