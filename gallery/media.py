"""Pictures and recordings of a split as data URIs, small enough for many of them on one page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from ..processing.media import load_image, load_speech
from ..retrieval.previews import ogg_opus, thumbnail

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLING_RATE = 16_000
HEARD_SECONDS = 10.0
"""What is kept of a longer recording."""

THUMBNAIL = 160


class Caption(NamedTuple):
    """What is known of a spoken caption, and its speech as a data URI; `cut_from` is its length in seconds if it is
    longer than what is kept."""

    caption_id: str
    image_id: str
    text: str | None
    speaker: str | None
    language: str | None
    sound: str
    cut_from: float | None


class Picture(NamedTuple):
    """A picture, the text of its first caption, and its thumbnail as a data URI."""

    image_id: str
    text: str | None
    language: str | None
    thumbnail: str


class SplitMedia:
    """Captions and pictures of a split by their places, each read once.

    Args:
        rows: of the split. first_rows: the row of each picture's first appearance.
    """

    def __init__(self, rows: Dataset, first_rows: Sequence[int]):
        self._rows, self._first_rows = rows, first_rows
        self.caption, self.picture = cache(self._caption), cache(self._picture)

    def _caption(self, place: int) -> Caption:
        row = self._rows[place]
        samples = load_speech(row["audio"], None, SAMPLING_RATE)
        heard = samples[: int(HEARD_SECONDS * SAMPLING_RATE)]
        sound = _data_uri("audio/ogg", ogg_opus(heard, SAMPLING_RATE))
        cut_from = len(samples) / SAMPLING_RATE if len(heard) < len(samples) else None
        known = (row[name] for name in ("caption_id", "image_id", "text", "speaker", "language"))
        return Caption(*known, sound, cut_from)

    def _picture(self, place: int) -> Picture:
        row = self._rows[self._first_rows[place]]
        shown = _data_uri("image/jpeg", thumbnail(load_image(row["image"]), THUMBNAIL))
        return Picture(row["image_id"], row["text"], row["language"], shown)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"
