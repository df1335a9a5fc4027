"""SpokenCOCO: the captions of COCO 2014, 742 hours of them, read aloud by 2,352 people (Hsu et al., ACL 2021).

Recordings and their JSON: https://data.csail.mit.edu/placesaudio/SpokenCOCO.tar.gz; pictures, `train2014/` and
`val2014/`: https://cocodataset.org. The splits are Karpathy's: 5,000 pictures each for validation and test, all others
for training. A picture has five captions or more; the 5,000 of the test split have 25,031.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .building import Reading
from .entries import Entry, stream_entries
from .findings import Findings
from .harwath_json import stream_utterances
from .locating import MediaFolders, find_files, nothing_found
from .schema import CorpusError, Media, SpokenCaption
from .splits import karpathy_split

OTHER_SPLIT = "picture in another split than Karpathy's"

_SPLIT_FILES = {
    "Karpathy's split": "SpokenCOCO_{}_karpathy.json",
    "FaST-VGS's unrolled form of Karpathy's split": "SpokenCOCO_{}_unrolled_karpathy.json",
    "SpeechCLIP's form of Karpathy's split": "SpokenCOCO_ksplit_{}.json",
}
_MERGED = "dataset.json"
_MERGED_KEYS = ("split_karpathy", "split_spokencoco")
_RELEASE = ("SpokenCOCO_train.json", "SpokenCOCO_val.json")
_KARPATHY = "dataset_coco.json"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_IMAGE_NAME = re.compile(r"(?:.*/)?COCO_(?:train|val)2014_(?P<id>\d{12})\.jpg")


class _Caption(NamedTuple):
    """`split` is None where the file does not state it."""

    image: str
    coco_id: int
    wav: str
    caption_id: str
    text: str | None
    speaker: str | None
    split: str | None


class _Layout(NamedTuple):
    """A form of the metadata: its files, each with the split that it holds if it is one, and what reads a file.

    `needs_splits`: neither the names of the files nor what is in them say what is in which of Karpathy's splits.
    """

    name: str
    files: Sequence[tuple[Path, str | None]]
    captions: Callable[[Path], Iterator[_Caption]]
    needs_splits: bool


def read_spoken_coco(sources: Sequence[Path]) -> Reading:
    """Rows of SpokenCOCO as it lies in one or several folders, with Karpathy's split.

    The metadata may be in any of these forms. If several are there, the first that is complete is read:

    1. `SpokenCOCO_{train,val,test}_karpathy.json`;
    2. FaST-VGS's `SpokenCOCO_{train,val,test}_unrolled_karpathy.json`, https://github.com/jasonppy/FaST-VGS-Family;
    3. SpeechCLIP's `SpokenCOCO_ksplit_{train,val,test}.json`, https://github.com/atosystem/SpeechCLIP, whose
       `reassign_id` stands for the picture as COCO's id does;
    4. platalea's `dataset.json`, SpokenCOCO merged with Karpathy's file, https://github.com/spokenlanguage/platalea;
    5. `SpokenCOCO_{train,val}.json`, as the archive has them. These hold COCO's own split. A picture's split is taken
       from Karpathy's `dataset_coco.json` if that is there, else from the ids that come with this package; so it is
       in the fourth form if only `split_spokencoco` is there.

    Recordings are relative to the folder of the metadata, its parent or another folder of the sources; so are
    pictures. `image_id` is COCO's id and `caption_id` the `uttid`, the same in all forms. Texts are as they stand: in
    upper case, but in the fourth form COCO's own.

    Raises:
        CorpusError: none of these there, a file that is no valid JSON, an entry without a key that it needs, a path
            that leads out of the corpus, or a picture in two splits.
    """
    files = find_files(sources, [*(name for names in _split_files() for name in names), _MERGED, *_RELEASE, _KARPATHY])
    layouts = _layouts(files)
    if not layouts:
        raise nothing_found("SpokenCOCO", sources, _looked_for(files))
    layout = layouts[0]
    karpathy, origin = _karpathy(files.get(_KARPATHY) if layout.needs_splits else None)
    reading = Reading(rows=())
    reading.notes.append(f"Read: {layout.name} ({', '.join(str(file) for file, _ in layout.files)}).")
    reading.notes.append(f"Splits: {origin if layout.needs_splits else 'as the files have them'}.")
    if layouts[1:]:
        reading.notes.append(f"Also there and not read: {'; '.join(other.name for other in layouts[1:])}.")
    reading.rows = _rows(layout, karpathy, sources, reading.findings)
    return reading


def _layouts(files: Mapping[str, Path]) -> list[_Layout]:
    """Those of which all files are there, in the order of preference."""
    layouts = [
        _Layout(
            name=layout,
            files=[(files[name], split) for name, split in zip(names, _SPLITS.values(), strict=True)],
            captions=_captions,
            needs_splits=False,
        )
        for layout, names in zip(_SPLIT_FILES, _split_files(), strict=True)
        if files.keys() >= set(names)
    ]
    stated = _merged_split_keys(files[_MERGED]) if _MERGED in files else ()
    if stated:
        layouts.append(
            _Layout(
                name="platalea's merged file",
                files=[(files[_MERGED], None)],
                captions=_merged_captions,
                needs_splits=_MERGED_KEYS[0] not in stated,
            )
        )
    if files.keys() >= set(_RELEASE):
        layouts.append(
            _Layout(
                name="the archive's files",
                files=[(files[name], None) for name in _RELEASE],
                captions=_captions,
                needs_splits=True,
            )
        )
    return layouts


def _split_files() -> list[list[str]]:
    return [[pattern.format(split) for split in _SPLITS] for pattern in _SPLIT_FILES.values()]


def _merged_split_keys(path: Path) -> Sequence[str]:
    """The splits that a merged file states; none in Flickr8k's, which has the same name and structure."""
    try:
        first = next(stream_entries(path, "images"))
    except CorpusError:
        return ()
    return [key for key in _MERGED_KEYS if key in first.values]


def _looked_for(files: Mapping[str, Path]) -> list[str]:
    lines = []
    for names in [*_split_files(), _RELEASE]:
        there = [str(files[name]) for name in names if name in files]
        lines.append(" and ".join(names) + (f"; of these only {', '.join(there)}" if there else ""))
    return [*lines, f"{_MERGED} whose images have {' or '.join(_MERGED_KEYS)}"]


def _karpathy(path: Path | None) -> tuple[Callable[[int], str], str]:
    """A function from COCO's id of a picture to its split, and where that comes from."""
    if path is None:
        return karpathy_split, "Karpathy's by the picture ids that come with this package"
    splits = {
        _coco_id(entry, entry.required_text("filename")): _split(entry, "split")
        for entry in stream_entries(path, "images")
    }

    def split_of(coco_id: int) -> str:
        if coco_id not in splits:
            raise CorpusError(
                f"{path} has no picture {coco_id}, so it is not the whole of Karpathy's file. Move it away: the same "
                "splits come with this package."
            )
        return splits[coco_id]

    return split_of, f"Karpathy's by {path}"


def _captions(path: Path) -> Iterator[_Caption]:
    for picture, caption in stream_utterances(path):
        image = picture.relative_path("image")
        yield _Caption(
            image=image,
            coco_id=_coco_id(picture, image),
            wav=caption.relative_path("wav"),
            caption_id=caption.required_text("uttid"),
            text=caption.text_that_may_be_empty("text"),
            speaker=caption.required_text("speaker"),
            split=None,
        )


def _merged_captions(path: Path) -> Iterator[_Caption]:
    for picture in stream_entries(path, "images"):
        image = f"{picture.relative_path('filepath')}/{picture.relative_path('filename')}"
        for caption in picture.entries("sentences"):
            yield _Caption(
                image=image,
                coco_id=_coco_id(picture, image),
                wav=caption.relative_path("wav"),
                caption_id=caption.required_text("uttid"),
                text=caption.text_that_may_be_empty("raw"),
                speaker=caption.text("speaker"),
                split=_split(picture, "split_karpathy") if "split_karpathy" in picture.values else None,
            )


def _coco_id(entry: Entry, image: str) -> int:
    match = _IMAGE_NAME.fullmatch(image)
    if not match:
        raise CorpusError(f"{entry.where}: {image!r} is no picture of COCO 2014 (COCO_val2014_000000391895.jpg).")
    return int(match["id"])


def _split(entry: Entry, key: str) -> str:
    name = entry.required_text(key)
    if name == "restval":
        return "train"
    if name not in _SPLITS:
        raise CorpusError(f"{entry.where}: {key!r} is {name!r}; known are {', '.join(_SPLITS)} and restval.")
    return _SPLITS[name]


def _rows(
    layout: _Layout, karpathy: Callable[[int], str], sources: Sequence[Path], findings: Findings
) -> Iterator[tuple[str, SpokenCaption]]:
    files = [file for file, _ in layout.files]
    likely = [folder for file in files for folder in (file.parent, file.parent / "SpokenCOCO", file.parent.parent)]
    folders = MediaFolders(sources, likely)
    splits: dict[int, str] = {}
    for file, file_split in layout.files:
        for caption in layout.captions(file):
            coco_id, split = caption.coco_id, file_split or caption.split or karpathy(caption.coco_id)
            if coco_id not in splits:
                splits[coco_id] = split
                if split != karpathy_split(coco_id):
                    findings.add(OTHER_SPLIT, f"{coco_id} is in {split}, by Karpathy in {karpathy_split(coco_id)}")
            elif splits[coco_id] != split:
                raise _in_two_splits(coco_id, splits[coco_id], split, files)
            yield split, _row(caption, folders)


def _row(caption: _Caption, folders: MediaFolders) -> SpokenCaption:
    return SpokenCaption(
        image=Media(bytes=None, path=str(folders.path(caption.image, "picture"))),
        audio=Media(bytes=None, path=str(folders.path(caption.wav, "recording"))),
        image_id=str(caption.coco_id),
        caption_id=caption.caption_id,
        text=caption.text,
        speaker=caption.speaker,
        language="en",
    )


def _in_two_splits(coco_id: int, first: str, second: str, files: Sequence[Path]) -> CorpusError:
    return CorpusError(
        f"Picture {coco_id} is in {first} and in {second} of {', '.join(map(str, files))}. These are not Karpathy's "
        "splits: there are files of these names that were unrolled from COCO's own. Move them away; from the "
        f"archive's {' and '.join(_RELEASE)} alone the splits are made right."
    )
