"""The JSON of the spoken caption corpora of Harwath, Hsu, Glass and colleagues: Places Audio, SpokenCOCO.

`{"data": [...]}`, of entries in one of three forms. Places describes each picture once, the entry itself is the
caption: `{"image", "wav", "uttid", ...}`. SpokenCOCO has several captions a picture: `{"image", "captions": [{"wav",
"uttid", "text", "speaker"}]}`. FaST-VGS unrolls these: `{"image", "caption": {...}}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .entries import Entry, stream_entries


class Utterance(NamedTuple):
    """A spoken caption and the picture that it is of; both are the same entry where it describes the picture once."""

    picture: Entry
    caption: Entry


def stream_utterances(path: Path) -> Iterator[Utterance]:
    """All spoken captions of a file, in its order, read as they are asked for.

    Raises:
        CorpusError: no valid JSON, or an entry that is in none of the forms.
    """
    for picture in stream_entries(path, "data"):
        for caption in _captions(picture):
            yield Utterance(picture, caption)


def _captions(picture: Entry) -> list[Entry]:
    if "captions" in picture.values:
        return picture.entries("captions")
    if "caption" in picture.values and "wav" not in picture.values:
        return [picture.entry("caption")]
    return [picture]
