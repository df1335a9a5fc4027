"""What the page does when a visitor searches, or asks why: an upload in, HTML out, whatever goes wrong."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..processing.uploads import UploadRefused
from . import markup
from .answers import Answer, Answering
from .upload_folder import UploadFolder

_log = logging.getLogger(__name__)
_FAILED = "Something went wrong here, not with your file. Please try again; the log of this page has the reason."


class Asked(NamedTuple):
    """What a visitor asked last: the uploaded file, and what it found, without previews."""

    upload: Path
    answers: Sequence[Answer]


class Events:
    """The events of one tab. Nothing of a visitor is kept in here: what they asked goes out and comes in again.

    Args:
        uploads: no file but its files is read.
    """

    def __init__(self, answering: Answering, uploads: UploadFolder):
        self._answering, self._uploads = answering, uploads
        self._show = markup.pictures if answering.gallery == "image" else markup.recordings
        self._numbers = count()

    def search(self, given: Any) -> tuple[str, str, Asked | None]:
        """Status, results, and what was asked; `given` is what a browser says of its upload."""
        started = time.perf_counter()
        try:
            upload = self._uploaded(given)
            answers = self._answering.find(upload)
        except Exception as error:
            return _problem(error), "", None
        found = f"The best {len(answers)} of {len(self._answering)}, found in {time.perf_counter() - started:.1f} s."
        if answers and answers[0].match is not None:
            found += " Match orders the candidates: higher fits better."
        asked = Asked(upload, [replace(answer, preview=b"") for answer in answers])
        return markup.said(found), self._show(answers), asked

    def explain(self, asked: Asked | None, row: Any) -> tuple[str, str]:
        """Status, and a dialog with the explanation of a result; always another one, so that the page notices."""
        number = next(self._numbers)
        try:
            answer = _answer_of(asked, row)
            drawings = self._answering.explain(asked.upload, answer.id)
        except Exception as error:
            return _problem(error), f"<!-- {number} -->"
        dialog = markup.explanation(*map(_webp, drawings), answer, number)
        return markup.said(f"Result {answer.rank} is explained."), dialog

    def _uploaded(self, given: Any) -> Path:
        if given is None:
            spoken = self._answering.gallery == "image"
            raise UploadRefused(f"{'Record or upload what you want to see' if spoken else 'Choose a picture'} first.")
        path = given.get("path") if isinstance(given, dict) else None
        if not self._uploads.holds(path):
            raise UploadRefused("Only files that were uploaded here can be used.")
        return Path(path)


def _webp(drawing: Image.Image) -> bytes:
    encoded = io.BytesIO()
    drawing.save(encoded, "WEBP", quality=90)
    return encoded.getvalue()


def _answer_of(asked: Asked | None, row: Any) -> Answer:
    if asked is None or type(row) is not int or not 0 <= row < len(asked.answers):
        raise UploadRefused("These results are no longer here. Please search again.")
    return asked.answers[row]


def _problem(error: Exception) -> str:
    """What a visitor is told of an error. Only refusals are meant for them: others may name paths of this machine."""
    if isinstance(error, UploadRefused):
        return markup.problem(str(error))
    _log.error("A request failed", exc_info=error)
    return markup.problem(_FAILED)
