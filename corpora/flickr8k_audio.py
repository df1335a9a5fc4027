"""Flickr8k Audio Captions: 40,000 spoken captions of 8,000 photographs by 183 speakers (Harwath & Glass, 2015).

Recordings: a folder `wavs/` with `wav2capt.txt` and `wav2spk.txt`. Captions: `Flickr8k.token.txt` or
`Flickr8k.lemma.token.txt`, Kaggle's `captions.txt`, or Karpathy's `dataset.json`. Pictures: `Images/` or
`Flicker8k_Dataset/`, as the archive spells it. The splits are the official ones of 6,000 / 1,000 / 1,000 pictures,
from the lists in `official_splits/`: the copies of `Flickr_8k.testImages.txt` that people have differ.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .building import Reading
from .findings import Findings
from .locating import find_files, nothing_found, walk
from .schema import CorpusError, Media, SpokenCaption

OFFICIAL_PICTURES = {"train": 6000, "validation": 1000, "test": 1000}
SAMPLING_RATE = 16_000  # of all recordings

NO_PICTURE = "caption of a picture that is not in the archive, left out"
NO_RECORDING = "picture without a recording, left out"
NOT_NAMED = "file in wavs/ that wav2capt.txt does not name, left out"
NO_TEXT = "recording without a written caption, kept"

_TOKENS = ("Flickr8k.token.txt", "Flickr8k.lemma.token.txt")
_KARPATHY = ("dataset_flickr8k.json", "dataset.json")
_IMAGE_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
_TOKEN_LINE = re.compile(r"(?P<image>.+)#(?P<number>\d+)\t(?P<text>.*)")
_WAV_NAME = re.compile(r"(?P<image>.+)_(?P<number>\d+)\.wav")

Captions = Mapping[str, Sequence[str]]
"""Picture's file name -> its captions, by number."""


class _Recording(NamedTuple):
    wav: str
    image: str
    number: int


def read_flickr8k_audio(sources: Sequence[Path]) -> Reading:
    """Rows of the corpus that lies in one or several folders, in whichever of its layouts.

    `image_id` is the picture's file name without its extension, `caption_id` the recording's; texts are as they are
    written.

    Raises:
        CorpusError: no recordings or no pictures there, or a line that cannot be read.
    """
    files = find_files(sources, ["wav2capt.txt", "wav2spk.txt", "captions.txt", *_TOKENS, *_KARPATHY])
    wavs = next((folder for folder in walk(sources) if folder.name == "wavs"), None)
    images = _folder_of_pictures(sources)
    if wavs is None or images is None:
        raise nothing_found(
            "flickr8k_audio", sources, ["wavs/", f"{' or '.join(f'{name}/' for name in _IMAGE_FOLDERS)} with *.jpg"]
        )
    reading = Reading(rows=(), bare_sampling_rate=SAMPLING_RATE)
    captions, origin = _captions(files, reading.findings)
    reading.notes += [f"Captions: {origin}.", "Splits: the official lists that come with this package."]
    recordings = _recordings(files.get("wav2capt.txt"), wavs)
    reading.expected_rows = len(recordings)
    _note_leftovers(recordings, wavs, images, reading.findings)
    speakers = _speakers(files.get("wav2spk.txt"))
    reading.rows = _rows(recordings, wavs, images, captions, speakers, reading)
    return reading


def official_split(image: str) -> str:
    """The official split of a picture of the corpus, by file name with or without extension; train for any other."""
    stem = image.removesuffix(".jpg")
    return next((split for split in ("validation", "test") if stem in _official(split)), "train")


def read_token_lines(lines: Iterable[str], where: str, findings: Findings | None = None) -> dict[str, list[str]]:
    """Captions from lines `NAME.jpg#NUMBER<tab>CAPTION`; the archive has five of a picture that is not in it."""
    captions: dict[str, list[str]] = {}
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _TOKEN_LINE.fullmatch(line.rstrip("\r\n"))
        if not match:
            raise CorpusError(f"{where}, line {place}: not `NAME.jpg#NUMBER<tab>CAPTION` but {line.strip()!r}.")
        if not match["image"].endswith(".jpg"):
            if findings is not None:
                findings.add(NO_PICTURE, f"{match['image']}#{match['number']}")
            continue
        own = captions.setdefault(match["image"], [])
        own += [""] * (int(match["number"]) + 1 - len(own))
        own[int(match["number"])] = match["text"].strip()
    return captions


def read_captions_csv(lines: Iterable[str], where: str) -> dict[str, list[str]]:
    """Captions from Kaggle's `captions.txt`: a header, then `NAME.jpg,CAPTION`, quoted or not, commas or not."""
    captions: dict[str, list[str]] = {}
    for place, line in enumerate(lines, start=1):
        image, comma, text = line.rstrip("\r\n").partition(",")
        if not comma:
            if line.strip():
                raise CorpusError(f"{where}, line {place}: not `NAME.jpg,CAPTION` but {line.strip()!r}.")
            continue
        if place == 1 and (image, text) == ("image", "caption"):
            continue
        fields = next(csv.reader([line.rstrip("\r\n")]))
        captions.setdefault(image, []).append((fields[1] if len(fields) == 2 else text).strip())
    return captions


def _folder_of_pictures(sources: Sequence[Path]) -> Path | None:
    """The archive has a folder of the same name around it, which holds no pictures itself."""
    named = (folder for folder in walk(sources) if folder.name in _IMAGE_FOLDERS)
    return next((folder for folder in named if any(folder.glob("*.jpg"))), None)


def _read_karpathy(path: Path) -> dict[str, list[str]]:
    try:
        images = json.loads("".join(_lines(path)))["images"]
        return {image["filename"]: [sentence["raw"] for sentence in image["sentences"]] for image in images}
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{path} does not list images with filename and sentences ({error}).") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8: {error}. Convert it, for example with iconv.") from None


def _captions(files: Mapping[str, Path], findings: Findings) -> tuple[Captions, str]:
    for name in _TOKENS:
        if name in files:
            return read_token_lines(_lines(files[name]), name, findings), name
    if "captions.txt" in files:
        return read_captions_csv(_lines(files["captions.txt"]), "captions.txt"), "captions.txt"
    for name in _KARPATHY:
        if name in files:
            return _read_karpathy(files[name]), f"Karpathy's {name}"
    return {}, f"none written ({', '.join([*_TOKENS, 'captions.txt'])} not found)"


def _recordings(wav2capt: Path | None, wavs: Path) -> list[_Recording]:
    """From `WAV JPG #NUMBER` lines; without them from the names of the recordings."""
    if wav2capt is None:
        matches = filter(None, map(_WAV_NAME.fullmatch, sorted(_names(wavs))))
        return [_Recording(match.string, f"{match['image']}.jpg", int(match["number"])) for match in matches]
    recordings = []
    for place, line in enumerate(_lines(wav2capt), start=1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 3 or not re.fullmatch(r"#\d+", fields[2]):
            raise CorpusError(f"{wav2capt}, line {place}: not `NAME.wav NAME.jpg #NUMBER` but {line!r}.")
        recordings.append(_Recording(Path(fields[0]).name, Path(fields[1]).name, int(fields[2][1:])))
    return recordings


def _speakers(wav2spk: Path | None) -> dict[str, str]:
    speakers = {}
    for place, line in enumerate(_lines(wav2spk) if wav2spk else (), start=1):
        fields = line.split()
        if fields and len(fields) != 2:
            raise CorpusError(f"{wav2spk}, line {place}: not `NAME.wav SPEAKER` but {line!r}.")
        speakers |= dict([fields]) if fields else {}
    return speakers


def _note_leftovers(recordings: Sequence[_Recording], wavs: Path, images: Path, findings: Findings) -> None:
    for name in sorted(_names(wavs) - {recording.wav for recording in recordings}):
        findings.add(NOT_NAMED, name)
    for name in sorted(_names(images) - {recording.image for recording in recordings}):
        findings.add(NO_RECORDING, name)


def _rows(
    recordings: Sequence[_Recording],
    wavs: Path,
    images: Path,
    captions: Captions,
    speakers: Mapping[str, str],
    reading: Reading,
) -> Iterator[tuple[str, SpokenCaption]]:
    pictures: dict[str, str] = {}
    for wav, image, number in recordings:
        split = pictures[image] = official_split(image)
        own = captions.get(image, ())
        text = own[number] if number < len(own) and own[number] else None
        if text is None:
            reading.findings.add(NO_TEXT, wav)
        yield (
            split,
            SpokenCaption(
                image=Media(bytes=None, path=str(images / image)),
                audio=Media(bytes=None, path=str(wavs / wav)),
                image_id=image.removesuffix(".jpg"),
                caption_id=wav.removesuffix(".wav"),
                text=text,
                speaker=speakers.get(wav),
                language="en",
            ),
        )
    reading.notes.append(_size_note(list(pictures.values())))


def _size_note(splits: Sequence[str]) -> str:
    found = {split: splits.count(split) for split in OFFICIAL_PICTURES}
    counts = " / ".join(map(str, found.values()))
    if found == OFFICIAL_PICTURES:
        return f"All {counts} pictures of the official splits are there."
    return f"{counts} pictures instead of the official {' / '.join(map(str, OFFICIAL_PICTURES.values()))}."


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")}


@cache
def _official(split: str) -> frozenset[str]:
    path = Path(__file__).parent / "official_splits" / f"flickr8k_{split}.txt"
    return frozenset(path.read_text(encoding="utf-8").split())
