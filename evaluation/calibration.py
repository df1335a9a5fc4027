"""How much the similarity counts beside the matching logit, where "sim+sic" adds the two.

SIC and SIM are trained by different losses on different pairs: the two logits are neither equally sure nor
independent. Temperature scaling (Guo et al. 2017, arXiv 1706.04599) fits one number for the logits of one classifier;
here are two numbers, of which only the ratio changes an order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reranking import Matched


def fit_rerank_temperature(matched: Matched, image_of_caption: Tensor, temperature: float) -> float:
    """The `temperature` of "sim+sic" that makes the right candidates most likely.

    The probability of a candidate among those of its query is taken to be the softmax of `a * similarity / temperature
    + b * matching logit`. The most likely a and b over the queries of both directions are sought, each with the prior
    that its logarithm is normally distributed around 0 with deviation 1: it keeps them finite where matching is always
    right or says nothing. Fitting b alone would not do, because it would also make up for similarities that are as a
    whole too sure or not sure enough, which says nothing about the order.

    Args:
        matched: of a split that the model was not trained on.
        image_of_caption: (captions,) the place of each caption's picture.
        temperature: that SIC learned.

    Returns:
        `temperature * b / a`. Queries whose candidates are all wrong say nothing; without others it is `temperature`.

    Raises:
        ValueError: a score is infinite.
    """
    relevant = image_of_caption.unsqueeze(1) == torch.arange(matched.coarse.shape[1])
    directions = [
        _of_candidates(matched.coarse, matched.logits, relevant, matched.by_speech),
        _of_candidates(matched.coarse.T, matched.logits.T, relevant.T, matched.by_image),
    ]
    if not all(coarse.isfinite().all() and logits.isfinite().all() for coarse, logits, _ in directions):
        raise ValueError("a similarity or matching logit of the validation split is infinite: the model diverged")
    log_scales = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scales], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = log_scales.square().sum() / 2
        for coarse, logits, right in directions:
            of_similarity, of_matching = log_scales.exp()
            scores = of_similarity * coarse / temperature + of_matching * logits
            likely = scores.masked_fill(~right, -torch.inf).logsumexp(1) - scores.logsumexp(1)  # any right one will do
            total = total - likely.sum()
        total.backward()
        return total

    optimizer.step(loss)
    of_similarity, of_matching = log_scales.detach()
    return temperature * (of_matching - of_similarity).exp().item()


def _of_candidates(
    coarse: Tensor, logits: Tensor, relevant: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(queries, k) each, of queries with a right candidate: similarities, matching logits, and which are right."""
    found = (candidates & relevant).any(dim=1)
    shape = (int(found.sum()), int(candidates[0].sum()))
    chosen = candidates & found.unsqueeze(1)
    coarse, logits, relevant = (of[chosen].view(shape) for of in (coarse, logits, relevant))
    return coarse.double(), logits.double(), relevant
