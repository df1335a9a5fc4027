"""Answers as HTML. Names and texts of an index are strangers' words: every one is escaped here."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from .answers import Answer

_MAX_PLAYED = 3_000_000  # bytes of a recording that is sent along with the page; FLAC needs 1 MB for about a minute


def pictures(answers: Sequence[Answer]) -> str:
    """Thumbnails to look at and to ask about, and the same answers as a table."""
    cards = "".join(
        f'<li><button type="button" class="card" data-row="{row}" title="Why this picture?">'
        f'<img src="data:image/jpeg;base64,{_base64(answer.preview)}" alt="{escape(answer.title)}">'
        f'<span class="caption">{_rank(answer)}{_text(answer)}{_scores(answer)}</span></button></li>'
        for row, answer in enumerate(answers)
    )
    return f'<ol class="cards">{cards}</ol>{_table(answers)}'


def recordings(answers: Sequence[Answer]) -> str:
    """Descriptions to hear, the best first."""
    items = "".join(
        f'<li class="description"><div class="caption">{_rank(answer)}{_text(answer)}{_speaker(answer)}'
        f'{_scores(answer)}</div>{_player(answer)}<button type="button" class="why" data-row="{row}">Why?'
        f'<span class="unseen"> Explain description {answer.rank}</span></button></li>'
        for row, answer in enumerate(answers)
    )
    return f'<ol class="descriptions">{items}</ol>'


def explanation(wide: bytes, narrow: bytes, answer: Answer, number: int) -> str:
    """A dialog with the picture of an explanation; another number makes it another one, also if it shows the same.

    Args:
        wide, narrow: WebP for windows above and up to 640 pixels.
    """
    title = f"Why result {answer.rank}?"
    return (
        f'<dialog data-number="{number}" aria-label="{title}"><form method="dialog"><h2>{title}</h2>'
        '<button aria-label="Close">✕</button></form><picture class="drawing">'
        f'<source media="(max-width: 640px)" srcset="data:image/webp;base64,{_base64(narrow)}">'
        f'<img src="data:image/webp;base64,{_base64(wide)}" '
        f'alt="Which stretch of speech looked at which region: {escape(answer.title)}"></picture></dialog>'
    )


def empty(hint: str) -> str:
    return f'<p class="empty">{escape(hint)}</p>'


def said(message: str) -> str:
    return f"<p>{escape(message)}</p>"


def problem(message: str) -> str:
    return f'<p class="problem" role="alert">{escape(message)}</p>'


def _table(answers: Sequence[Answer]) -> str:
    heads = ("Re-ranked", "Coarse", "Moved", "Match", "Similarity", "Name", "Text")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(
        f"<tr><td>{answer.rank}</td><td>{answer.coarse_rank}</td><td>{_moved(answer)}</td>"
        f"<td>{_match(answer)}</td><td>{answer.similarity:.3f}</td><td>{escape(answer.name)}</td>"
        f"<td{_language(answer)}>{escape(answer.text or '')}</td></tr>"
        for answer in answers
    )
    return (
        '<div class="table" role="region" aria-label="Ranks before and after re-ranking" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _rank(answer: Answer) -> str:
    return (
        f'<span class="ranks"><span class="rank">{answer.rank}</span>'
        f'<span class="coarse">coarse {answer.coarse_rank} {_moved(answer)}</span></span>'
    )


def _scores(answer: Answer) -> str:
    match = "" if answer.match is None else f"<span>match {_match(answer)}</span> "
    return f'<span class="scores">{match}<span>similarity {answer.similarity:.3f}</span></span>'


def _text(answer: Answer) -> str:
    return f'<span class="text"{_language(answer)}>{escape(answer.title)}</span>'


def _speaker(answer: Answer) -> str:
    known = " · ".join(escape(part) for part in (answer.speaker, answer.language) if part)
    return f'<span class="speaker">{known}</span>' if known else ""


def _player(answer: Answer) -> str:
    if len(answer.preview) > _MAX_PLAYED:
        return '<p class="speaker">This recording is too long to be played here.</p>'
    return (
        f'<audio controls preload="metadata" aria-label="Description {answer.rank}: {escape(answer.title)}" '
        f'src="data:audio/flac;base64,{_base64(answer.preview)}"></audio>'
    )


def _moved(answer: Answer) -> str:
    moved = answer.coarse_rank - answer.rank
    if not moved:
        return '<span class="moved">=<span class="unseen"> as before</span></span>'
    up = moved > 0
    return (
        f'<span class="moved {"up" if up else "down"}"><span aria-hidden="true">{"▲" if up else "▼"}</span>'
        f'<span class="unseen">{"up" if up else "down"} </span>{abs(moved)}</span>'
    )


def _match(answer: Answer) -> str:
    return "–" if answer.match is None else f"{answer.match:+.2f}".replace("-", "−")


def _language(answer: Answer) -> str:
    return f' lang="{escape(answer.language)}"' if answer.text and answer.language else ""


def _base64(encoded: bytes) -> str:
    return b64encode(encoded).decode("ascii")
