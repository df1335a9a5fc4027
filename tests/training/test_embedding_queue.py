from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speech_image_retrieval.training.embedding_queue import EmbeddingQueue

WIDTH = 2


def pairs(rows: range) -> tuple[torch.Tensor, ...]:
    """Speech, image, image ids and rows, all of which tell the row."""
    number = torch.arange(rows.start, rows.stop)
    speech = number[:, None].float().expand(-1, WIDTH)
    return speech, -speech, number // 3, number


def oldest_first(queue: EmbeddingQueue) -> list[tuple]:
    speech, image, image_ids, rows = queue.contents()
    entries = zip(speech.tolist(), image.tolist(), image_ids.tolist(), rows.tolist(), strict=True)
    return sorted(entries, key=lambda entry: entry[3])


@given(st.integers(1, 7), st.lists(st.integers(0, 20), max_size=8))
def test_it_holds_what_a_deque_of_the_same_size_holds(size, batch_sizes):
    queue, model, start = EmbeddingQueue(size, WIDTH), deque(maxlen=size), 0
    for batch_size in batch_sizes:
        speech, image, image_ids, rows = pairs(range(start, start + batch_size))
        queue.enqueue(speech, image, image_ids, rows)
        model.extend(zip(speech.tolist(), image.tolist(), image_ids.tolist(), rows.tolist(), strict=True))
        start += batch_size
        assert len(queue) == len(model)
        assert oldest_first(queue) == list(model)


@given(st.integers(1, 5), st.lists(st.integers(0, 12), max_size=4), st.lists(st.integers(0, 12), max_size=4))
def test_a_restored_queue_goes_on_where_the_saved_one_stopped(size, before, after):
    queue, restored, start = EmbeddingQueue(size, WIDTH), EmbeddingQueue(size, WIDTH), 0
    for batch_size in before:
        queue.enqueue(*pairs(range(start, start + batch_size)))
        start += batch_size
    restored.load_state_dict(queue.state_dict())
    for batch_size in after:
        for one in (queue, restored):
            one.enqueue(*pairs(range(start, start + batch_size)))
        start += batch_size
    for left, right in zip(queue.contents(), restored.contents(), strict=True):
        assert torch.equal(left, right)


def test_contents_do_not_change_when_the_queue_is_written_on():
    queue = EmbeddingQueue(3, WIDTH)
    queue.enqueue(*pairs(range(3)))
    before = queue.contents()
    copies = [part.clone() for part in before]
    queue.enqueue(*pairs(range(10, 13)))
    assert all(torch.equal(part, copy) for part, copy in zip(before, copies, strict=True))


def test_backward_works_after_the_queue_has_moved_on():
    queue = EmbeddingQueue(3, WIDTH)
    queue.enqueue(*pairs(range(3)))
    query = torch.ones(1, WIDTH, requires_grad=True)
    loss = (query @ queue.contents()[0].T).sum()
    queue.enqueue(*pairs(range(10, 13)))
    loss.backward()
    assert query.grad.tolist() == [[0.0 + 1 + 2] * WIDTH]


def test_no_graph_is_kept_in_the_queue():
    queue = EmbeddingQueue(3, WIDTH)
    speech, image, image_ids, rows = pairs(range(2))
    queue.enqueue(speech.clone().requires_grad_(), image.clone().requires_grad_(), image_ids, rows)
    assert not any(part.requires_grad for part in queue.contents())


def test_half_precision_embeddings_are_stored_in_float32():
    queue = EmbeddingQueue(3, WIDTH)
    speech, image, image_ids, rows = pairs(range(2))
    queue.enqueue(speech.bfloat16(), image.bfloat16(), image_ids, rows)
    assert queue.contents()[0].dtype == torch.float32
    assert queue.contents()[2].dtype == torch.int64


@pytest.mark.parametrize("size", [0, -1])
def test_a_queue_without_room_is_refused(size):
    with pytest.raises(ValueError, match="at least one pair"):
        EmbeddingQueue(size, WIDTH)
