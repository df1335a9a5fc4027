"""Plots of a checked corpus, as SVG that takes the colour of the text around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .split_facts import SplitFacts

_INK = "#010203"  # stands for the colour of the text
_COLOURS = ("#3b82c4", "#e08a1e", "#3a9d5d", "#b455b0", "#c9524a", "#7a7f87")  # legible on white and on near-black
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold dollar signs
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
}
_BINS = 40
_BARS = 12
_SIZES = 600  # markers at most


class Plot(NamedTuple):
    """`svg` is one `<svg>` element, without scripts, styles of the page, or anything to load."""

    title: str
    note: str
    svg: str


def draw_plots(splits: Sequence[SplitFacts]) -> list[Plot]:
    """The plots that the corpus has data for."""
    plots = [
        ("Duration", "Share of each split's recordings, by seconds.", _durations),
        ("Captions per picture", "Share of each split's pictures.", _captions_per_picture),
        ("Picture sizes", "Distinct pictures, in pixels; the larger the mark, the more of that size.", _sizes),
        ("Sampling rates", "Recordings of each rate and number of channels.", _sampling_rates),
        ("Languages", "Captions in each language.", _languages),
        ("Captions per speaker", "Speakers of each split, the one with the most captions first.", _speakers),
    ]
    return [Plot(title, note, svg) for title, note, draw in plots if (svg := _svg(title, draw, splits))]


def _svg(title: str, draw: Callable[[Axes, Sequence[SplitFacts]], bool], splits: Sequence[SplitFacts]) -> str | None:
    # The salt keeps the ids of one plot from those of another on the same page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = figure.subplots()
        if not draw(axes, splits):
            return None
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]+")[^>]*>', rf'<svg \1 role="img" aria-label="{title}">', svg, count=1)
    return svg.replace(_INK, "currentColor")


def _durations(axes: Axes, splits: Sequence[SplitFacts]) -> bool:
    seconds = [split.rows["seconds"][split.rows["seconds"] > 0] for split in splits]
    together = np.concatenate(seconds)
    if not len(together):
        return False
    # Longer ones than the last edge go into the last bin, so that one of ten minutes does not flatten the plot.
    longest = float(min(together.max(), 2 * np.quantile(together, 0.99)))
    _histograms(axes, splits, [np.minimum(own, longest) for own in seconds], np.linspace(0, longest, _BINS + 1))
    axes.set_xlabel("seconds" if longest == together.max() else f"seconds ({longest:.1f} and more in the last)")
    return True


def _captions_per_picture(axes: Axes, splits: Sequence[SplitFacts]) -> bool:
    counts = [split.image_ids.counts for split in splits]
    most = max((int(own.max()) for own in counts if len(own)), default=0)
    if not most:
        return False
    edges = np.arange(0.5, most + 1) if most <= _BINS else np.linspace(0.5, most + 0.5, _BINS + 1)
    _histograms(axes, splits, counts, edges)
    axes.set_xlabel("captions of a picture")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return True


def _histograms(axes: Axes, splits: Sequence[SplitFacts], values: Sequence[np.ndarray], edges: np.ndarray) -> None:
    for number, (split, own) in enumerate(zip(splits, values, strict=True)):
        if len(own):
            colour = _COLOURS[number % len(_COLOURS)]
            share = np.histogram(own, edges)[0] / len(own)
            axes.stairs(share, edges, color=colour, linewidth=1.6, label=split.name)
            axes.stairs(share, edges, color=colour, alpha=0.12, fill=True)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if axes.get_ylim()[1] > 0.05 else None))


def _sizes(axes: Axes, splits: Sequence[SplitFacts]) -> bool:
    seen = [split.rows[split.first_rows_of_pictures()] for split in splits]
    if not sum(map(len, seen)):
        return False
    for number, (split, rows) in enumerate(zip(splits, seen, strict=True)):
        sizes, counts = np.unique(np.stack([rows["width"], rows["height"]], axis=1), axis=0, return_counts=True)
        most = np.argsort(-counts)[:_SIZES]
        area = 12 * (1 + np.log2(counts[most]))
        colour = _COLOURS[number % len(_COLOURS)]
        axes.scatter(*sizes[most].T, s=area, alpha=0.5, linewidth=0, color=colour, label=split.name)
    axes.set(xlabel="width", ylabel="height", xlim=(0, None), ylim=(0, None))
    return True


def _sampling_rates(axes: Axes, splits: Sequence[SplitFacts]) -> bool:
    rows = np.concatenate([split.rows[split.rows["seconds"] > 0] for split in splits])
    kinds = np.stack([rows["sampling_rate"], rows["channels"]], axis=1)
    kinds, counts = np.unique(kinds, axis=0, return_counts=True)
    names = [f"{rate / 1000:g} kHz, {_channels(channels)}" for rate, channels in kinds]
    return _bars(axes, dict(zip(names, counts.tolist(), strict=True)), "recordings")


def _channels(count: int) -> str:
    return {1: "mono", 2: "stereo"}.get(count, f"{count} channels")


def _languages(axes: Axes, splits: Sequence[SplitFacts]) -> bool:
    counts: dict[str, int] = {}
    for split in splits:
        for language, count in zip(split.languages.distinct, split.languages.counts.tolist(), strict=True):
            counts[language] = counts.get(language, 0) + count
    return _bars(axes, counts, "captions")


def _bars(axes: Axes, counts: dict[str, int], unit: str) -> bool:
    most = sorted(counts.items(), key=lambda item: -item[1])
    if len(most) > _BARS:
        most = [*most[: _BARS - 1], (f"{len(most) - _BARS + 1} others", sum(count for _, count in most[_BARS - 1 :]))]
    if not most:
        return False
    names, values = zip(*most, strict=True)
    bars = axes.barh(range(len(names)), values, height=0.7, color=_COLOURS[0])
    axes.bar_label(bars, [f"{value:,}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    space = 0.6 + max(0, 5 - len(names)) / 2  # a few bars do not fill the height
    axes.set(xlabel=unit, ylim=(len(names) - 1 + space, -space))
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return True


def _speakers(axes: Axes, splits: Sequence[SplitFacts]) -> bool:
    counted = [np.sort(split.speakers.counts)[::-1] for split in splits]
    if not sum(map(len, counted)):
        return False
    for number, (split, counts) in enumerate(zip(splits, counted, strict=True)):
        if len(counts):
            marker = "o" if len(counts) <= _BINS else ""
            colour = _COLOURS[number % len(_COLOURS)]
            axes.plot(range(1, len(counts) + 1), counts, color=colour, marker=marker, markersize=3, label=split.name)
    axes.set(xlabel="speakers", ylabel="captions", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return True
