"""What one picture or recording is, and what is wrong with it. Nothing here changes a file."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
from PIL import Image, UnidentifiedImageError

from ..processing.media import MAX_PIXELS
from .schema import Media

MISSING = "missing file"
EMPTY = "empty file"
UNREADABLE = "unreadable file"
TOO_LARGE = f"picture of more than {MAX_PIXELS // 10**6} million pixels"
NO_SAMPLES = "recording without samples"
NOT_FINITE = "recording with NaN or infinite samples"
BROKEN_OFF = "recording that breaks off"
HIDDEN_SAMPLES = "recording with more samples than its header states"

LONG_SECONDS = 60.0  # of what is unusual for a caption

# A chunk behind the samples: tags, cue points, the encoder's name.
_CHUNK_NAME = re.compile(rb"[A-Za-z0-9_ ]{4}")
_TAGS = (b"ID3", b"TAG", b"LIST")  # some programs write these without their proper length
_BYTES_A_SAMPLE = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1}
_BLOCK = 1 << 16  # frames decoded at a time
_FULL_SCALE = 0.999
_LOST_SECONDS = 0.1  # less is the imprecision of headers
_LARGEST_OGG_PAGE = 27 + 255 + 255 * 255
_PIPED_BYTES = 0x7F000000  # a WAV file written to a pipe states a length from here on, which means nothing


class UnusableMedia(Exception):
    """A picture or recording that cannot be used. `kind` is one of the kinds above."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class RecordingFacts(NamedTuple):
    """What a recording's header states; of one that was decoded, also how loud it is.

    `peak` is the largest absolute sample, where full scale is 1; `clipped` is the share of samples at full scale.
    """

    seconds: float
    sampling_rate: int
    channels: int
    peak: float | None = None
    clipped: float | None = None


def inspect_picture(media: Media, decode: bool = False) -> tuple[int, int]:
    """Width and height in pixels; only the header is read unless `decode`.

    Raises:
        UnusableMedia: missing, empty, unreadable, or larger than the processor accepts.
    """
    source = _source(media, "picture")
    name = media_name(media, "picture")
    try:
        with Image.open(source) as image:
            width, height = image.size
            if decode and width * height <= MAX_PIXELS:
                image.load()
    except Exception as error:  # a broken file can raise anything in its decoder
        raise UnusableMedia(UNREADABLE, f"{name}: unreadable picture ({_reason(error)})") from None
    if width * height > MAX_PIXELS:
        raise UnusableMedia(TOO_LARGE, f"{name}: {width} x {height} pixels")
    return width, height


def inspect_recording(media: Media, decode: bool = False) -> RecordingFacts:
    """Duration, rate and channels; only the header is read unless `decode`.

    Raises:
        UnusableMedia: missing, empty or unreadable, without samples, a WAV file whose header states fewer samples
            than the file holds, or a file that ends before its header says so: decoders pass over both without a
            word. What other formats than WAV and Ogg lack at their end is found, and samples that are not finite,
            only with `decode`.
    """
    source = _source(media, "recording")
    name = media_name(media, "recording")
    try:
        with soundfile.SoundFile(source) as file:
            facts = RecordingFacts(file.frames / file.samplerate, file.samplerate, file.channels)
            frames, coding, form = file.frames, file.subtype, file.format
            if decode:
                frames, peak, clipped = _decode(file)
                facts = facts._replace(peak=peak, clipped=clipped)
    # soundfile takes a file named .raw for headerless samples and asks, with a TypeError, for their format.
    except (OSError, TypeError, RuntimeError, soundfile.SoundFileError) as error:
        raise UnusableMedia(UNREADABLE, f"{name}: unreadable recording ({_reason(error)})") from None
    frame_bytes = facts.channels * _BYTES_A_SAMPLE.get(coding, 0) if form in ("WAV", "WAVEX") else 0
    if frame_bytes:
        hidden = _hidden_bytes(media, frames * frame_bytes)
        if hidden:
            raise UnusableMedia(
                HIDDEN_SAMPLES,
                f"{name}: the header states {frames} samples, and {hidden} bytes of samples follow them",
            )
    if frames == 0:
        raise UnusableMedia(NO_SAMPLES, f"{name}: a recording without samples")
    _refuse_broken_off(media, facts, frames, frame_bytes)
    if decode and not math.isfinite(facts.peak):
        raise UnusableMedia(NOT_FINITE, f"{name}: NaN or infinite samples")
    return facts._replace(seconds=frames / facts.sampling_rate)


def audio_problem(media: Media) -> str | None:
    """What is wrong with an encoded recording, or None; only its header is read."""
    try:
        inspect_recording(media)
    except UnusableMedia as problem:
        return str(problem)
    return None


def wav_from_bare_samples(media: Media, sampling_rate: int) -> bytes | None:
    """A WAV file of the 16-bit mono samples behind a broken WAV header; None where no header can be made out, or one
    that says that the samples are others."""
    content = encoded(media)
    stream = io.BytesIO(content)
    start = _samples_start(stream)
    form = content[content.find(b"fmt ") + 8 :][:16] if b"fmt " in content[:4096] else None
    if form is not None:
        coding, channels, rate = (int.from_bytes(form[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8)))
        if (coding, channels, rate, int.from_bytes(form[14:16], "little")) != (1, 1, sampling_rate, 16):
            return None
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


def read(media: Media, kind: str) -> Media:
    """The same medium with its encoded bytes held.

    Raises:
        UnusableMedia: missing, empty, or a file that cannot be read.
    """
    try:
        _source(media, kind)
        return Media(bytes=encoded(media), path=media["path"])
    except OSError as error:
        raise UnusableMedia(UNREADABLE, f"{media_name(media, kind)}: {error}") from None


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


def _reason(error: Exception) -> str:
    """What the decoder says, without the name it gives to bytes in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "no picture format that is known"
    return getattr(error, "error_string", None) or str(error) or type(error).__name__


def _decode(file: soundfile.SoundFile) -> tuple[int, float, float]:
    """How many frames there are, the largest absolute sample (NaN if one is), and the the share at full scale."""
    frames, peak, clipped = 0, 0.0, 0
    # Not file.blocks(): where the file ends early, that yields memory that was never written.
    while frames < file.frames and len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        loudness = np.abs(block)
        frames += len(block)
        peak = float(np.maximum(peak, loudness.max()))  # keeps NaN
        clipped += int(np.count_nonzero(loudness >= _FULL_SCALE))
    return frames, peak, clipped / max(frames * file.channels, 1)


def _refuse_broken_off(media: Media, facts: RecordingFacts, frames: int, frame_bytes: int) -> None:
    name = media_name(media, "recording")
    held = frames / facts.sampling_rate
    stated = facts.seconds
    if frame_bytes:  # libsndfile reports no more than a WAV file holds
        stated = max(stated, _stated_bytes(media) / frame_bytes / facts.sampling_rate)
    if stated - held > _LOST_SECONDS:
        raise UnusableMedia(BROKEN_OFF, f"{name}: its header states {stated:.2f} s, {held:.2f} s are there")
    if _ends_within_ogg_page(media):
        raise UnusableMedia(BROKEN_OFF, f"{name}: breaks off within a page after {held:.2f} s")


def _stated_bytes(media: Media) -> int:
    """Of samples, by the header of a WAV file; 0 if it states none."""
    with _stream(media) as file:
        start = _samples_start(file)
        if start is None:
            return 0
        file.seek(start - 4)
        length = int.from_bytes(file.read(4), "little")
    return length if length < _PIPED_BYTES else 0


def _hidden_bytes(media: Media, stated: int) -> int:
    """Bytes behind the stated samples that are no chunk of the format, so samples."""
    with _stream(media) as file:
        size = file.seek(0, io.SEEK_END)
        start = _samples_start(file)
        if start is None:
            return 0
        end = start + stated + stated % 2
        file.seek(end)
        name, length = file.read(4), int.from_bytes(file.read(4), "little")
        file.seek(end)
        padding = not file.read().strip(b"\0")
    rest = size - end
    tagged = name.startswith(_TAGS) or (_CHUNK_NAME.fullmatch(name) and length <= rest)
    return 0 if rest < 8 or tagged or padding else rest


def _ends_within_ogg_page(media: Media) -> bool:
    with _stream(media) as file:
        if file.read(4) != b"OggS":
            return False
        file.seek(max(file.seek(0, io.SEEK_END) - _LARGEST_OGG_PAGE, 0))
        tail = file.read()
    page = tail[max(tail.rfind(b"OggS\0"), 0) :]
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return len(page) < 27 or len(page) < 27 + page[26] + sum(lengths)


def _stream(media: Media) -> BinaryIO:
    return Path(media["path"]).open("rb") if media["bytes"] is None else io.BytesIO(media["bytes"])


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
