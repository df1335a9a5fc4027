"""Run the benchmarks of speed and memory one after another, and write what they print to docs/performance.md.

python -m benchmarks.performance MODEL --corpus spoken_shapes [--config configs/spoken_shapes.yaml]
    [--frozen configs/spoken_emoji.yaml field=value ...] [--only NAME ...]

Leave the machine alone meanwhile. With --only, the others keep what they printed before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_REPORT = Path("docs/performance.md")
_PRINTED = Path("docs/performance.json")
_LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "lancedb")


@dataclass(frozen=True)
class Measure:
    """A benchmark, what it shows, and how many of the last lines that it prints say so."""

    name: str  # of the module; `_frozen` behind it tells a second use of it apart
    title: str
    arguments: tuple[str, ...]
    lines: int


def measures(model: str, corpus: str, config: str, frozen: Sequence[str]) -> list[Measure]:
    """All of them, in the order of the report.

    Args:
        frozen: a configuration whose backbones are frozen, and its overrides.
    """
    of_model = (model, "--corpus", corpus)
    return [
        Measure("training_step", "A training step beside ALBEF's", (config,), 1),
        Measure(
            "training_step_frozen",
            "The same with frozen backbones, which ALBEF's step encodes twice and averages like trained ones",
            (*frozen, "--steps", "4"),
            1,
        ),
        Measure("processes", "Two processes on two cores beside one on one", (config,), 4),
        Measure("gradient_cache", "Memory of 1,024 pairs a step", (config, "cache_examples=false"), 2),
        Measure("data_path", "The data path beside the fastest step", (config,), 3),
        Measure("mixed_lengths", "Clips of mixed lengths, encoded", of_model, 2),
        Measure("reranking", "Re-ranking beside ALBEF's loop", (*of_model, "--rounds", "2"), 3),
        Measure("evaluation_pool", "The evaluation of 1,000 pictures and 5,000 captions", of_model, 1),
    ]


def main() -> None:
    """Measure, keep what was printed, and write the report anew after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--config", default="configs/spoken_shapes.yaml")
    parser.add_argument("--frozen", nargs="+", default=["configs/spoken_emoji.yaml"], metavar="CONFIG")
    parser.add_argument("--only", action="append", metavar="NAME", help="of a benchmark; may be repeated")
    options = parser.parse_args()
    every = measures(options.model, options.corpus, options.config, options.frozen)
    if unknown := set(options.only or ()) - {measure.name for measure in every}:
        parser.error(f"there is no {', '.join(sorted(unknown))} among {', '.join(one.name for one in every)}")
    printed: dict[str, dict[str, str]] = json.loads(_PRINTED.read_text("utf-8")) if _PRINTED.is_file() else {}
    for measure in every:
        if options.only and measure.name not in options.only:
            continue
        command = ["-m", f"benchmarks.{measure.name.removesuffix('_frozen')}", *measure.arguments]
        print(" ".join(command), flush=True)
        ended = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True)
        lines = "\n".join(ended.stdout.strip().splitlines()[-measure.lines :])
        print(lines, flush=True)
        printed[measure.name] = {"command": f"python {' '.join(command)}", "lines": lines, "machine": _machine()}
        _PRINTED.write_text(json.dumps(printed, indent=1) + "\n", encoding="utf-8")
        _REPORT.write_text(_report(every, printed), encoding="utf-8")


def _report(every: list[Measure], printed: dict[str, dict[str, str]]) -> str:
    parts = [
        "# Speed and memory\n\n"
        "Written by `python -m benchmarks.performance`, on CPU cores: there is no figure of a GPU here. Whatever is "
        "compared ran in one run. Of steps and rounds in turns a ratio is the median of each turn's, so that the "
        "rates, medians too, need not divide to it; a range that includes 1 shows no sure difference. Re-ranking sums "
        "its rounds, memory and the data path were measured once. "
        "Rates of different blocks are of different settings: threads, cache, with SIM or without. ALBEF's step and "
        "loop are written for the comparison in `benchmarks/`, after its paper.\n"
    ]
    machines = dict.fromkeys(printed[measure.name]["machine"] for measure in every if measure.name in printed)
    for measure in every:
        if found := printed.get(measure.name):
            machine = f"On {found['machine']}.\n\n" if len(machines) > 1 else ""
            block = f"```\n$ {found['command']}\n{found['lines']}\n```\n"
            parts.append(f"## {measure.title}\n\n{machine}{block}")
    if len(machines) == 1:
        parts.insert(1, f"Machine: {next(iter(machines))}.\n")
    return "\n".join(parts)


def _machine() -> str:
    names = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    processor = next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), "")
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    return (
        f"{processor or platform.processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {libraries}"
    )


if __name__ == "__main__":
    main()
