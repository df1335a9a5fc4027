from __future__ import annotations

import math

import pytest
import torch
from speech_image_retrieval.training.matching import (
    HardNegatives,
    MatchingPairs,
    listwise_matching_loss,
    pairwise_matching_loss,
)

YES, NO = True, False


def pairs(images, images_found, speeches, speeches_found, anchors: slice | None = None) -> MatchingPairs:
    return HardNegatives(
        (torch.tensor(images), torch.tensor(images_found)), (torch.tensor(speeches), torch.tensor(speeches_found))
    ).pairs(anchors)


DRAWN = ([[1, 2], [2, 0], [0, 1]], [[YES, YES], [YES, NO], [NO, NO]], [[2, 1], [0, 2], [1, 0]], [[YES] * 2] * 3)
TWO_EACH = pairs(*DRAWN)


def test_pairs_are_the_matched_ones_then_each_speechs_images_then_each_images_speeches():
    listed = list(zip(TWO_EACH.speech.tolist(), TWO_EACH.image.tolist(), strict=True))
    assert listed[:3] == [(0, 0), (1, 1), (2, 2)]
    assert listed[3:9] == [(0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)]
    assert listed[9:] == [(2, 0), (1, 0), (0, 1), (2, 1), (1, 2), (0, 2)]
    assert TWO_EACH.labels.tolist() == [YES] * 3 + [NO] * 12
    assert TWO_EACH.real.tolist() == [YES] * 3 + [YES, YES, YES, NO, NO, NO] + [YES] * 6


def test_pairwise_loss_is_the_mean_over_real_pairs():
    scores = torch.linspace(-2, 2, 15)
    losses = [
        math.log1p(math.exp(-score if label else score))
        for score, label, real in zip(scores.tolist(), TWO_EACH.labels, TWO_EACH.real, strict=True)
        if real
    ]
    assert pairwise_matching_loss(scores, TWO_EACH).item() == pytest.approx(sum(losses) / len(losses))


def test_listwise_loss_ranks_each_query_among_its_own_negatives():
    scores = torch.linspace(-2, 2, 15).roll(4)
    lists = [[0, 3, 4], [1, 5], [0, 9, 10], [1, 11, 12], [2, 13, 14]]  # speech 2 has no negative image
    losses = [
        math.log(sum(math.exp(scores[place]) for place in places)) - scores[places[0]].item() for places in lists
    ]
    assert listwise_matching_loss(scores, TWO_EACH).item() == pytest.approx(sum(losses) / len(losses), abs=1e-6)


@pytest.mark.parametrize("loss", [pairwise_matching_loss, listwise_matching_loss])
def test_pairs_that_are_not_real_change_neither_loss_nor_gradient(loss):
    scores = torch.randn(15, generator=torch.Generator().manual_seed(0))
    other = torch.where(TWO_EACH.real, scores, 50.0)
    results = []
    for values in (scores, other):
        leaf = values.clone().requires_grad_()
        value = loss(leaf, TWO_EACH)
        value.backward()
        assert (leaf.grad[~TWO_EACH.real] == 0).all()
        results.append((value.item(), leaf.grad))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_without_any_negative_only_the_matched_pairs_teach():
    alone = pairs([[0]], [[NO]], [[0]], [[NO]])
    scores = torch.tensor([0.3, 9.0, 9.0], requires_grad=True)
    listwise = listwise_matching_loss(scores, alone)
    assert listwise.item() == 0
    (listwise + pairwise_matching_loss(scores, alone)).backward()
    assert scores.grad.tolist() == pytest.approx([torch.sigmoid(torch.tensor(0.3)).item() - 1, 0, 0])


def test_shares_of_the_rows_add_up_to_the_losses_of_the_batch():
    scores = {
        (speech, image): 0.3 * speech - 0.7 * image + speech * image for speech in range(3) for image in range(3)
    }

    def losses(part: MatchingPairs) -> tuple[float, float]:
        of_pairs = torch.tensor([scores[pair] for pair in zip(part.speech.tolist(), part.image.tolist(), strict=True)])
        return pairwise_matching_loss(of_pairs, part).item(), listwise_matching_loss(of_pairs, part).item()

    shares = [losses(pairs(*DRAWN, anchors=slice(start, stop))) for start, stop in ((0, 1), (1, 3))]
    assert [sum(of) for of in zip(*shares, strict=True)] == pytest.approx(losses(TWO_EACH))
