"""The retrieval protocol of the field: each distinct picture once, all spoken captions, both directions.

Speech to image has one right picture. Image to speech counts a hit if any caption of the picture is among the first k
(ALBEF `itm_eval`, SpeechCLIP `mutualRetrieval`), which is not the fraction of captions found that other toolkits call
recall. Results are comparable only with the same gallery, so it is reported with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .embedding import EncodedImages, EncodedSpeech, distinct_images
from .folds import check_folds, equal_folds, mean_figures
from .intervals import CONFIDENCE, RankedQueries, recall_intervals
from .ranking import RankedDirection, RankedGallery, rank_gallery
from .recall import chance_recall, recall_summary
from .reranking import ScoreRule, check_score_rule
from .split import Column, encode_split
from .standard_pools import describe_pool

DIRECTIONS = ("speech_to_image", "image_to_speech")


def evaluate_retrieval(
    model: nn.Module,
    processor: Callable[..., Mapping[str, Tensor]],
    dataset: Sequence[Mapping[str, Any]],
    *,
    corpus: str,
    split: str,
    rerank_top_k: int = 32,
    score_rule: ScoreRule = "sim",
    temperature: float | None = None,
    folds: int = 1,
    batch_size: int = 64,
    pairs_per_batch: int = 128,
    states_dtype: torch.dtype | None = None,
    num_workers: int = 0,
    group_by: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure retrieval on one split, in both directions.

    Args:
        dataset: rows with `image`, `audio`, `image_id` and `caption_id`, one per spoken caption: a split of a corpus
            or a list of dictionaries.
        corpus, split: names for the report.
        rerank_top_k: candidates per query that the multimodal encoder re-ranks; 0 measures the coarse ranking only.
        score_rule, temperature, pairs_per_batch: see :func:`.reranking.rerank`.
        folds: equal parts of the pictures, in the order of their rows, each of which is a gallery of its own.
        group_by: a column, such as `language` or `speaker`, whose values divide the spoken queries, see
            :func:`evaluate_encoded`.
        batch_size, states_dtype, num_workers: see :func:`.embedding.encode_speech`. States are kept in memory for the
            whole split: on a large one, float16 halves them.

    Returns:
        The report of :func:`evaluate_encoded`.

    Raises:
        ValueError: the split is empty, two rows have the same caption_id, a recording or a picture cannot be read (it
            is named by its id), or an option is out of range.
    """
    _check_options(rerank_top_k, score_rule)  # before hours of encoding
    check_folds(folds, len(distinct_images(list(Column(dataset, "image_id")))[0]))
    encoded = encode_split(
        model,
        processor,
        dataset,
        name=f"{corpus}, split {split!r}",
        keep_states=rerank_top_k > 0,
        batch_size=batch_size,
        states_dtype=states_dtype,
        num_workers=num_workers,
        progress=progress,
    )
    return evaluate_encoded(
        model,
        encoded.speech,
        encoded.images,
        encoded.image_of_caption,
        corpus=corpus,
        split=split,
        rerank_top_k=rerank_top_k,
        score_rule=score_rule,
        temperature=temperature,
        folds=folds,
        pairs_per_batch=pairs_per_batch,
        groups=None if group_by is None else [str(value) for value in Column(dataset, group_by)],
        progress=progress,
    )


def evaluate_encoded(
    model: nn.Module,
    speech: EncodedSpeech,
    images: EncodedImages,
    image_of_caption: Tensor,
    *,
    corpus: str,
    split: str,
    rerank_top_k: int = 32,
    score_rule: ScoreRule = "sim",
    temperature: float | None = None,
    folds: int = 1,
    pairs_per_batch: int = 128,
    groups: Sequence[str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure retrieval on features that are already there.

    Args:
        speech: all captions.
        images: the distinct pictures; every one has a caption.
        image_of_caption: (captions,) int64, the place of each caption's picture in `images`.
        rerank_top_k: 0 needs no states.
        folds: see :func:`evaluate_retrieval`; all figures are then means over the folds.
        groups: (captions,) a name for each spoken query; the figures of speech to image are then given for each group
            of queries too, against the whole gallery (of their fold).

    Returns:
        `protocol` (`rerank_top_k` is at most the larger of the two galleries; `pool`, see
        :func:`.standard_pools.describe_pool`), `speech_to_image` and `image_to_speech`, and `mean_r1` over the two. A
        direction has `coarse`, `reranked` (both with `R@1`, `R@5`, `R@10` in per cent and `median_rank`), the expected
        recalls of a random ranking as `chance`, the number of candidates that were re-ranked in its own gallery as
        `rerank_top_k`, and as `rerank_ceiling` the coarse recall at that number: the percentage of queries that
        re-ranking can still get right at rank 1. With `rerank_top_k=0` there is nothing about re-ranking in a
        direction or in `mean_r1`. With `groups`, `speech_to_image` has `groups`: for each its number of `captions`,
        and its `coarse` and `reranked`. `intervals` has, for each direction and `mean_r1`, the bounds that recalls
        keep to in 95 % of galleries of as many pictures, see :func:`.intervals.recall_intervals`. With several folds,
        `folds` is a list of their `images`, `captions` and figures.

    Raises:
        ValueError: an option is out of range, or there are no token states to re-rank by.
    """
    _check_options(rerank_top_k, score_rule)
    measured, parts = [], equal_folds(speech, images, image_of_caption, folds)
    for part in parts:
        ranked = rank_gallery(
            model,
            part.speech,
            part.images,
            part.image_of_caption,
            rerank_top_k=rerank_top_k,
            score_rule=score_rule,
            temperature=temperature,
            pairs_per_batch=pairs_per_batch,
            progress=progress,
        )
        measured.append(measure(ranked))
    report = report_of(measured, corpus=corpus, split=split, score_rule=score_rule)
    if groups is not None:
        queries = [one.queries["speech_to_image"].ranks for one in measured]
        order = torch.cat([part.captions for part in parts]).argsort()
        ranks = {stage: torch.cat([of[stage] for of in queries])[order] for stage in queries[0]}
        report["speech_to_image"]["groups"] = _by_group(ranks, groups)
    return report


class Measured(NamedTuple):
    """What is known of one gallery, without its scores.

    Attributes:
        figures: `speech_to_image`, `image_to_speech` and `mean_r1` as in a report.
        queries: direction to ranks. temperature: as in :class:`.ranking.RankedGallery`.
    """

    images: int
    captions: int
    figures: dict[str, Any]
    queries: dict[str, RankedQueries]
    temperature: float | None


def measure(ranked: RankedGallery) -> Measured:
    """The figures of a ranked gallery."""
    directions = {name: getattr(ranked, name) for name in DIRECTIONS}
    figures = {name: _figures(direction) for name, direction in directions.items()}
    stages = ranked.speech_to_image.scores
    figures["mean_r1"] = {stage: sum(figures[name][stage]["R@1"] for name in DIRECTIONS) / 2 for stage in stages}
    captions, images = ranked.speech_to_image.relevant.shape
    queries = {name: direction.queries for name, direction in directions.items()}
    return Measured(images, captions, figures, queries, ranked.temperature)


def report_of(folds: Sequence[Measured], *, corpus: str, split: str, score_rule: ScoreRule) -> dict[str, Any]:
    """The report of :func:`evaluate_encoded`, without `groups`, from what was measured in each fold (or in one)."""
    images, captions = (sum(counts) for counts in zip(*((fold.images, fold.captions) for fold in folds), strict=True))
    means = mean_figures([fold.figures for fold in folds])
    top_k = max(means[direction].get("rerank_top_k", 0) for direction in DIRECTIONS)
    protocol = {
        "corpus": corpus,
        "split": split,
        "images": images,
        "captions": captions,
        "rerank_top_k": top_k,
        "score_rule": score_rule if top_k else None,
        "pool": describe_pool(corpus, split, images, captions, len(folds)),
    }
    if folds[0].temperature is not None:
        protocol["temperature"] = folds[0].temperature
    report = {"protocol": protocol, **means, "intervals": _intervals(folds)}
    if len(folds) > 1:
        protocol["folds"] = len(folds)
        report["folds"] = [{"images": fold.images, "captions": fold.captions, **fold.figures} for fold in folds]
    return report


def _check_options(rerank_top_k: int, score_rule: str) -> None:
    if rerank_top_k < 0:
        raise ValueError(f"rerank_top_k must be 0 (coarse ranking only) or more, not {rerank_top_k}")
    check_score_rule(score_rule)


def _figures(direction: RankedDirection) -> dict[str, Any]:
    figures: dict[str, Any] = {stage: recall_summary(ranks) for stage, ranks in direction.queries.ranks.items()}
    figures["chance"] = chance_recall(direction.relevant)
    if direction.candidates is not None:
        figures["rerank_top_k"] = int(direction.candidates[0].sum())
        found = (direction.candidates & direction.relevant).any(dim=1)
        figures["rerank_ceiling"] = 100 * found.double().mean().item()
    return figures


def _intervals(folds: Sequence[Measured]) -> dict[str, Any]:
    """Bounds of the recalls of both directions and of `mean_r1`, and their `confidence`."""
    directions = {name: recall_intervals([[fold.queries[name]] for fold in folds]) for name in DIRECTIONS}
    both = recall_intervals([[fold.queries[name] for name in DIRECTIONS] for fold in folds])
    mean_r1 = {stage: bounds["R@1"] for stage, bounds in both.items()}
    return {"confidence": CONFIDENCE, **directions, "mean_r1": mean_r1}


def _by_group(ranks: Mapping[str, Tensor], groups: Sequence[str]) -> dict[str, Any]:
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return {
        group: {"captions": len(members), **{stage: recall_summary(of[members]) for stage, of in ranks.items()}}
        for group, members in sorted(rows.items())
    }
