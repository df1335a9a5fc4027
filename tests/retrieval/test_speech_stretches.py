from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_image_retrieval.retrieval.speech_stretches import salient_stretches


def bumps(
    *places: tuple[float, float, float], seconds: float = 3.0, token: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    """Relevance of tokens with Gaussian bumps of so much height and deviation at so many seconds, and their edges."""
    edges = np.arange(round(seconds / token) + 1) * token
    middles = (edges[:-1] + edges[1:]) / 2
    relevance = sum(height * np.exp(-(((middles - place) / width) ** 2) / 2) for place, height, width in places)
    return relevance * token, edges


@pytest.mark.parametrize("token", [0.02, 0.08])
def test_each_bump_is_a_stretch_around_its_middle(token: float):
    relevance, edges = bumps((0.5, 1.0, 0.08), (1.4, 0.6, 0.12), (2.5, 0.3, 0.08), token=token)
    found = salient_stretches(relevance, edges)
    assert len(found) == 3
    for (first, end), middle, width in zip(found, (0.5, 1.4, 2.5), (0.19, 0.28, 0.19), strict=True):
        assert (edges[first] + edges[end]) / 2 == pytest.approx(middle, abs=token)
        assert edges[end] - edges[first] == pytest.approx(width, abs=0.03 + 2 * token)


def test_only_the_highest_are_taken_and_no_faint_ones():
    relevance, edges = bumps(*[(0.3 + 0.5 * number, 1 + number, 0.05) for number in range(6)], seconds=3.2)
    found = salient_stretches(relevance, edges)
    assert [round(edges[first] / 0.5) for first, _ in found] == [2, 3, 4, 5]
    relevance, edges = bumps((0.5, 1.0, 0.05), (1.5, 0.1, 0.05))
    assert len(salient_stretches(relevance, edges)) == 1


def test_a_plateau_is_not_longer_than_a_long_word():
    edges = np.arange(101) * 0.02
    lengths = [edges[end] - edges[first] for first, end in salient_stretches(np.ones(100), edges)]
    assert 0.66 < max(lengths) < 0.701


@pytest.mark.parametrize("relevance", [np.zeros(5), -np.ones(5)])
def test_what_adds_nothing_has_no_stretches(relevance: np.ndarray):
    assert salient_stretches(relevance, np.arange(6) * 0.1) == []


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=60), st.sampled_from([0.01, 0.02, 0.1, 1.0]))
def test_stretches_lie_within_the_clip_and_apart(relevance: list[float], token: float):
    found = salient_stretches(np.array(relevance), np.arange(len(relevance) + 1) * token)
    assert len(found) <= 4
    assert all(0 <= first < end <= len(relevance) for first, end in found)
    assert all(before.end <= after.first for before, after in pairwise(found))
