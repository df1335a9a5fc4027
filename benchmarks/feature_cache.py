"""How much faster an epoch is when the features of frozen backbones are cached, paired in one run.

python -m benchmarks.feature_cache configs/spoken_emoji.yaml [field=value ...] [--steps 24]

Both trainers take the same batches of the same configuration, a few steps in turn, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from speech_image_retrieval.training.arguments import load_arguments
from speech_image_retrieval.training.loop import Trainer

_BLOCK = 4  # steps in turn


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    parser.add_argument("--steps", type=int, default=24, help="timed steps of each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        cached = _trainer(options, Path(folder, "cached"), "true")
        opened = time.perf_counter() - started
        plain = _trainer(options, Path(folder, "plain"), "false")
        steps = {"with cache": _steps(cached), "without": _steps(plain)}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for source in steps.values():
            next(source)  # the first step of each allocates
        for _ in range(-(-options.steps // _BLOCK)):
            for name, source in steps.items():
                seconds[name] += [next(source) for _ in range(_BLOCK)]
    means = {name: statistics.fmean(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        epoch = means[name] * cached.batches_per_epoch
        print(
            f"{name:<11} {means[name]:7.3f} s a step (median {statistics.median(values):.3f}, of {len(values)}), "
            f"{epoch:8.1f} s an epoch of {cached.batches_per_epoch} steps"
        )
    print(f"ratio       {means['without'] / means['with cache']:7.1f}")
    print(f"opening     {opened:7.1f} s, with the computing of what the cache lacked")


def _trainer(options: argparse.Namespace, output_dir: Path, cache: str) -> Trainer:
    overrides = [*options.overrides, f"output_dir={output_dir}", f"feature_cache={cache}"]
    return Trainer(load_arguments(options.config, overrides))


def _steps(trainer: Trainer) -> Iterator[float]:
    """Seconds of each step of the first epoch, data included."""
    order = trainer.batches.compose(epoch=0, queue=None)
    batches = trainer.batches.steps(0, order)
    while True:
        started = time.perf_counter()
        trainer._optimize(next(batches))
        trainer.step += 1
        yield time.perf_counter() - started


if __name__ == "__main__":
    main()
