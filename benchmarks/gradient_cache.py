"""Peak memory of optimizer steps of 64 to 1,024 pairs, the larger ones in micro-batches of 64; SIC and SIM.

python -m benchmarks.gradient_cache configs/spoken_shapes.yaml [field=value ...] [--batch 64 --batch 1024]

Each in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

MICRO_BATCH = 64
_STEPS = 2


def main() -> None:
    """Measure each size in a process of its own, and print ratios to the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    parser.add_argument(
        "--batch", type=int, action="append", help=f"multiples of {MICRO_BATCH}; 64 and 1024 by default"
    )
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.measure:
        _measure(options.config, options.overrides, options.measure)
        return
    first: list[float] = []
    for batch in options.batch or [64, 1024]:
        command = [sys.executable, "-m", "benchmarks.gradient_cache", options.config, *options.overrides]
        printed = subprocess.run(
            [*command, "--measure", str(batch)], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        before, peak, seconds = (float(value) for value in printed.split()[-3:])
        first = first or [peak, peak - before]
        print(
            f"{batch:5d} pairs: peak {peak:,.0f} MB, {peak / first[0]:.2f} times "
            f"the first; without the {before:,.0f} MB before the first step {(peak - before) / first[1]:.2f} times; "
            f"{batch / seconds:.0f} pairs a second",
            flush=True,
        )


def _measure(config: str, overrides: list[str], batch: int) -> None:
    from speech_image_retrieval.training.arguments import load_arguments
    from speech_image_retrieval.training.loop import Trainer

    changes = [f"batch_size={MICRO_BATCH}", f"gradient_accumulation_steps={batch // MICRO_BATCH}"]
    changes += ["matching_start_step=0", "group_start_step=1000000", "output_dir=outputs/gradient_cache"]
    trainer = Trainer(load_arguments(config, [*overrides, *changes]))
    order = trainer.batches.compose(epoch=0, queue=None)
    steps = trainer.batches.steps(0, order)
    before = _peak()
    for _ in range(_STEPS):
        micro_batches = next(steps)
        started = time.perf_counter()
        trainer._optimize(micro_batches)
        trainer.step += 1
        seconds = time.perf_counter() - started
    print(before, _peak(), seconds)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
