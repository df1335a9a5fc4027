"""What one picture or recording is, and what is wrong with it. Nothing here changes a file."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
from PIL import Image

from .schema import Media

MISSING = "missing file"
EMPTY = "empty file"
UNREADABLE = "unreadable file"
NO_SAMPLES = "recording without samples"
HIDDEN_SAMPLES = "recording with more samples than its header states"

# A chunk behind the samples: tags, cue points, the encoder's name.
_CHUNK_NAME = re.compile(rb"[A-Za-z0-9_ ]{4}")
_BYTES_A_SAMPLE = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1}
_BLOCK = 1 << 16  # frames decoded at a time


class UnusableMedia(Exception):
    """A picture or recording that cannot be used. `kind` is one of the kinds above."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class RecordingFacts(NamedTuple):
    """What a recording's header states."""

    seconds: float
    sampling_rate: int
    channels: int


def inspect_picture(media: Media, decode: bool = False) -> tuple[int, int]:
    """Width and height in pixels; only the header is read unless `decode`.

    Raises:
        UnusableMedia: missing, empty or unreadable.
    """
    source = _source(media, "picture")
    try:
        with Image.open(source) as image:
            if decode:
                image.load()
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnusableMedia(UNREADABLE, f"{media_name(media, 'picture')}: unreadable picture ({error})") from None


def inspect_recording(media: Media, decode: bool = False) -> RecordingFacts:
    """Duration, rate and channels; only the header is read unless `decode`.

    Raises:
        UnusableMedia: missing, empty or unreadable, without samples, or a WAV file whose header states fewer samples
            than the file holds: decoders read what is stated and drop the rest without a word.
    """
    source = _source(media, "recording")
    name = media_name(media, "recording")
    try:
        with soundfile.SoundFile(source) as file:
            facts = RecordingFacts(file.frames / file.samplerate, file.samplerate, file.channels)
            frames, coding, form = file.frames, file.subtype, file.format
            if decode:
                frames = sum(len(block) for block in file.blocks(_BLOCK, dtype="float32"))
    # soundfile takes a file named .raw for headerless samples and asks, with a TypeError, for their format.
    except (OSError, TypeError, RuntimeError, soundfile.SoundFileError) as error:
        raise UnusableMedia(UNREADABLE, f"{name}: unreadable recording ({error})") from None
    if form in ("WAV", "WAVEX") and coding in _BYTES_A_SAMPLE:
        hidden = _hidden_bytes(media, frames * facts.channels * _BYTES_A_SAMPLE[coding])
        if hidden:
            raise UnusableMedia(
                HIDDEN_SAMPLES,
                f"{name}: the header states {frames} samples, and {hidden} bytes of samples follow them",
            )
    if frames == 0:
        raise UnusableMedia(NO_SAMPLES, f"{name}: a recording without samples")
    return facts._replace(seconds=frames / facts.sampling_rate)


def wav_from_bare_samples(media: Media, sampling_rate: int) -> bytes | None:
    """A WAV file of the 16-bit mono samples behind a broken WAV header; None where no header can be made out."""
    content = encoded(media)
    start = _samples_start(io.BytesIO(content))
    if start is None:
        start = 44 if content.startswith(b"RIFF") else None
    if start is None or len(content) - start < 2:
        return None
    samples = np.frombuffer(content[start : start + (len(content) - start) // 2 * 2], dtype="<i2")
    rebuilt = io.BytesIO()
    soundfile.write(rebuilt, samples, sampling_rate, format="WAV", subtype="PCM_16")
    return rebuilt.getvalue()


def encoded(media: Media) -> bytes:
    """The encoded bytes, read from the file where they are not held."""
    return Path(media["path"]).read_bytes() if media["bytes"] is None else media["bytes"]


def media_name(media: Media, kind: str) -> str:
    """How messages call it: its path, or that it is embedded."""
    return media["path"] or f"embedded {kind}"


def _source(media: Media, kind: str) -> str | io.BytesIO:
    if media["bytes"] is None and media["path"] is None:
        raise UnusableMedia(MISSING, f"a {kind} with neither bytes nor a path")
    if media["bytes"] is not None:
        size = len(media["bytes"])
    elif Path(media["path"]).is_file():
        size = Path(media["path"]).stat().st_size
    else:
        raise UnusableMedia(MISSING, f"{media['path']}: no such file")
    if size == 0:
        raise UnusableMedia(EMPTY, f"{media_name(media, kind)}: an empty file")
    return media["path"] if media["bytes"] is None else io.BytesIO(media["bytes"])


def _hidden_bytes(media: Media, stated: int) -> int:
    """Bytes behind the stated samples that are no chunk of the format, so samples."""
    source = _source(media, "recording")
    with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else Path(source).open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        start = _samples_start(file)
        if start is None:
            return 0
        end = start + stated + stated % 2
        file.seek(end)
        name, length = file.read(4), int.from_bytes(file.read(4), "little")
    rest = size - end
    if rest < 8 or (_CHUNK_NAME.fullmatch(name) and length <= rest):
        return 0
    return rest


def _samples_start(file: BinaryIO) -> int | None:
    """Where the samples of a WAV file begin; None if it is none."""
    file.seek(0)
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    while len(head := file.read(8)) == 8:
        if head[:4] == b"data":
            return file.tell()
        length = int.from_bytes(head[4:], "little")
        file.seek(length + length % 2, io.SEEK_CUR)
    return None
