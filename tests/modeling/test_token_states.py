from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speech_image_retrieval.modeling.token_states import PackedStates, join


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), min_size=1, max_size=5), st.data())
def test_padding_gives_back_each_clips_valid_states_and_zeros(mask, data):
    mask = torch.tensor(mask)
    states = torch.rand(*mask.shape, 2) + 1
    clips = data.draw(st.lists(st.integers(0, len(mask) - 1), min_size=1, max_size=7))
    padded, valid = PackedStates.from_padded(states, mask).padded(torch.tensor(clips))
    assert padded.shape[1] == max(int(mask[clip].sum()) for clip in clips)
    for row, clip in enumerate(clips):
        length = int(mask[clip].sum())
        assert padded[row, :length].equal(states[clip][mask[clip]])
        assert not padded[row, length:].any()
        assert valid[row].tolist() == [True] * length + [False] * (padded.shape[1] - length)


def test_padding_is_clean_next_to_infinite_states():
    packed = PackedStates.from_tokens(torch.tensor([[torch.inf], [1.0], [2.0]]), torch.tensor([1, 2]))
    assert packed.padded(torch.tensor([0, 1]))[0].tolist() == [[[torch.inf], [0.0]], [[1.0], [2.0]]]


def test_selection_reorders_without_copying():
    packed = PackedStates.from_tokens(torch.arange(6.0).unsqueeze(1), torch.tensor([1, 2, 3]))
    selected = packed.select(torch.tensor([2, 0]))
    assert selected.padded(torch.tensor([0, 1]))[0].squeeze(-1).tolist() == [[3.0, 4.0, 5.0], [0.0, 0.0, 0.0]]
    assert selected.tokens.data_ptr() == packed.tokens.data_ptr()
    assert len(selected) == 2


def test_lengths_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="add up to 4 tokens, but there are 3"):
        PackedStates.from_tokens(torch.zeros(3, 1), torch.tensor([1, 3]))


def test_join_concatenates_and_releases_the_parts():
    parts = [torch.rand(2, 3), torch.rand(0, 3), torch.rand(4, 3)]
    expected = torch.cat(parts)
    assert join(parts).equal(expected)
    assert parts == []
