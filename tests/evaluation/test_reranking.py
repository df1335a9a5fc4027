from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_image_retrieval.evaluation import PackedStates, encode_images, encode_speech
from speech_image_retrieval.evaluation.reranking import (
    coarse_to_fine_scores,
    rerank,
    score_pairs,
    top_k_candidates,
)
from speech_image_retrieval.modeling import pair_scores

FLOATS = st.floats(width=32, allow_nan=False)


@st.composite
def matrices(draw, count):
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    values = st.lists(st.lists(FLOATS, min_size=columns, max_size=columns), min_size=rows, max_size=rows)
    return [torch.tensor(draw(values)) for _ in range(count)]


@pytest.fixture
def gallery(model, processor, rows):
    """Captions, pictures and their coarse similarities; equal similarities occur."""
    speech = encode_speech(model, processor, [row["audio"] for row in rows])
    images = encode_images(model, processor, list({row["image_id"]: row["image"] for row in rows}.values()))
    return speech.embeddings @ images.embeddings.T, speech.states, images.states


def order_of_one_query(coarse: list[float], match, k: int) -> list[int]:
    """The ALBEF way: sort one query's candidates, match the first k, one by one; here the rest stays behind them."""
    ranked = sorted(range(len(coarse)), key=lambda candidate: -coarse[candidate])
    return sorted(ranked[:k], key=lambda candidate: -match(candidate)) + ranked[k:]


def assert_same_order(scores: list[float], expected: list[int], match, k: int) -> None:
    """Candidates with equal matching scores may stand in either order."""
    order = sorted(range(len(scores)), key=lambda candidate: -scores[candidate])
    assert set(order[:k]) == set(expected[:k])
    assert [match(candidate) for candidate in order[:k]] == [match(candidate) for candidate in expected[:k]]
    assert order[k:] == expected[k:]


@pytest.mark.parametrize("k", [1, 2, 4, 9, 50])
@pytest.mark.parametrize("score_rule", ["sim", "sim+sic"])
def test_ranking_is_that_of_one_query_at_a_time(model, gallery, k, score_rule):
    coarse, speech_states, image_states = gallery
    coarse = coarse + torch.arange(coarse.numel()).view_as(coarse) / 4096  # no ties at the boundary of the top k
    options = {"score_rule": score_rule, "temperature": 0.5, "pairs_per_batch": 7}
    result = rerank(model, coarse, speech_states, image_states, k, **options)

    def match(caption, image):
        states, mask = speech_states.padded(torch.tensor([caption]))
        logit = model.match(states, mask, image_states[image : image + 1]).item()
        return logit + (coarse[caption, image].item() / 0.5 if score_rule == "sim+sic" else 0)

    for caption, scores in enumerate(result.speech_to_image.scores.tolist()):
        match_image = partial(match, caption)
        assert_same_order(scores, order_of_one_query(coarse[caption].tolist(), match_image, k), match_image, k)
    for image, scores in enumerate(result.image_to_speech.scores.tolist()):
        match_caption = partial(match, image=image)
        assert_same_order(scores, order_of_one_query(coarse[:, image].tolist(), match_caption, k), match_caption, k)


@pytest.mark.parametrize("k", [1, 3])
def test_pairs_shared_by_the_directions_are_scored_once_and_alike(model, gallery, k):
    coarse, speech_states, image_states = gallery
    result = rerank(model, coarse, speech_states, image_states, k)
    scored = sum(len(pairs) for pairs, _, _ in model.matched)
    by_speech, by_image = result.speech_to_image.candidates, result.image_to_speech.candidates
    assert (by_speech & by_image.T).any(), "the directions share no pair: this test needs some"
    assert scored == (by_speech | by_image.T).sum() < by_speech.sum() + by_image.sum()
    for direction, scores, transposed in (
        (result.speech_to_image, coarse, False),
        (result.image_to_speech, coarse.T, True),
    ):
        query, candidate = direction.candidates.nonzero(as_tuple=True)
        pairs = (candidate, query) if transposed else (query, candidate)
        fine = torch.zeros_like(scores)
        fine[query, candidate] = score_pairs(model, speech_states, image_states, *pairs)
        assert direction.scores.equal(coarse_to_fine_scores(scores, fine, direction.candidates))


@pytest.mark.parametrize("pictures_at_a_time", [1, 2, 1000])
@pytest.mark.parametrize("pairs_per_batch", [1, 5, 1000])
def test_batches_do_not_change_logits(model, gallery, pairs_per_batch, pictures_at_a_time, monkeypatch):
    coarse, speech_states, image_states = gallery
    speech, image = torch.ones_like(coarse).nonzero(as_tuple=True)
    shuffled = torch.randperm(len(speech), generator=torch.Generator().manual_seed(0))
    speech, image = speech[shuffled], image[shuffled]
    one_picture = image_states[0].numel() * image_states.element_size()
    monkeypatch.setattr(pair_scores, "_PROJECTED_STATES_BYTES", pictures_at_a_time * one_picture)
    project, projected = model.project_images, []
    monkeypatch.setattr(model, "project_images", lambda states: projected.append(len(states)) or project(states))
    logits = score_pairs(model, speech_states, image_states, speech, image, pairs_per_batch=pairs_per_batch)
    assert max(len(pairs) for pairs, _, _ in model.matched) <= pairs_per_batch
    assert sum(projected) == len(image_states) and max(projected) <= pictures_at_a_time  # each once
    for caption, picture, logit in zip(speech.tolist(), image.tolist(), logits, strict=True):
        states, mask = speech_states.padded(torch.tensor([caption]))
        assert logit == model.match(states, mask, image_states[picture : picture + 1])


def test_pairs_are_grouped_by_length_and_padding_is_trimmed(model, gallery):
    coarse, speech_states, image_states = gallery
    pairs = torch.ones_like(coarse).nonzero(as_tuple=True)
    score_pairs(model, speech_states, image_states, *pairs, pairs_per_batch=10)
    lengths = [mask.sum(dim=1) for _, mask, _ in model.matched]
    assert all(states.shape[1] == own.max() for (states, _, _), own in zip(model.matched, lengths, strict=True))
    together = torch.cat(lengths).tolist()
    assert together == sorted(together, reverse=True)


def test_states_kept_in_float16_reach_the_model_in_its_own_type(model, gallery):
    coarse, speech_states, image_states = gallery
    half = PackedStates(speech_states.tokens.half(), speech_states.starts, speech_states.lengths)
    rerank(model, coarse, half, image_states.half(), 2)
    assert {part.dtype for states, _, image in model.matched for part in (states, image)} == {torch.float32}


@given(matrices(count=1), st.integers(1, 8))
def test_top_k_are_the_k_best_and_the_first_of_equals(matrices, k):
    (scores,) = matrices
    marked = top_k_candidates(scores, k)
    for row, marks in zip(scores.tolist(), marked.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda candidate: (-row[candidate], candidate))[:k]
        assert [candidate for candidate, mark in enumerate(marks) if mark] == sorted(best)


@settings(max_examples=200)
@given(matrices(count=2), st.data())
def test_reranked_block_is_ahead_and_both_parts_keep_their_order(matrices, data):
    coarse, fine = matrices
    flags = st.lists(st.booleans(), min_size=coarse.shape[1], max_size=coarse.shape[1])
    candidates = torch.tensor([data.draw(flags) for _ in coarse])
    scores = coarse_to_fine_scores(coarse, fine, candidates)
    for row in range(len(coarse)):
        keys = [
            (True, fine[row, i].item()) if candidates[row, i] else (False, coarse[row, i].item())
            for i in range(coarse.shape[1])
        ]
        for i, mine in enumerate(keys):
            for j, other in enumerate(keys):
                assert (scores[row, i] > scores[row, j]) == (mine > other)
                assert (scores[row, i] == scores[row, j]) == (mine == other)


def test_nan_is_refused_where_it_is(model, gallery):
    coarse, speech_states, image_states = gallery
    broken = coarse.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(ValueError, match="coarse score of query 3, candidate 1 is NaN"):
        rerank(model, broken, speech_states, image_states, 2)
    image_states = image_states.clone()
    image_states[4] = torch.nan
    with pytest.raises(ValueError, match="matching logit of caption 0 with image 4 is NaN"):
        score_pairs(model, speech_states, image_states, torch.tensor([0, 0]), torch.tensor([3, 4]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": 1, "score_rule": "sum"}, "'sim' or 'sim\\+sic', not 'sum'"),
        ({"top_k": 1, "score_rule": "sim+sic", "temperature": 0}, "temperature must be positive"),
    ],
)
def test_arguments_out_of_range_are_refused(model, gallery, options, message):
    with pytest.raises(ValueError, match=message):
        rerank(model, *gallery, **options)
