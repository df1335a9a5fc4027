"""Uploads of strangers, checked by their size and their header before anything decodes them."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from .media import MediaError, is_silent, load_image

_SHORTEST_SECONDS = 0.05
_UNKNOWN_FRAMES = 2**62  # a FLAC that was written to a pipe does not say how long it is
_RECORDING_FORMATS = frozenset(("AIFF", "AU", "CAF", "FLAC", "MP3", "OGG", "RF64", "W64", "WAV", "WAVEX"))
_PICTURE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_MAX_RATE = 192_000
_MAX_CHANNELS = 8
_FRAMES_AT_A_TIME = 65_536


class UploadRefused(ValueError):
    """A file that is not taken; the message says why, to the person who sent it."""


@dataclass(frozen=True)
class UploadLimits:
    """What is taken at most: seconds of a recording, megabytes of any file, megapixels of a picture."""

    max_seconds: float = 30.0
    max_megabytes: float = 10.0
    max_megapixels: float = 40.0

    @property
    def max_bytes(self) -> int:
        return round(self.max_megabytes * 1e6)


def read_recording(upload: Path | bytes, limits: UploadLimits) -> dict[str, Any]:
    """Mono samples of a recording, as the processor reads them: `array` (samples,) float32, `sampling_rate` in Hz.

    The duration is taken from the header, and nothing beyond it is decoded, so a header that lies gains nothing.

    Raises:
        UploadRefused: no recording, an empty, a silent or a damaged one, or one beyond the limits.
    """
    encoded = _read(upload, limits)
    try:
        with soundfile.SoundFile(io.BytesIO(encoded)) as recording:
            _check_recording(recording, limits)
            samples = _mono(recording)
            rate = recording.samplerate
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        raise UploadRefused("This file cannot be read as a recording. Send WAV, FLAC, MP3, Ogg or Opus.") from None
    if not np.isfinite(samples).all():
        raise UploadRefused("This recording is damaged: it has samples that are no numbers.")
    if len(samples) < _SHORTEST_SECONDS * rate:
        raise UploadRefused("This recording is too short to say anything: it lasts less than a twentieth of a second.")
    if is_silent(samples):
        raise UploadRefused("There is no sound in this recording. Is the right microphone chosen, and is it on?")
    return {"array": samples, "sampling_rate": rate}


def read_picture(upload: Path | bytes, limits: UploadLimits) -> Image.Image:
    """An RGB picture, upright. Its size is read from the header, before any pixel is decoded.

    Raises:
        UploadRefused: no picture, an empty or a damaged one, or one beyond the limits.
    """
    encoded = _read(upload, limits)
    try:
        with Image.open(io.BytesIO(encoded), formats=_PICTURE_FORMATS) as picture:
            _check_picture(picture, limits)
            return load_image(picture)
    except Image.DecompressionBombError:
        raise UploadRefused(_too_many_pixels(limits)) from None
    except UploadRefused:
        raise
    except (MediaError, OSError, ValueError, SyntaxError, RuntimeError, EOFError, struct.error):
        raise UploadRefused(
            "This file cannot be read as a picture. Send JPEG, PNG, WebP, AVIF, GIF or TIFF."
        ) from None


def _read(upload: Path | bytes, limits: UploadLimits) -> bytes:
    if isinstance(upload, Path) and not upload.is_file():
        raise UploadRefused("This file is no longer here: uploads are deleted after a while. Please send it again.")
    size = len(upload) if isinstance(upload, bytes) else upload.stat().st_size
    if not size:
        raise UploadRefused("This file is empty.")
    if size > limits.max_bytes:
        raise UploadRefused(f"This file has {size / 1e6:.1f} MB; at most {limits.max_megabytes:g} MB are taken.")
    return upload if isinstance(upload, bytes) else upload.read_bytes()


def _check_recording(recording: soundfile.SoundFile, limits: UploadLimits) -> None:
    if recording.format not in _RECORDING_FORMATS:
        raise UploadRefused(f"Recordings of the format {recording.format} are not taken. Send WAV, FLAC, MP3 or Ogg.")
    if recording.channels > _MAX_CHANNELS or not 0 < recording.samplerate <= _MAX_RATE:
        raise UploadRefused(
            f"This recording has {recording.channels} channels at {recording.samplerate} Hz; at most {_MAX_CHANNELS} "
            f"channels at {_MAX_RATE} Hz are taken."
        )
    if recording.frames >= _UNKNOWN_FRAMES:
        raise UploadRefused(
            "This recording does not say how long it is, as one that was written to a pipe. Save it as a file again."
        )
    if recording.frames > limits.max_seconds * recording.samplerate:
        raise UploadRefused(
            f"This recording lasts {_duration(recording.frames / recording.samplerate)}; at most "
            f"{limits.max_seconds:g} s are taken. Say it in one or two sentences."
        )


def _mono(recording: soundfile.SoundFile) -> np.ndarray:
    # Block by block, so that channels are never all in memory. soundfile reads no further than the header says.
    blocks = recording.blocks(_FRAMES_AT_A_TIME, dtype="float32", always_2d=True)
    samples = np.concatenate([np.empty(0, np.float32), *(block.mean(axis=1) for block in blocks)])
    if not samples.size:
        raise UploadRefused("This recording is empty.")
    return samples


def _check_picture(picture: Image.Image, limits: UploadLimits) -> None:
    if picture.width * picture.height > limits.max_megapixels * 1e6:
        raise UploadRefused(_too_many_pixels(limits, f"This picture has {picture.width} x {picture.height} pixels; "))


def _too_many_pixels(limits: UploadLimits, why: str = "This picture has too many pixels: ") -> str:
    return f"{why}at most {limits.max_megapixels:g} megapixels are taken. Make it smaller."


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes"
