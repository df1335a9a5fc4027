from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speech_image_retrieval.modeling.losses import (
    contrastive_loss,
    matching_loss,
    positive_targets,
    sample_hard_negatives,
    soft_cross_entropy,
)

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 0.5, 0.5]])


def draws(logits: torch.Tensor, same_image: torch.Tensor, count: int = 1, times: int = 20_000) -> torch.Tensor:
    """(times, count) columns drawn for one row, all of them real."""
    torch.manual_seed(0)
    columns, real = sample_hard_negatives(logits.expand(times, -1), same_image.expand(times, -1), count)
    assert real.all()
    return columns


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.lists(st.integers(0, 5), max_size=6))
def test_targets_share_each_row_among_all_columns_of_its_image(rows, queued):
    columns = rows + queued
    targets = positive_targets(torch.tensor(rows), torch.tensor(columns)).tolist()
    for row, line in zip(rows, targets, strict=True):
        shares = [1 / columns.count(row) if column == row else 0.0 for column in columns]
        assert line == pytest.approx(shares, abs=1e-6)


def test_soft_cross_entropy_is_the_mean_over_rows_of_minus_target_log_probability():
    targets = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    total = 0.0
    for logits, target in zip(LOGITS.tolist(), targets.tolist(), strict=True):
        normaliser = sum(math.exp(value) for value in logits)
        total -= sum(t * math.log(math.exp(value) / normaliser) for t, value in zip(target, logits, strict=True))
    assert soft_cross_entropy(LOGITS, targets).item() == pytest.approx(total / 2, abs=1e-6)


def test_contrastive_loss_is_the_mean_of_both_directions_each_with_its_own_targets():
    speech_targets, image_targets = positive_targets(torch.tensor([0, 1]), torch.arange(4)), torch.full((2, 4), 0.25)
    image_logits = LOGITS.roll(1, dims=1) * 3
    speech_loss, image_loss = (
        soft_cross_entropy(LOGITS, speech_targets),
        soft_cross_entropy(image_logits, image_targets),
    )
    loss = contrastive_loss(LOGITS, image_logits, speech_targets, image_targets)
    assert loss.item() == pytest.approx((speech_loss + image_loss).item() / 2)


def test_half_precision_logits_lose_nothing_but_their_own_rounding():
    logits = (LOGITS * 7).bfloat16()
    targets = positive_targets(torch.tensor([0, 1]), torch.arange(4))
    assert soft_cross_entropy(logits, targets).dtype == torch.float32
    assert torch.equal(soft_cross_entropy(logits, targets), soft_cross_entropy(logits.float(), targets))


def test_negatives_are_drawn_in_proportion_to_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 5.0])
    same_image = torch.tensor([False, False, False, False, True])
    counts = draws(logits, same_image).flatten().bincount(minlength=5).double()
    assert counts[4] == 0
    # 16.3 is the 0.999 quantile with 3 degrees of freedom
    assert chi_square(counts[:4], logits[:4].double().softmax(0)) < 16.3


def test_several_negatives_follow_sampling_without_replacement():
    logits = torch.tensor([1.5, 0.5, 0.0])
    pairs = draws(logits, torch.zeros(3, dtype=torch.bool), count=2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    p = logits.double().softmax(0)
    ordered = [(a, b) for a in range(3) for b in range(3) if a != b]
    probabilities = torch.stack([p[a] * p[b] / (1 - p[a]) for a, b in ordered])
    counts = torch.tensor([((pairs[:, 0] == a) & (pairs[:, 1] == b)).sum() for a, b in ordered]).double()
    # 20.5 is the 0.999 quantile with 5 degrees of freedom
    assert chi_square(counts, probabilities) < 20.5


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=7),
    st.integers(1, 9),
    st.sampled_from([0.0, 1.0, 1000.0]),
    st.integers(0, 1000),
)
def test_every_real_negative_is_of_another_image_and_all_there_are_get_used(ids, count, scale, seed):
    torch.manual_seed(seed)
    image_ids = torch.tensor(ids)
    logits = torch.randn(len(ids), len(ids)) * scale
    columns, real = sample_hard_negatives(logits, image_ids[:, None] == image_ids[None], count)
    assert columns.shape == real.shape == (len(ids), min(count, len(ids)))
    for row, image_id in enumerate(ids):
        drawn = columns[row][real[row]].tolist()
        others = [column for column, other in enumerate(ids) if other != image_id]
        assert set(drawn) <= set(others)
        assert len(drawn) == len(set(drawn)) == min(count, len(others))


def test_only_the_rows_without_a_negative_are_marked():
    same_image = torch.tensor([[True, True, True], [True, False, True]])
    columns, real = sample_hard_negatives(torch.randn(2, 3), same_image, 2)
    assert real.tolist() == [[False, False], [True, False]]
    assert columns[1, 0] == 1
    assert ((columns >= 0) & (columns < 3)).all(), "even unused indices must be safe to gather with"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_similarities_that_are_not_finite_are_refused(bad):
    logits = torch.zeros(2, 2)
    logits[0, 1] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        sample_hard_negatives(logits, torch.eye(2, dtype=torch.bool))


def test_no_gradient_comes_back_from_sampling():
    logits = torch.zeros(2, 2, requires_grad=True)
    _, real = sample_hard_negatives(logits, torch.eye(2, dtype=torch.bool))
    assert not real.requires_grad


def test_matching_loss_counts_only_pairs_of_weight_one():
    logits, labels = torch.tensor([0.5, -1.0, 30.0]), torch.tensor([1.0, 0.0, 0.0])
    expected = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-1.0))) / 2
    assert matching_loss(logits, labels, torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(expected)


def test_matching_loss_of_extreme_logits_is_finite():
    assert matching_loss(torch.tensor([-1e4]), torch.ones(1), torch.ones(1)).item() == pytest.approx(1e4)


def test_matching_loss_without_pairs_is_zero_with_a_gradient_of_zero():
    logits = torch.randn(3, requires_grad=True)
    loss = matching_loss(logits, torch.ones(3), torch.zeros(3))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [0, 0, 0]
