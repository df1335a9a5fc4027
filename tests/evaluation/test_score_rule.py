from __future__ import annotations

import pytest
from speech_image_retrieval.evaluation import evaluate_retrieval
from speech_image_retrieval.evaluation.score_rule import choose_score_rule

from .conftest import DigitModel, PerfectMatcher


class Adversary(DigitModel):
    """Its matching score is always wrong, and small beside the similarity."""

    rerank_temperature = 0.001

    def match(self, speech_states, speech_mask, image_states, image_rows, speech_rows):
        image_states, speech_states = image_states[image_rows], speech_states[speech_rows]
        return (speech_states[:, 0, 0] != image_states[:, 0, 0]).float()


class SurePerfectMatcher(PerfectMatcher):
    rerank_temperature = 0.001


@pytest.mark.parametrize(("model", "better"), [(SurePerfectMatcher(), "sim"), (Adversary(), "sim+sic")])
def test_the_better_rule_is_chosen_by_the_figures_of_each(model, better, processor, make_rows):
    rows = make_rows(images=10, captions_per_image=[2, 1, 3], seed=4)
    chosen = choose_score_rule(model, processor, rows, rerank_top_k=6)
    apart = {
        rule: evaluate_retrieval(
            model, processor, rows, corpus="c", split="validation", rerank_top_k=6, score_rule=rule
        )["mean_r1"]["reranked"]
        for rule in ("sim", "sim+sic")
    }
    assert chosen.mean_r1 == pytest.approx(apart)
    assert chosen.rule == better == max(apart, key=apart.__getitem__)
    assert apart["sim"] != apart["sim+sic"]
    assert (chosen.split, chosen.images, chosen.captions) == ("validation", 10, len(rows))


def test_of_equal_rules_the_simpler_one_is_chosen(perfect_matcher, processor, make_rows):
    rows = make_rows(images=1, captions_per_image=[2], seed=4)
    assert choose_score_rule(perfect_matcher, processor, rows, rerank_top_k=2).rule == "sim"


def test_candidates_are_matched_once_for_both_rules(model, processor, rows):
    choose_score_rule(model, processor, rows, rerank_top_k=1000)
    assert sum(len(states) for states, _, _ in model.matched) == len(rows) * 9
