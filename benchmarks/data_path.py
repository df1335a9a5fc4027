"""Pairs a second that the data path delivers, beside what the fastest training step takes.

python -m benchmarks.data_path configs/spoken_shapes.yaml [field=value ...] [--steps 20]

Decoded anew (the first epoch), and kept in memory (`cache_examples`, every later epoch). The fastest step is the one
without SIM, on batches that are there already.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

from speech_image_retrieval.training.arguments import load_arguments
from speech_image_retrieval.training.loop import Trainer

_WARM_UP = 2


def main() -> None:
    """Measure all three, and print ratios to the step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_intermixed_args()
    own = ["cache_examples=true", "matching_start_step=1000000", "output_dir=outputs/data_path"]
    trainer = Trainer(load_arguments(options.config, [*own, *options.overrides]))
    order = trainer.batches.compose(epoch=0, queue=None)

    def delivered() -> Iterable[Any]:
        return islice(trainer.batches.steps(0, order), options.steps)

    rates = {}
    for name in ("decoded anew", "kept in memory"):
        started = time.perf_counter()
        batches = list(delivered())
        rates[name] = _pairs(batches) / (time.perf_counter() - started)
    for batch in batches[:_WARM_UP]:
        trainer._optimize(batch)
    started = time.perf_counter()
    for batch in batches[_WARM_UP:]:
        trainer._optimize(batch)
    step = _pairs(batches[_WARM_UP:]) / (time.perf_counter() - started)
    print(f"step without SIM: {step:.0f} pairs/s")
    for name, rate in rates.items():
        in_turns = 1 / (1 / rate + 1 / step)
        print(f"{name}: {rate:.0f} pairs/s, {rate / step:.1f} times the step; in turns with it {in_turns:.0f} pairs/s")


def _pairs(steps: list[list[Any]]) -> int:
    return sum(len(batch.rows) for micro_batches in steps for batch in micro_batches)


if __name__ == "__main__":
    main()
