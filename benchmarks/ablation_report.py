"""The ablation's table and plot: means over seeds, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

_CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of the 95 % t-interval of the mean; infinite of a single run."""
    if len(values) < 2:
        return float(np.mean(values)), math.inf
    width = stats.t.ppf(0.5 + _CONFIDENCE / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(width)


def mean_r1(runs: Sequence[Mapping[str, Any]], cell: str, split: str, stage: str) -> list[float]:
    """Mean R@1 of both directions, of each seed of a cell. `final` is re-ranked where there is SIM."""
    found = []
    for run in runs:
        for report in run["reports"]:
            if (run["cell"], report["protocol"]["split"]) == (cell, split):
                means = report["mean_r1"]
                name = ("reranked" if "reranked" in means else "coarse") if stage == "final" else stage
                found += [means[name]] if name in means else []
    return found


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
            coarse = mean_r1(runs, cell, split, "coarse")
            if coarse:
                reranked = mean_r1(runs, cell, split, "reranked")
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
            values = mean_r1(runs, cell, split, "final")
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


def _shown(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, width = interval(values)
    return f"{mean:.1f} ± {width:.1f}" if math.isfinite(width) else f"{mean:.1f}"
