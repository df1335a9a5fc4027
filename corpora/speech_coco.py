"""SPEECH-COCO: the captions of COCO 2014 in eight synthetic voices (Havard, Besacier & Rosec, arXiv 1707.08435).

Recordings: https://zenodo.org/record/4282267, CC BY 4.0; pictures: https://cocodataset.org. There are
`{train,val}2014/wav/IMAGE_CAPTION_SPEAKER_DISFLUENCY_SPEED.wav`, each with a file of the same name in `json/`, 413,915
and 202,520 of them. The texts hold the "um"s and "uh"s that are spoken. The splits are Karpathy's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .building import Reading
from .entries import json_file
from .findings import Findings
from .locating import MediaFolders, nothing_found, walk
from .schema import Media, SpokenCaption
from .splits import karpathy_split

NO_JSON = "recording without its JSON, left out"
OTHER_NAME = "JSON whose name is not IMAGE_CAPTION_SPEAKER_DISFLUENCY_SPEED, left out"

_PARTS = ("train2014", "val2014")
_NAME = re.compile(r"(?P<image>\d+)_(?P<caption>\d+)_(?P<speaker>[^_]+)_(?P<disfluency>[^_]+)_(?P<speed>[^_]+)")


def read_speech_coco(sources: Sequence[Path]) -> Reading:
    """Rows of SPEECH-COCO as it lies in one or several folders, however deep, with Karpathy's split of the pictures.

    `image_id` is COCO's id, `caption_id` the name of the recording without its extension. A speaker is one of the
    eight voices.

    Raises:
        CorpusError: not both of `train2014/{json,wav}` and `val2014/{json,wav}` there, or a JSON file that is not
            valid or has no `synthesisedCaption`.
    """
    parts = _parts(sources)
    if len(parts) < len(_PARTS):
        looked_for = [f"{part}/ with json/ and wav/ in it" for part in _PARTS if part not in parts]
        raise nothing_found("SPEECH-COCO", sources, looked_for)
    reading = Reading(rows=())
    reading.notes.append(f"Read: {', '.join(map(str, parts.values()))}.")
    reading.notes.append("Splits: Karpathy's by the picture ids that come with this package.")
    reading.rows = _rows(parts, MediaFolders(sources), reading.findings)
    return reading


def _parts(sources: Sequence[Path]) -> dict[str, Path]:
    """The folders of speech; those of the pictures have the same names."""
    parts: dict[str, Path] = {}
    for folder in walk(sources):
        if folder.name in _PARTS and (folder / "json").is_dir() and (folder / "wav").is_dir():
            parts.setdefault(folder.name, folder)
    return {name: parts[name] for name in _PARTS if name in parts}


def _rows(parts: Mapping[str, Path], folders: MediaFolders, findings: Findings) -> Iterator[tuple[str, SpokenCaption]]:
    for part, folder in parts.items():
        stems = _stems(folder / "json", ".json")
        for stem in sorted(_stems(folder / "wav", ".wav") - stems):
            findings.add(NO_JSON, str(folder / "wav" / f"{stem}.wav"))
        for stem in sorted(stems):
            match = _NAME.fullmatch(stem)
            if match is None:
                findings.add(OTHER_NAME, str(folder / "json" / f"{stem}.json"))
                continue
            image = folders.path(f"{part}/COCO_{part}_{int(match['image']):012d}.jpg")
            yield karpathy_split(int(match["image"])), _row(folder, match, image)


def _stems(folder: Path, extension: str) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name.removesuffix(extension) for entry in entries if entry.name.endswith(extension)}


def _row(folder: Path, match: re.Match[str], image: Path) -> SpokenCaption:
    facts = json_file(folder / "json" / f"{match.string}.json")
    return SpokenCaption(
        image=Media(bytes=None, path=str(image)),
        audio=Media(bytes=None, path=str(folder / "wav" / f"{match.string}.wav")),
        image_id=str(int(match["image"])),
        caption_id=match.string,
        text=facts.text_that_may_be_empty("synthesisedCaption"),
        speaker=facts.text("speaker") or match["speaker"],
        language="en",
    )
