"""What a run leaves to look at: a CSV of every logged step, TensorBoard events, and a picture of the curves."""

from __future__ import annotations

import csv
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class TrainingLog:
    """Appends to `log.csv` and TensorBoard under a run's folder. A resumed run drops what came after its checkpoint.

    Args:
        first_step: steps from here on are removed from an existing log.
    """

    COLUMNS = ("step", "name", "value")

    def __init__(self, output_dir: Path, first_step: int):
        self.path = output_dir / "log.csv"
        kept = [_row(*entry) for entry in read_log(self.path) if entry[0] < first_step]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.COLUMNS, *kept])
        self._events = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log named values of one step."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(_row(step, *item) for item in values.items())
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the TensorBoard events."""
        self._events.close()


def _row(step: int, name: str, value: float) -> tuple[int, str, str]:
    return step, name, f"{value:.6g}"


def read_log(path: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of every logged value; empty without a log. A last line cut off by a kill does not count."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(line for line in file if line.endswith("\n"))
        return [(int(step), name, float(value)) for step, name, value in list(rows)[1:]]


def draw_curves(log: Path, picture: Path) -> None:
    """Draw losses and validation recalls over steps."""
    from matplotlib.figure import Figure  # heavy, and needed once a run

    curves: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in read_log(log):
        curves.setdefault(name, []).append((step, value))
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, prefix, title, unit in zip(
        figure.subplots(1, 2),
        ("loss/", "validation/"),
        ("Training losses", "Validation R@1"),
        ("cross-entropy (nats)", "per cent"),
        strict=True,
    ):
        for name in sorted(curves):
            if name.startswith(prefix):
                steps, values = zip(*curves[name], strict=True)
                axes.plot(
                    steps, values, marker="o" if prefix == "validation/" else "", label=name.removeprefix(prefix)
                )
        axes.set(title=title, xlabel="optimizer step", ylabel=unit)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.savefig(picture, dpi=110)
