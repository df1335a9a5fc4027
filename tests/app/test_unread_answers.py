from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from gradio.queueing import Queue
from gradio.server_messages import EstimationMessage, ProcessCompletedMessage
from speech_image_retrieval.app.unread_answers import has_unread_answers, make_room


@pytest.fixture
def queue() -> Queue:
    return Queue(live_updates=True, concurrency_count=1, update_intervals=1, max_size=16, blocks=None)


def finish(queue: Queue, session: str) -> None:
    """Put an answer where its visitor will look for it."""
    messages = queue.pending_messages_per_session.setdefault(session, asyncio.Queue())
    messages.put_nowait(EstimationMessage(queue_size=1))
    messages.put_nowait(ProcessCompletedMessage(output={}, success=True))


def test_some_answers_may_be_unread(queue: Queue):
    assert not has_unread_answers(queue, "a")
    for number in range(4):
        assert not has_unread_answers(queue, "a"), number
        finish(queue, "a")
    assert has_unread_answers(queue, "a") and not has_unread_answers(queue, "b")


def test_the_oldest_are_forgotten_but_nobody_who_waits(queue: Queue):
    sessions = [f"{number}" for number in range(35)]
    for session in sessions:
        finish(queue, session)
        queue.pending_event_ids_session[session] = {session}
    queue.event_ids_to_events["running"] = SimpleNamespace(session_hash="1")
    make_room(queue, "2")  # who asked first, and asks again now
    forgotten = ["0", "3", "4"]
    kept = [session for session in sessions if session not in forgotten]
    assert sorted(queue.pending_messages_per_session) == sorted(kept) == sorted(queue.pending_event_ids_session)
    assert list(queue.pending_messages_per_session)[-1] == "2"
