from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from speech_image_retrieval.evaluation.calibration import fit_rerank_temperature
from speech_image_retrieval.evaluation.ranking import ranked_gallery
from speech_image_retrieval.evaluation.recall import recall_at
from speech_image_retrieval.evaluation.reranking import Matched, top_k_candidates

TEMPERATURE = 0.05


def _matched(coarse: torch.Tensor, logits: torch.Tensor, top_k: int) -> Matched:
    return Matched(coarse, logits, top_k_candidates(coarse, top_k), top_k_candidates(coarse.T.contiguous(), top_k))


def _drawn(of_similarity: float, of_matching: float, seed: int = 0) -> tuple[Matched, torch.Tensor]:
    """Whose picture is drawn with the probabilities that the fit assumes, from similarities and logits that say
    different things."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 0.1 * torch.randn(2000, 40, generator=generator)
    logits = 2 * torch.randn(2000, 40, generator=generator)
    matched = _matched(coarse, logits, 10)
    scores = of_similarity * coarse / TEMPERATURE + of_matching * logits
    odds = scores.masked_fill(~matched.by_speech, -torch.inf).softmax(1)
    return matched, torch.multinomial(odds, 1, generator=generator).flatten()


def _only_speech(matched: Matched) -> Matched:
    return Matched(matched.coarse, matched.logits, matched.by_speech, torch.zeros_like(matched.by_image))


def _scaled(matched: Matched, by: float) -> Matched:
    return replace(matched, logits=by * matched.logits)


def _mean_r1(matched: Matched, image_of_caption: torch.Tensor, temperature: float) -> float:
    ranked = ranked_gallery(matched.coarse, image_of_caption, matched, "sim+sic", temperature)
    directions = (ranked.speech_to_image, ranked.image_to_speech)
    return sum(recall_at(direction.queries.ranks["reranked"], 1) for direction in directions) / 2


@pytest.mark.parametrize(("of_similarity", "of_matching"), [(1.0, 1.0), (2.0, 0.5), (0.5, 0.1), (0.4, 1.2)])
def test_the_ratio_of_the_scales_that_the_data_was_drawn_with_is_found(of_similarity, of_matching):
    matched, image_of_caption = _drawn(of_similarity, of_matching)
    found = fit_rerank_temperature(_only_speech(matched), image_of_caption, TEMPERATURE)
    assert found / TEMPERATURE == pytest.approx(of_matching / of_similarity, rel=0.15)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.2, 5), st.floats(0.5, 2))
def test_how_sure_the_two_are_does_not_change_the_order(of_logits, of_temperature):
    """Where there is enough data, so that the prior says little."""
    matched, image_of_caption = _drawn(1.0, 0.5)
    one = fit_rerank_temperature(matched, image_of_caption, TEMPERATURE)
    other = fit_rerank_temperature(_scaled(matched, of_logits), image_of_caption, TEMPERATURE * of_temperature)
    assert other * of_logits == pytest.approx(one, rel=0.05)


def test_a_matching_score_that_is_too_sure_does_not_spoil_the_ranking():
    matched, image_of_caption = _drawn(2.0, 0.5)
    too_sure = _scaled(matched, 10)
    fitted = fit_rerank_temperature(_only_speech(too_sure), image_of_caption, TEMPERATURE)
    assert _mean_r1(too_sure, image_of_caption, fitted) > 1.2 * _mean_r1(too_sure, image_of_caption, TEMPERATURE)


def test_beside_noise_the_similarity_counts_most():
    matched, image_of_caption = _drawn(2.0, 0.0)
    assert 0 < fit_rerank_temperature(_only_speech(matched), image_of_caption, TEMPERATURE) < 0.05 * TEMPERATURE


@pytest.mark.parametrize("sign", [1, -1])
def test_a_matching_score_that_is_always_right_or_always_wrong_has_a_finite_temperature(sign):
    coarse = torch.eye(6) * 0.1
    fitted = fit_rerank_temperature(_matched(coarse, sign * torch.eye(6), 3), torch.arange(6), TEMPERATURE)
    assert 1e-3 < fitted / TEMPERATURE < 1e3


def test_it_is_the_most_likely_ratio_of_a_slow_reference():
    """Both directions, pictures with several captions, of which any is right, and queries without a right one."""
    generator = torch.Generator().manual_seed(3)
    image_of_caption = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5])
    right = image_of_caption[:, None] == torch.arange(6)
    coarse = 0.1 * torch.randn(10, 6, generator=generator) + 0.05 * right
    logits = torch.randn(10, 6, generator=generator) + 0.5 * right
    matched = _matched(coarse, logits, 3)

    def loss(log_scales) -> float:
        a, b = (math.exp(log) for log in log_scales)
        total = sum(log**2 for log in log_scales) / 2
        for of, fine, relevant, candidates in [
            (coarse, logits, right, matched.by_speech),
            (coarse.T, logits.T, right.T, matched.by_image),
        ]:
            for query in range(len(of)):
                odds = {
                    place: math.exp(a * float(of[query, place]) / TEMPERATURE + b * float(fine[query, place]))
                    for place in range(of.shape[1])
                    if candidates[query, place]
                }
                hits = sum(odd for place, odd in odds.items() if relevant[query, place])
                if hits:
                    total -= math.log(hits / sum(odds.values()))
        return total

    a, b = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10}).x
    fitted = fit_rerank_temperature(matched, image_of_caption, TEMPERATURE)
    assert fitted / TEMPERATURE == pytest.approx(math.exp(b - a), rel=1e-3)


def test_candidates_that_are_all_wrong_say_nothing():
    coarse = torch.tensor([[0.0, 0.1], [0.1, 0.0]])
    matched = _matched(coarse, torch.randn(2, 2), 1)
    assert fit_rerank_temperature(matched, torch.arange(2), TEMPERATURE) == TEMPERATURE


def test_an_infinite_score_is_refused():
    matched, image_of_caption = _drawn(1.0, 1.0)
    matched.logits[matched.by_speech.nonzero()[0].tolist()] = torch.inf
    with pytest.raises(ValueError, match="diverged"):
        fit_rerank_temperature(matched, image_of_caption, TEMPERATURE)
