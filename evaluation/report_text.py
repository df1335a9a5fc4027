"""A report as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .recall import RECALL_CUTOFFS


def format_report(report: Mapping[str, Any]) -> str:
    """The report as text: the protocol, then each direction's figures with the chance level next to them."""
    protocol = report["protocol"]
    captions, images = protocol["captions"], protocol["images"]
    lines = [
        f"{protocol['corpus']}, split {protocol['split']}: {images} distinct images, {captions} spoken captions",
        *protocol_lines(report),
        "Image to speech: a hit is any caption of the image. Ties count against the model.",
    ]
    for name, title in (("speech_to_image", "Speech to image"), ("image_to_speech", "Image to speech")):
        direction = report[name]
        intervals = report["intervals"][name]
        heading = "".join(f"{f'R@{k}':>8}" for k in RECALL_CUTOFFS) + f"{'median rank':>14}"
        lines += ["", f"{title:<20}{heading}"]
        for stage in ("coarse", "reranked", "chance"):
            if stage in direction:
                lines.append(_figures(stage, direction[stage]))
            if stage in intervals:
                lines.append(f"    {_bounds(intervals[stage])}")
        if "reranked" in direction:
            lines.append(
                f"  re-ranked: top {direction['rerank_top_k']} by {_rule(protocol)}; "
                f"{direction['rerank_ceiling']:.1f} % of queries have a right answer among them"
            )
        for group, figures in direction.get("groups", {}).items():
            lines.append(f"  {group}, {figures['captions']} queries")
            lines += [_figures(f"  {stage}", figures[stage]) for stage in ("coarse", "reranked") if stage in figures]
    means = ", ".join(
        f"{stage} {value:.1f} ({interval(report['intervals']['mean_r1'][stage])})"
        for stage, value in report["mean_r1"].items()
    )
    lines += ["", f"Mean R@1 of both directions: {means}"]
    return "\n".join([*lines, f"In brackets and below figures: {HOW_SURE}"])


HOW_SURE = "95 % bootstrap intervals, pictures drawn with all their captions."


def protocol_lines(report: Mapping[str, Any]) -> list[str]:
    """What figures must share to be comparable, beyond corpus, split and sizes: a sentence each."""
    protocol, lines = report["protocol"], []
    if "folds" in report:
        folds = report["folds"]
        spoken = sorted({fold["captions"] for fold in folds})
        captions = f"{spoken[0]:,}" if len(spoken) == 1 else f"{spoken[0]:,} to {spoken[-1]:,}"
        lines.append(f"Mean of {len(folds)} folds of {folds[0]['images']:,} images and {captions} captions each.")
    pool = protocol["pool"]
    lines.append(f"Standard pool: {pool['name']}." if pool["standard"] else f"Non-standard pool: {pool['reason']}.")
    if "language" in protocol:
        lines.append(f"Captions in the language {protocol['language']} only.")
    if "checkpoint" in protocol:
        lines.append(f"Checkpoint: {protocol['checkpoint']['name']}, {protocol['checkpoint']['fingerprint']}.")
    if "score_rule_chosen_on" in protocol:
        lines.append(_chosen(protocol["score_rule_chosen_on"], protocol["score_rule"]))
    return lines


def interval(bounds: tuple[float, float]) -> str:
    """The bounds of an interval as text. Equal ones, where all queries fare alike, tell nothing."""
    return "undetermined" if bounds[0] == bounds[1] else f"{bounds[0]:.1f}–{bounds[1]:.1f}"


def _chosen(choice: Mapping[str, Any], rule: str) -> str:
    means = ", ".join(f"{name} {value:.1f}" for name, value in choice["mean_r1"].items())
    return (
        f"Score rule {rule} chosen on split {choice['split']} ({choice['images']:,} images, "
        f"{choice['captions']:,} captions), mean R@1: {means}."
    )


def _bounds(intervals: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} {interval(bounds)}" for name, bounds in intervals.items())


def _figures(stage: str, summary: Mapping[str, float]) -> str:
    recalls = "".join(f"{summary[f'R@{k}']:>8.1f}" for k in RECALL_CUTOFFS)
    median = f"{summary['median_rank']:>14.1f}" if "median_rank" in summary else f"{'':>14}"
    return f"  {stage:<18}{recalls}{median}".rstrip()


def _rule(protocol: Mapping[str, Any]) -> str:
    if protocol["score_rule"] == "sim":
        return "the matching score"
    return f"the matching score plus the cosine similarity / {protocol['temperature']:g}"
