"""The retrieval protocol of the field: each distinct picture once, all spoken captions, both directions.

Speech to image has one right picture. Image to speech counts a hit if any caption of the picture is among the first k
(ALBEF `itm_eval`, SpeechCLIP `mutualRetrieval`), which is not the fraction of captions found that other toolkits call
recall. Results are comparable only with the same gallery, so it is reported with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .embedding import EncodedImages, EncodedSpeech, distinct_images, encode_images, encode_speech
from .recall import RECALL_CUTOFFS, chance_recall, ranks_of_relevant, recall_summary
from .reranking import Direction, ScoreRule, check_score_rule, rerank, sic_temperature


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
    if len(dataset) == 0:
        raise ValueError(f"{corpus}, split {split!r}: there are no rows to evaluate")
    caption_ids, image_ids = list(_Column(dataset, "caption_id")), list(_Column(dataset, "image_id"))
    _check_caption_ids(caption_ids, where=f"{corpus}, split {split!r}")
    first_rows, image_of_caption = distinct_images(image_ids)
    gallery_ids = [image_ids[row] for row in first_rows]
    options = {
        "batch_size": batch_size,
        "keep_states": rerank_top_k > 0,
        "states_dtype": states_dtype,
        "num_workers": num_workers,
        "progress": progress,
    }
    return evaluate_encoded(
        model,
        encode_speech(model, processor, _Column(dataset, "audio"), names=caption_ids, **options),
        encode_images(model, processor, _Column(dataset, "image", first_rows), names=gallery_ids, **options),
        image_of_caption,
        corpus=corpus,
        split=split,
        rerank_top_k=rerank_top_k,
        score_rule=score_rule,
        temperature=temperature,
        pairs_per_batch=pairs_per_batch,
        groups=None if group_by is None else [str(value) for value in _Column(dataset, group_by)],
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
        groups: (captions,) a name for each spoken query; the figures of speech to image are then given for each group
            of queries too, against the whole gallery.

    Returns:
        `protocol` (`rerank_top_k` is at most the larger of the two galleries), `speech_to_image` and
        `image_to_speech`, and `mean_r1` over the two. A direction has `coarse`, `reranked` (both with `R@1`, `R@5`,
        `R@10` in per cent and `median_rank`), the expected recalls of a random ranking as `chance`, the number of
        candidates that were re-ranked in its own gallery as `rerank_top_k`, and as `rerank_ceiling` the coarse recall
        at that number: the percentage of queries that re-ranking can still get right at rank 1. With
        `rerank_top_k=0` there is nothing about re-ranking in a direction or in `mean_r1`. With `groups`,
        `speech_to_image` has `groups`: for each its number of `captions`, and its `coarse` and `reranked`.
    """
    _check_options(rerank_top_k, score_rule)
    captions, pictures = len(speech.embeddings), len(images.embeddings)
    relevant = image_of_caption.unsqueeze(1) == torch.arange(pictures)
    relevant_to_images = relevant.T.contiguous()
    coarse = speech.embeddings @ images.embeddings.T
    report = {
        "protocol": {
            "corpus": corpus,
            "split": split,
            "images": pictures,
            "captions": captions,
            "rerank_top_k": min(rerank_top_k, max(captions, pictures)),
            "score_rule": score_rule if rerank_top_k else None,
        },
        "speech_to_image": _coarse_direction(coarse, relevant),
        "image_to_speech": _coarse_direction(coarse.T.contiguous(), relevant_to_images),
    }
    ranks = {"coarse": ranks_of_relevant(coarse, relevant)}
    if rerank_top_k:
        if speech.states is None or images.states is None:
            raise ValueError("re-ranking needs token states: encode with keep_states=True, or set rerank_top_k=0")
        if score_rule == "sim+sic":
            temperature = report["protocol"]["temperature"] = sic_temperature(model, temperature)
        reranked = rerank(
            model,
            coarse,
            speech.states,
            images.states,
            rerank_top_k,
            score_rule=score_rule,
            temperature=temperature,
            pairs_per_batch=pairs_per_batch,
            progress=progress,
        )
        ranks["reranked"] = ranks_of_relevant(reranked.speech_to_image.scores, relevant)
        report["speech_to_image"] |= _reranked_direction(reranked.speech_to_image, relevant)
        report["image_to_speech"] |= _reranked_direction(reranked.image_to_speech, relevant_to_images)
    if groups is not None:
        report["speech_to_image"]["groups"] = _by_group(ranks, groups)
    report["mean_r1"] = {
        stage: (report["speech_to_image"][stage]["R@1"] + report["image_to_speech"][stage]["R@1"]) / 2
        for stage in ("coarse", "reranked")
        if stage in report["speech_to_image"]
    }
    return report


def format_report(report: Mapping[str, Any]) -> str:
    """The report as text: the protocol, then each direction's figures with the chance level next to them."""
    protocol = report["protocol"]
    captions, images = protocol["captions"], protocol["images"]
    lines = [
        f"{protocol['corpus']}, split {protocol['split']}: {images} distinct images, {captions} spoken captions",
        "Image to speech: a hit is any caption of the image. Ties count against the model.",
    ]
    for name, title in (("speech_to_image", "Speech to image"), ("image_to_speech", "Image to speech")):
        direction = report[name]
        heading = "".join(f"{f'R@{k}':>8}" for k in RECALL_CUTOFFS) + f"{'median rank':>14}"
        lines += ["", f"{title:<20}{heading}"]
        lines += [
            _figures(stage, direction[stage]) for stage in ("coarse", "reranked", "chance") if stage in direction
        ]
        if "reranked" in direction:
            lines.append(
                f"  re-ranked: top {direction['rerank_top_k']} by {_rule(protocol)}; "
                f"{direction['rerank_ceiling']:.1f} % of queries have a right answer among them"
            )
        for group, figures in direction.get("groups", {}).items():
            lines.append(f"  {group}, {figures['captions']} queries")
            lines += [_figures(f"  {stage}", figures[stage]) for stage in ("coarse", "reranked") if stage in figures]
    means = ", ".join(f"{stage} {value:.1f}" for stage, value in report["mean_r1"].items())
    return "\n".join([*lines, "", f"Mean R@1 of both directions: {means}"])


class _Column(Sequence):
    """One column of a dataset, read row by row: an audio column must not decode its images, nor fill the memory."""

    def __init__(self, dataset: Sequence[Mapping[str, Any]], name: str, rows: Sequence[int] | None = None):
        self._dataset = dataset.select_columns([name]) if hasattr(dataset, "select_columns") else dataset
        self._name = name
        self._rows = range(len(dataset)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._rows[index]][self._name]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def _check_options(rerank_top_k: int, score_rule: str) -> None:
    if rerank_top_k < 0:
        raise ValueError(f"rerank_top_k must be 0 (coarse ranking only) or more, not {rerank_top_k}")
    check_score_rule(score_rule)


def _check_caption_ids(caption_ids: Sequence[str], where: str) -> None:
    caption_id, count = Counter(caption_ids).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{where}: caption_id {caption_id!r} occurs {count} times. A caption that is in the gallery twice "
            "changes every rank: remove the duplicates."
        )


def _coarse_direction(coarse: Tensor, relevant: Tensor) -> dict[str, Any]:
    return {"coarse": recall_summary(ranks_of_relevant(coarse, relevant)), "chance": chance_recall(relevant)}


def _reranked_direction(direction: Direction, relevant: Tensor) -> dict[str, Any]:
    return {
        "reranked": recall_summary(ranks_of_relevant(direction.scores, relevant)),
        "rerank_top_k": int(direction.candidates[0].sum()),
        "rerank_ceiling": 100 * (direction.candidates & relevant).any(dim=1).double().mean().item(),
    }


def _by_group(ranks: Mapping[str, Tensor], groups: Sequence[str]) -> dict[str, Any]:
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return {
        group: {"captions": len(members), **{stage: recall_summary(of[members]) for stage, of in ranks.items()}}
        for group, members in sorted(rows.items())
    }


def _figures(stage: str, summary: Mapping[str, float]) -> str:
    recalls = "".join(f"{summary[f'R@{k}']:>8.1f}" for k in RECALL_CUTOFFS)
    median = f"{summary['median_rank']:>14.1f}" if "median_rank" in summary else f"{'':>14}"
    return f"  {stage:<18}{recalls}{median}".rstrip()


def _rule(protocol: Mapping[str, Any]) -> str:
    if protocol["score_rule"] == "sim":
        return "the matching score"
    return f"the matching score plus the cosine similarity / {protocol['temperature']:g}"
