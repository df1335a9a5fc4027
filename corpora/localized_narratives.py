"""Localized Narratives: people describe a picture while they move the mouse over it (Pont-Tuset et al., ECCV 2020).

https://google.github.io/localized-narratives, CC BY 4.0: narratives of 849,000 pictures of COCO, Flickr30k, ADE20k and
Open Images. The pictures are got where these are. The speech is spontaneous and often half a minute long.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .building import Reading
from .entries import Entry, json_lines
from .findings import Findings
from .locating import MediaFolders, find_matching, nothing_found
from .schema import CorpusError, Media, SpokenCaption
from .splits import drawn_validation_note, with_drawn_validation

REPEATED = "further narrative of a picture by the same annotator, numbered and kept"

_CORPORA = ("coco", "flickr30k", "ade20k", "open_images")
_WITHOUT_TEST = frozenset(("coco", "ade20k"))
# Their recordings are not where the files state.
_RENAMED_RECORDINGS = frozenset(("flickr30k", "ade20k"))
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_FILE = re.compile(
    rf"(?P<corpus>{'|'.join(_CORPORA)})_(?P<split>{'|'.join(_SPLITS)})(?:_v6)?"
    r"_localized_narratives(?:-\d+-of-(?P<shards>\d+))?\.jsonl"
)
_RECORDING = re.compile(r"(?P<split>\w+)/\w+_(?P<image>\d+)_\d+\.\w+")
_IMAGE_ID = re.compile(rb'"image_id": *"?(?P<id>[^",}\\]+)')


class _Part(NamedTuple):
    """The files of one split of one corpus of pictures; `shards` is how many there should be."""

    corpus: str
    split: str
    files: list[Path]
    shards: int


def read_localized_narratives(sources: Sequence[Path]) -> Reading:
    """Rows of those parts of Localized Narratives that lie in one or several folders.

    Narratives: `{coco,flickr30k,ade20k,open_images}_{train,val,validation,test}_localized_narratives.jsonl`, or their
    shards. Recordings: `voice-recordings/coco_train/*.ogg`, or `coco_train/` anywhere else; those of Flickr30k and
    ADE20k may have the names that they are offered under, or those that the narratives state. Pictures, where `*` is
    a folder of any name:

    - COCO: `{train,val}2017/000000137576.jpg` or `{train,val}2014/COCO_{train,val}2014_000000137576.jpg`
    - Flickr30k: `*/1000092795.jpg`; ADE20k: `*/ADE_train_00000001.jpg`
    - Open Images: `{train,validation,test}/000002b66c9c498e.jpg`, `train_0/...`, where `0` is how the id begins, or
      `*/...`

    The splits are those of the files. COCO and ADE20k have no test split: their validation split is `test`, and
    `validation` is drawn from train by picture, the same on every machine. `image_id` is the corpus and the picture's
    id in it, `coco/137576`; `caption_id` has the annotator besides, `coco/137576/93`. `speaker` is the annotator.

    Raises:
        CorpusError: no such files, a line that is no valid JSON or lacks a key, or a path that leads out of the
            corpus.
    """
    parts = _parts(find_matching(sources, _FILE))
    if not parts:
        looked_for = [f"{corpus}_*_localized_narratives*.jsonl" for corpus in _CORPORA]
        raise nothing_found("Localized Narratives", sources, looked_for)
    reading = Reading(rows=())
    reading.notes.append(f"Read: {', '.join(str(file) for part in parts for file in part.files)}.")
    for part in parts:
        if len(part.files) < part.shards:
            reading.notes.append(
                f"Of {part.corpus} {part.split}, {len(part.files)} of {part.shards} shards are there."
            )
    for corpus in sorted({part.corpus for part in parts} & _WITHOUT_TEST):
        reading.notes.append(drawn_validation_note(corpus))
    reading.rows = _rows(parts, MediaFolders(sources), reading.findings)
    return reading


def _parts(files: Iterable[Path]) -> list[_Part]:
    grouped: dict[tuple[str, str], _Part] = {}
    for file in sorted(files, key=lambda file: file.name):
        match = _FILE.fullmatch(file.name)
        corpus, split = match["corpus"], _SPLITS[match["split"]]
        if corpus in _WITHOUT_TEST and split == "validation":
            split = "test"
        part = grouped.setdefault((corpus, split), _Part(corpus, split, [], int(match["shards"] or 1)))
        part.files.append(file)
    return list(grouped.values())


def _rows(parts: Sequence[_Part], folders: MediaFolders, findings: Findings) -> Iterator[tuple[str, SpokenCaption]]:
    ids = _UniqueIds(findings)
    for corpus in _CORPORA:
        own = [part for part in parts if part.corpus == corpus]
        rows = ((part.split, row) for part in own for row in _part_rows(part, folders, ids))
        if corpus in _WITHOUT_TEST:
            training = [file for part in own if part.split == "train" for file in part.files]
            rows = with_drawn_validation(rows, _image_ids(corpus, training))
        yield from rows


def _part_rows(part: _Part, folders: MediaFolders, ids: _UniqueIds) -> Iterator[SpokenCaption]:
    for file in part.files:
        stated_split = _FILE.fullmatch(file.name)["split"]
        for entry in json_lines(file):
            image, annotator = entry.relative_path("image_id"), entry.required_text("annotator_id")
            image_id = f"{part.corpus}/{image}"
            yield SpokenCaption(
                image=Media(bytes=None, path=str(_picture(entry, part.corpus, stated_split, folders))),
                audio=Media(bytes=None, path=str(_recording(entry, part.corpus, folders))),
                image_id=image_id,
                caption_id=ids.unique(f"{image_id}/{annotator}"),
                text=entry.text_that_may_be_empty("caption"),
                speaker=annotator,
                language="en",
            )


def _image_ids(corpus: str, files: Iterable[Path]) -> Iterator[str]:
    """Of all narratives; their mouse traces, most of these gigabytes, are not parsed for it."""
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                if match := _IMAGE_ID.search(line):
                    yield f"{corpus}/{match['id'].decode()}"


def _picture(entry: Entry, corpus: str, split: str, folders: MediaFolders) -> Path:
    usual, *others = _picture_paths(entry, corpus, split)
    kind = f"{corpus} {split}"
    if place := folders.place(usual, kind):
        return place
    for other in others:
        place = folders.place(other, kind)
        if place and place.is_file():
            return place
    return folders.path(usual, kind)


def _picture_paths(entry: Entry, corpus: str, split: str) -> list[str]:
    """Where a picture may be. Those of COCO's training split of 2017 are in either folder of 2014."""
    image = entry.relative_path("image_id")
    if corpus == "coco":
        if not image.isdecimal():
            raise CorpusError(f"{entry.where}: 'image_id' {image!r} is no number, so no picture of COCO.")
        name = f"{int(image):012d}.jpg"
        return [
            f"{split}2017/{name}",
            f"train2014/COCO_train2014_{name}",
            f"val2014/COCO_val2014_{name}",
        ]
    if corpus == "open_images":
        return [f"{split}/{image}.jpg", f"{split}_{image[0]}/{image}.jpg", f"{image}.jpg"]
    return [f"{image}.jpg"]


def _recording(entry: Entry, corpus: str, folders: MediaFolders) -> Path:
    stated = entry.relative_path("voice_recording")
    match = _RECORDING.fullmatch(stated)
    if corpus not in _RENAMED_RECORDINGS or not match:
        return folders.path(stated, "recording")
    split, annotator = match["split"], entry.required_text("annotator_id")
    renamed = folders.path(f"{split}/{split}_{match['image'].zfill(16)}_{annotator}.ogg", "recording")
    if renamed.is_file():
        return renamed
    as_stated = folders.path(stated, "recording")
    return as_stated if as_stated.is_file() else renamed


class _UniqueIds:
    """Numbers ids that come again."""

    def __init__(self, findings: Findings):
        self._seen: set[bytes] = set()
        self._findings = findings

    def unique(self, caption_id: str) -> str:
        number, candidate = 1, caption_id
        while (digest := hashlib.blake2b(candidate.encode(), digest_size=8).digest()) in self._seen:
            number += 1
            candidate = f"{caption_id}/{number}"
        self._seen.add(digest)
        if number > 1:
            self._findings.add(REPEATED, candidate)
        return candidate
