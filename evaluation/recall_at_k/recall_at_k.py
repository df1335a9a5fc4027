"""Recall at k of retrieval, from ranked lists of ids, as a module of the `evaluate` library."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from .ranked_lists import bootstrap_intervals, fractions_found, ranks_of_relevant

_DESCRIPTION = """
How well queries find what is relevant to them. `R@k` is the percentage of queries with at least one relevant id among
the first k, the hit rate that the literature on image-caption and speech-image retrieval calls recall. With
`fractional=True` also `fractional_recall@k`, the mean percentage of a query's relevant ids among the first k, which
mteb and trec_eval call recall: the two differ as soon as a query has several relevant ids.
"""

_INPUTS = """
predictions: for each query the ids that were found, the best first; they may be cut off at any length from max(ks).
references: for each query the relevant ids, at least one.
ks: the cut-offs; 1, 5 and 10 if not given.
fractional: also give fractional_recall@k.
groups: for each query what it belongs to, for instance its picture; intervals then draw whole groups.
confidence: of bootstrap intervals, for instance 0.95; None for none. resamples, seed: of the bootstrap.

Returns R@k, median_rank (infinite if half of the queries found nothing), MRR (mean reciprocal rank, 0 to 1), and with
`confidence` as `intervals` the low and high end of each but the median rank.
"""

_CITATION = """
@article{zhou2024coarse,
  title={Coarse-to-fine Alignment Makes Better Speech-image Retrieval},
  author={Zhou, Lifeng and Li, Yuke},
  journal={arXiv preprint arXiv:2408.13119},
  year={2024}
}
"""


class RecallAtK(evaluate.Metric):
    """`evaluate.load("evaluation/recall_at_k").compute(predictions=[...], references=[...])`."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def _compute(
        self,
        predictions: list[list[str]],
        references: list[list[str]],
        ks: tuple[int, ...] = (1, 5, 10),
        fractional: bool = False,
        groups: list[str] | None = None,
        confidence: float | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, object]:
        if min(ks) < 1:
            raise ValueError(f"k must be at least 1, not {min(ks)}")
        ranks = ranks_of_relevant(predictions, references)
        per_query = {f"R@{k}": 100.0 * (ranks <= k) for k in ks} | {"MRR": 1 / ranks}
        if fractional:
            per_query |= {f"fractional_recall@{k}": 100 * fractions_found(predictions, references, k) for k in ks}
        results: dict[str, object] = {name: float(values.mean()) for name, values in per_query.items()}
        results["median_rank"] = float(np.median(ranks))
        if confidence is not None:
            groups = [str(query) for query in range(len(ranks))] if groups is None else groups
            results["intervals"] = bootstrap_intervals(
                per_query, groups, confidence=confidence, resamples=resamples, seed=seed
            )
        return results
