"""The ablation's tables and plot: means over seeds, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

_CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of the 95 % t-interval of the mean; infinite of a single run."""
    if len(values) < 2:
        return float(np.mean(values)), math.inf
    width = stats.t.ppf(0.5 + _CONFIDENCE / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(width)


class Part(NamedTuple):
    """What one cell has and another has not."""

    name: str
    cell: str
    without: str


def mean_r1(runs: Sequence[Mapping[str, Any]], cell: str, split: str, stage: str) -> dict[int, float]:
    """Mean R@1 of both directions, by seed, of a cell. `final` is re-ranked where there is SIM."""
    found = {}
    for run in runs:
        for report in run["reports"]:
            if (run["cell"], report["protocol"]["split"]) == (cell, split):
                means = report["mean_r1"]
                name = ("reranked" if "reranked" in means else "coarse") if stage == "final" else stage
                if name in means:
                    found[run["seed"]] = means[name]
    return found


def added(runs: Sequence[Mapping[str, Any]], part: Part, split: str, stage: str) -> list[float]:
    """By how many points a part changes mean R@1, for each seed that both cells have: both begin with the same
    weights."""
    figures, without = (mean_r1(runs, cell, split, stage) for cell in (part.cell, part.without))
    return [figures[seed] - without[seed] for seed in sorted(figures.keys() & without.keys())]


def parts_table(runs: Sequence[Mapping[str, Any]], parts: Sequence[Part], stage: str) -> str:
    """A Markdown table of what each part adds to a stage, on every test split; nothing where no part can be seen."""
    splits, rows = _splits(runs), []
    for part in parts:
        differences = [added(runs, part, split, stage) for split in splits]
        if any(differences):
            shown = " | ".join(_shown(values, "+z.1f") for values in differences)
            rows.append(f"| {part.name} | {part.cell} | {part.without} | {len(differences[0])} | {shown} |")
    if not rows:
        return ""
    ranking = "coarse ranking" if stage == "coarse" else "final ranking, which is re-ranked where there is SIM"
    lines = [
        f"**What each part adds to the {ranking}**: points of mean R@1, mean of the differences seed by seed ± half "
        "of their 95 % t-interval",
        "",
        f"| part | with | without | seeds | {' | '.join(splits)} |",
        f"|---|---|---|---|{'---|' * len(splits)}",
    ]
    return "\n".join([*lines, *rows, ""])


def table(runs: Sequence[Mapping[str, Any]], order: Sequence[str]) -> str:
    """A Markdown table for each test split."""
    lines = []
    for split in _splits(runs):
        lines += [
            f"**{split}**, mean R@1 of both directions (%), mean over seeds ± half of the 95 % t-interval",
            "",
            "| | seeds | coarse | re-ranked |",
            "|---|---|---|---|",
        ]
        for cell in order:
            coarse = list(mean_r1(runs, cell, split, "coarse").values())
            if coarse:
                reranked = list(mean_r1(runs, cell, split, "reranked").values())
                lines.append(f"| {cell} | {len(coarse)} | {_shown(coarse)} | {_shown(reranked)} |")
        lines.append("")
    return "\n".join(lines)


def draw(runs: Sequence[Mapping[str, Any]], order: Sequence[str], picture: Path) -> None:
    """Bars of the final ranking with intervals, and every seed as a dot; of the cells that have runs."""
    from matplotlib.figure import Figure

    splits, cells = _splits(runs), [cell for cell in order if any(run["cell"] == cell for run in runs)]
    figure = Figure(figsize=(5 + 4 * len(splits), 1.2 + 0.5 * len(cells)), layout="constrained")
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(panels, splits, strict=True):
        for place, cell in enumerate(cells):
            values = list(mean_r1(runs, cell, split, "final").values())
            mean, width = interval(values)
            axes.barh(place, mean, color="#8fb4d9", xerr=width if math.isfinite(width) else None, capsize=3)
            axes.plot(values, [place] * len(values), ".", color="#1f3b57")
        axes.set(
            title=split,
            xlabel="mean R@1 (%), re-ranked where there is SIM",
            yticks=range(len(cells)),
            yticklabels=cells,
        )
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.savefig(picture, dpi=110)


def _splits(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({report["protocol"]["split"] for run in runs for report in run["reports"]})


def _shown(values: Sequence[float], form: str = ".1f") -> str:
    if not values:
        return ""
    mean, width = interval(values)
    return f"{mean:{form}} ± {width:.1f}" if math.isfinite(width) else f"{mean:{form}}"
