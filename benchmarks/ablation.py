"""What each part of the method adds: one training run for each cell and seed, at equal steps.

python -m benchmarks.ablation configs/spoken_shapes.yaml [field=value ...] --out docs/ablation/spoken_shapes

Figures of a run are kept in OUT/results.json as soon as it ends, and drawn and tabled anew; the same command again
runs what is missing, and goes on with a run that was interrupted. The batch size, steps, rates and the schedule are
those of the configuration for every cell; what a cell switches is written into its overrides, and all that it was
trained with stands beside its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from speech_image_retrieval.training.arguments import (
    ArgumentError,
    TrainingArguments,
    changed_fields,
    differing_fields,
    load_arguments,
)

from benchmarks.ablation_report import Part, draw, parts_table, table


@dataclass(frozen=True)
class Cell:
    """One combination of parts. The objectives of published systems are reimplemented on this model; they are not
    those systems."""

    name: str
    overrides: tuple[str, ...]
    program: tuple[str, ...] = ("train.py",)


def cells(arguments: TrainingArguments) -> list[Cell]:
    """The cells in the order in which parts are added: first those of the paper, then mined batches, which are not in
    it. The last of the method is the recipe itself, if that has SIM, a teacher and mining."""
    no_matching = ("matching_weight=0", "listwise_weight=0")
    no_queue = ("queue_size=0", "group_size=1")
    no_teacher = ("momentum=null", "alpha=0")
    queue = f"queue_size={arguments.queue_size or TrainingArguments.queue_size}"
    mined = f"group_size={arguments.group_size if arguments.group_size > 1 else 4}"
    teacher = _teacher(arguments)
    distillation = f"alpha={arguments.alpha or TrainingArguments.alpha}"
    hard = "negative_sampling=similarity"
    return [
        Cell("SIC (SpeechCLIP's parallel objective)", (*no_matching, *no_queue, *no_teacher)),
        Cell("SIC + queue", (*no_matching, "group_size=1", queue, *teacher, "alpha=0")),
        Cell("SIC + SIM, random negatives", (*no_queue, *no_teacher, "negative_sampling=random")),
        Cell("+ hard negatives in the batch", (*no_queue, *no_teacher, hard)),
        Cell("+ queue in SIC", (queue, "group_size=1", *teacher, "alpha=0", hard)),
        Cell("+ MoD: the paper's method", (queue, "group_size=1", *teacher, distillation, hard)),
        Cell("+ negatives mined beyond the batch", (queue, mined, *teacher, distillation, hard)),
        Cell(
            "margin InfoNCE, all pairs (FaST-VGS's objective)",
            (*no_queue, *no_teacher),
            ("-m", "benchmarks.margin_infonce"),
        ),
    ]


def parts(order: Sequence[str]) -> list[Part]:
    """What is added from cell to cell; SIM also to SIC alone, and to SIC with the queue."""
    contrast, queue, random, hard, with_queue, distilled, mined, margin = order
    return [
        Part("queue and its teacher, to SIC alone", queue, contrast),
        Part("SIM with random negatives, to SIC alone", random, contrast),
        Part("SIM with hard negatives, to SIC alone", hard, contrast),
        Part("hard instead of random negatives", hard, random),
        Part("queue and its teacher, to SIC and SIM", with_queue, hard),
        Part("SIM with hard negatives, to SIC and queue", with_queue, queue),
        Part("MoD", distilled, with_queue),
        Part("negatives mined beyond the batch", mined, distilled),
        Part("margin InfoNCE over all pairs, to SIC alone", margin, contrast),
    ]


def _teacher(arguments: TrainingArguments) -> tuple[str, ...]:
    """The recipe's, with its start; for a recipe without one that of the defaults, once all else has started: from
    the first step on it would keep a model that learns from scratch at chance."""
    if arguments.momentum is not None:
        return (f"momentum={arguments.momentum}",)
    start = max(arguments.group_start_step, arguments.matching_start_step)
    return (f"momentum={TrainingArguments.momentum}", f"momentum_start_step={start}")


class Results:
    """Figures of the runs that ended, in a file."""

    def __init__(self, path: Path):
        self.path = path
        self.runs: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.is_file() else []
        self._lock = Lock()

    def has(self, cell: str, arguments: TrainingArguments) -> bool:
        """Whether the run is there.

        Raises:
            ArgumentError: it is, with other arguments: its figures are of another experiment.
        """
        for run in self.runs:
            if (run["cell"], run["seed"]) == (cell, arguments.seed):
                if "arguments" not in run:
                    raise ArgumentError(f"{self.path} is of an earlier version, which kept less: choose another --out")
                if changed := _but_folder(differing_fields(arguments, run["arguments"])):
                    raise ArgumentError(
                        f"{self.path} has {cell!r}, seed {arguments.seed}, with other values of {', '.join(changed)}: "
                        "choose another --out, or remove these figures from it"
                    )
                return True
        return False

    def add(self, run: dict[str, Any]) -> None:
        """Keep a run's figures, and draw and table all that are there."""
        with self._lock:
            self.runs.append(run)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.runs, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.path)


def _but_folder(names: Iterable[str]) -> list[str]:
    return [name for name in names if name != "output_dir"]


def main() -> None:
    """Run what is missing, a seed of all cells before the next."""
    options = _options()
    arguments = load_arguments(options.config, options.overrides)
    every = cells(arguments)
    order = [cell.name for cell in every]
    chosen = [every[number - 1] for number in options.cell] if options.cell else every
    results = Results(options.out / "results.json")
    jobs = list(_missing(results, chosen, options))
    print("\n".join(f"cell {number}: {name}" for number, name in enumerate(order, start=1)))
    print(f"{len(jobs)} runs are missing", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [pool.submit(_run, *job, results, options) for job in jobs]
        try:
            for future in running:
                future.result()
                _write_report(results, order, options.out)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _write_report(results, order, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="for all cells")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.json, table.md and plot.png")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--cell", type=int, action="append", help="only this one, counted from 1 in the table's order")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the processors")
    return parser.parse_intermixed_args()


def _overrides(cell: Cell, seed: int, options: argparse.Namespace) -> list[str]:
    slug = "".join(letter if letter.isalnum() else "_" for letter in cell.name)
    folder = Path("outputs/ablation", options.out.name, f"{slug}-{seed}")
    return [*options.overrides, *cell.overrides, f"seed={seed}", f"output_dir={folder}"]


def _missing(
    results: Results, chosen: list[Cell], options: argparse.Namespace
) -> Iterator[tuple[Cell, TrainingArguments]]:
    """What is to be run.

    Raises:
        ArgumentError: figures or an interrupted run are there, with other arguments.
    """
    for seed in range(options.seeds):
        for cell in chosen:
            arguments = load_arguments(options.config, _overrides(cell, seed, options))
            if results.has(cell.name, arguments):
                continue
            if changed := _but_folder(changed_fields(arguments, Path(arguments.output_dir, "arguments.yaml"))):
                raise ArgumentError(
                    f"{arguments.output_dir} has a run with other values of {', '.join(changed)}: choose another "
                    "--out, or remove the folder"
                )
            yield cell, arguments


def _run(cell: Cell, arguments: TrainingArguments, results: Results, options: argparse.Namespace) -> None:
    seed, folder = arguments.seed, Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *cell.program, options.config, *_overrides(cell, seed, options)]
    print(f"{cell.name}, seed {seed}, begins; its log is {folder / 'run.log'}", flush=True)
    threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
    with Path(folder, "run.log").open("a", encoding="utf-8") as log:
        ended = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": threads}, check=False
        )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}; see {folder / 'run.log'}")
    reports = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("evaluation*.json"))]
    results.add({"cell": cell.name, "seed": seed, "arguments": asdict(arguments), "reports": reports})
    means = ", ".join(f"{stage} {value:.1f}" for stage, value in reports[0]["mean_r1"].items())
    print(f"{cell.name}, seed {seed}: mean R@1 {means}", flush=True)


def _write_report(results: Results, order: list[str], folder: Path) -> None:
    if results.runs:
        differences = [parts_table(results.runs, parts(order), stage) for stage in ("coarse", "final")]
        tables = (table(results.runs, order), *differences)
        (folder / "table.md").write_text("\n".join(tables), encoding="utf-8")
        draw(results.runs, order, folder / "plot.png")


if __name__ == "__main__":
    try:
        main()
    except ArgumentError as error:
        sys.exit(f"Error: {error}")
