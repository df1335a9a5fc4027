"""Keeps answers that nobody fetches from piling up: Gradio's queue holds each until its visitor reads it.

A visitor's script asks first and then opens the stream of answers, so some are unread for a moment. Gradio itself
forgets whole sessions when there are thousands, also one whose question it is answering, and fails then.
"""

from __future__ import annotations

import asyncio

from gradio.queueing import Queue
from gradio.server_messages import ProcessCompletedMessage

_OF_A_VISITOR = 4
_OF_ALL = 32


def has_unread_answers(queue: Queue, session: str) -> bool:
    """Whether a visitor has to read what they asked before they ask more."""
    messages = queue.pending_messages_per_session.get(session)
    return messages is not None and _unread(messages) >= _OF_A_VISITOR


def make_room(queue: Queue, session: str) -> None:
    """Forget answers because a visitor asks now: those of the visitors who asked longest ago, if there are too many,
    unless they wait for another answer."""
    by_session = queue.pending_messages_per_session  # in the order of their last question, which Gradio does not keep
    if session in by_session:
        by_session.move_to_end(session)
    unread = {name: number for name, messages in by_session.items() if (number := _unread(messages))}
    excess = sum(unread.values()) - _OF_ALL
    waiting = {event.session_hash for event in queue.event_ids_to_events.values()} | {session}
    for name, number in unread.items():
        if excess <= 0:
            return
        if name not in waiting:
            del by_session[name]
            queue.pending_event_ids_session.pop(name, None)
            excess -= number


def _unread(messages: asyncio.Queue) -> int:
    return sum(isinstance(message, ProcessCompletedMessage) for message in messages._queue)
