"""Flickr8k Audio Captions: 40,000 spoken captions of 8,000 photographs by 183 speakers (Harwath & Glass, 2015).

Recordings: a folder `wavs/` with `wav2capt.txt` and `wav2spk.txt`. Captions: `Flickr8k.token.txt` or
`Flickr8k.lemma.token.txt`, Kaggle's `captions.txt`, or Karpathy's `dataset.json`. Pictures: `Images/` or
`Flicker8k_Dataset/`, as the archive spells it. The splits are the official ones of 6,000 / 1,000 / 1,000 pictures:
from `Flickr_8k.{train,dev,test}Images.txt` if they are there, else from Karpathy's file, which keeps them, else from
the lists in `official_splits/`.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .building import Reading
from .findings import Findings
from .locating import find_files, find_folder, nothing_found
from .schema import CorpusError, Media, SpokenCaption

OFFICIAL_PICTURES = {"train": 6000, "validation": 1000, "test": 1000}
SAMPLING_RATE = 16_000  # of all recordings

NO_PICTURE = "caption of a picture that is not in the archive, left out"
NO_RECORDING = "picture without a recording, left out"
NO_SPLIT = "recording of a picture that no split lists, left out"
NOT_NAMED = "file in wavs/ that wav2capt.txt does not name, left out"
NO_TEXT = "recording without a written caption, kept"
OTHER_SPLIT = "picture in another split than the official one"

_TOKENS = ("Flickr8k.token.txt", "Flickr8k.lemma.token.txt")
_KARPATHY = ("dataset_flickr8k.json", "dataset.json")
_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "validation": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
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
    names = ["wav2capt.txt", "wav2spk.txt", "captions.txt", *_TOKENS, *_KARPATHY, *_LISTS.values()]
    files = find_files(sources, names)
    wavs = find_folder(sources, ["wavs"])
    images = find_folder(sources, _IMAGE_FOLDERS)
    if wavs is None or images is None:
        raise nothing_found("flickr8k_audio", sources, ["wavs/", " or ".join(f"{name}/" for name in _IMAGE_FOLDERS)])
    reading = Reading(rows=(), bare_sampling_rate=SAMPLING_RATE)
    karpathy = _read_karpathy(next((files[name] for name in _KARPATHY if name in files), None))
    captions, origin = _captions(files, karpathy, reading.findings)
    split_of, split_origin = _splits(files, karpathy)
    reading.notes += [f"Captions: {origin}.", f"Splits: {split_origin}."]
    recordings = _recordings(files.get("wav2capt.txt"), wavs)
    reading.expected_rows = len(recordings)
    _note_leftovers(recordings, wavs, images, reading.findings)
    speakers = _speakers(files.get("wav2spk.txt"))
    reading.rows = _rows(recordings, wavs, images, captions, speakers, split_of, reading)
    return reading


def official_split(image: str) -> str:
    """The official split of a picture of the corpus, by file name with or without extension."""
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


def _read_karpathy(path: Path | None) -> list[dict]:
    if path is None:
        return []
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        return [
            {"image": image["filename"], "split": image["split"], "texts": [s["raw"] for s in image["sentences"]]}
            for image in images
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path} does not list images with filename, split and sentences ({error}).") from error


def _captions(files: Mapping[str, Path], karpathy: list[dict], findings: Findings) -> tuple[Captions, str]:
    for name in _TOKENS:
        if name in files:
            with files[name].open(encoding="utf-8") as lines:
                return read_token_lines(lines, name, findings), name
    if "captions.txt" in files:
        with files["captions.txt"].open(encoding="utf-8") as lines:
            return read_captions_csv(lines, "captions.txt"), "captions.txt"
    if karpathy:
        return {image["image"]: image["texts"] for image in karpathy}, "Karpathy's dataset.json"
    return {}, f"none written ({', '.join([*_TOKENS, 'captions.txt'])} not found)"


def _splits(files: Mapping[str, Path], karpathy: list[dict]) -> tuple[Callable[[str], str | None], str]:
    if all(name in files for name in _LISTS.values()):
        listed = {
            line.strip(): split
            for split, name in _LISTS.items()
            for line in files[name].read_text(encoding="utf-8").splitlines()
            if line.strip()
        }
        return listed.get, "Flickr_8k.{train,dev,test}Images.txt"
    if karpathy:
        named = {"train": "train", "val": "validation", "test": "test"}
        listed = {image["image"]: named[image["split"]] for image in karpathy}
        return listed.get, "Karpathy's dataset.json, which keeps the official ones"
    return official_split, "the official lists that come with this package"


def _recordings(wav2capt: Path | None, wavs: Path) -> list[_Recording]:
    """From `WAV JPG #NUMBER` lines; without them from the names of the recordings."""
    if wav2capt is None:
        matches = filter(None, map(_WAV_NAME.fullmatch, sorted(_names(wavs))))
        return [_Recording(match.string, f"{match['image']}.jpg", int(match["number"])) for match in matches]
    recordings = []
    for place, line in enumerate(wav2capt.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 3 or not re.fullmatch(r"#\d+", fields[2]):
            raise CorpusError(f"{wav2capt}, line {place}: not `NAME.wav NAME.jpg #NUMBER` but {line!r}.")
        recordings.append(_Recording(Path(fields[0]).name, Path(fields[1]).name, int(fields[2][1:])))
    return recordings


def _speakers(wav2spk: Path | None) -> dict[str, str]:
    if wav2spk is None:
        return {}
    lines = wav2spk.read_text(encoding="utf-8").splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line.strip())


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
    split_of: Callable[[str], str | None],
    reading: Reading,
) -> Iterator[tuple[str, SpokenCaption]]:
    pictures: dict[str, str] = {}
    for wav, image, number in recordings:
        split = split_of(image)
        if split is None:
            reading.findings.add(NO_SPLIT, wav)
            continue
        if image not in pictures and split != official_split(image):
            reading.findings.add(OTHER_SPLIT, f"{image}: {split}, officially {official_split(image)}")
        pictures[image] = split
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
