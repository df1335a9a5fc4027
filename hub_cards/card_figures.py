"""The figures of a report as a card shows them: rows of a table, and `model-index` for the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..evaluation.recall import RECALL_CUTOFFS
from ..evaluation.report_text import interval, protocol_lines
from ..evaluation.standard_pools import corpus_name

_DIRECTIONS = {"speech_to_image": "speech to image", "image_to_speech": "image to speech"}
_STAGES = {"coarse": "coarse", "reranked": "re-ranked"}


def eval_results(report: Mapping[str, Any]) -> list[EvalResult]:
    """The recalls of a report as `model-index` holds them, each with what it was reached on."""
    protocol = report["protocol"]
    pool = {name: protocol[name] for name in ("images", "captions", "folds", "language", "pool") if name in protocol}
    results = []
    for direction, title in _DIRECTIONS.items():
        for stage, words in _STAGES.items():
            rule = {"rerank_top_k": protocol["rerank_top_k"], "score_rule": protocol["score_rule"]}
            results += [
                EvalResult(
                    task_type="speech-image-retrieval",
                    task_name="Speech-image retrieval",
                    dataset_type=protocol["corpus"],
                    dataset_name=protocol["corpus"],
                    dataset_split=protocol["split"],
                    dataset_args=pool,
                    metric_type="recall",
                    metric_name=f"R@{k}, {title}, {words}",
                    metric_value=round(report[direction][stage][f"R@{k}"], 2),
                    metric_args={"k": k, **(rule if stage == "reranked" else {})},
                )
                for k in RECALL_CUTOFFS
                if stage in report[direction]
            ]
    return results


def as_table(report: Mapping[str, Any], cascade: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the template shows of a report: sentences on the protocol, and rows of cells."""
    protocol = report["protocol"]
    rows, slices = [], []
    for direction, title in _DIRECTIONS.items():
        figures = report[direction]
        for stage, words in _STAGES.items():
            if stage in figures:
                name = f"{title}, {words}" + (f", top {figures['rerank_top_k']}" if stage == "reranked" else "")
                rows.append([name, *_cells(figures[stage], report["intervals"][direction][stage])])
        if cascade is not None and _pool(cascade) == _pool(report):
            rows.append(rows_of_cascade(cascade)[direction])
        rows.append([f"{title}, chance", *_cells(figures["chance"], {})])
        slices += [
            [group, f"{of['captions']:,}", words, *_cells(of[stage], {})]
            for group, of in figures.get("groups", {}).items()
            for stage, words in _STAGES.items()
            if stage in of
        ]
    title = f"{protocol['corpus']}, split {protocol['split']}: {protocol['images']:,} pictures, "
    return {
        "title": title + f"{protocol['captions']:,} spoken captions",
        "sentences": protocol_lines(report),
        "ceiling": {
            title: report[name]["rerank_ceiling"]
            for name, title in _DIRECTIONS.items()
            if "rerank_ceiling" in report[name]
        },
        "score_rule": protocol["score_rule"],
        "rows": rows,
        "slices": slices,
    }


def _pool(report: Mapping[str, Any]) -> list[Any]:
    protocol = report["protocol"]
    return [corpus_name(protocol["corpus"]), *(protocol[name] for name in ("split", "images", "captions"))]


def rows_of_cascade(cascade: Mapping[str, Any]) -> dict[str, list[str]]:
    """Of what benchmarks/cascade.py writes, the cells of each direction."""
    whisper = Path(cascade["protocol"]["whisper"]).name
    return {
        direction: [
            f"{title}, cascade: {whisper}, transcripts against captions",
            *_cells(cascade[direction]["cascade"], {}),
        ]
        for direction, title in _DIRECTIONS.items()
    }


def _cells(summary: Mapping[str, float], bounds: Mapping[str, Sequence[float]]) -> list[str]:
    cells = [
        f"{summary[name]:.1f}" + (f" ({interval(tuple(bounds[name]))})" if name in bounds else "")
        for name in (f"R@{k}" for k in RECALL_CUTOFFS)
    ]
    return [*cells, f"{summary['median_rank']:.1f}" if "median_rank" in summary else ""]
