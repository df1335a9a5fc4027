"""How much a matching logit counts beside the contrastive similarity: fitted, since the two are trained by losses that
see different pairs.

SIM learns from one hard negative a pair, SIC from the whole batch and queue: on the same candidates their logits are
not equally sure. Temperature scaling (Guo et al. 2017, arXiv 1706.04599) mends that for one classifier with one
number; here are two, whose logits "sim+sic" adds, and what matters is the ratio of their scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reranking import Matched

_PRIOR = 1e-3  # pulls both scales to 1 where the data says nothing: candidates that are all right, or logits of noise


def fit_matching_scale(matched: Matched, image_of_caption: Tensor, temperature: float) -> float:
    """What to multiply matching logits by before the similarity divided by `temperature` is added.

    The most likely scales a of the similarities and b of the matching logits are sought, where the probability of a
    candidate among those of its query is the softmax of `a * similarity / temperature + b * logit`, over both
    directions; their ratio b / a is returned. Fitting b alone would not do: it would also make up for similarities
    that are as a whole too sure or not sure enough, which says nothing about the order.

    Args:
        matched: of a split that the model was not trained on, and whose figures nobody reports.
        image_of_caption: (captions,) the place of each caption's picture.

    Returns:
        A positive number. Queries whose candidates are all wrong say nothing; if there are no others, 1.
    """
    coarse, logits = matched.coarse.double() / temperature, matched.logits.double()
    relevant = image_of_caption.unsqueeze(1) == torch.arange(coarse.shape[1])
    directions = [
        _gathered(coarse, logits, relevant, matched.by_speech),
        _gathered(coarse.T, logits.T, relevant.T, matched.by_image),
    ]
    log_scales = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scales], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = _PRIOR * log_scales.square().sum()
        for of_candidates in directions:
            total = total + _negative_log_likelihood(*of_candidates, log_scales.exp())
        total.backward()
        return total

    optimizer.step(loss)
    of_similarity, of_matching = log_scales.detach()
    return (of_matching - of_similarity).exp().item()


def _gathered(coarse: Tensor, logits: Tensor, relevant: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(queries, k) each: what is known of the candidates of the queries that have a right one."""
    found = (candidates & relevant).any(dim=1)
    shape = (int(found.sum()), int(candidates[0].sum()))
    coarse, logits, relevant = (of[found][candidates[found]].view(shape) for of in (coarse, logits, relevant))
    return coarse, logits, relevant


def _negative_log_likelihood(coarse: Tensor, logits: Tensor, relevant: Tensor, scales: Tensor) -> Tensor:
    """Mean over the queries; any right candidate will do, as in R@k."""
    if len(coarse) == 0:
        return scales.sum() * 0
    scores = scales[0] * coarse + scales[1] * logits
    return (scores.logsumexp(1) - scores.masked_fill(~relevant, -torch.inf).logsumexp(1)).mean()
