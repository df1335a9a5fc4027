"""Speech and images from whatever users hold, decoded once and correctly."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps, UnidentifiedImageError

PICTURE_SUFFIXES = frozenset((".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
"""Names of files that are taken for pictures where a folder is searched for them."""

RECORDING_SUFFIXES = frozenset((".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"))
"""The same of recordings."""

# What Pillow's decoders raise on damaged files: AVIF's a RuntimeError, ICNS' a bomb inside.
_UNDECODABLE = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
# A picture of this many pixels needs about 0.5 GB while it is decoded; more is a decompression bomb or a mistake.
MAX_PIXELS = 120_000_000

_QUIETEST = 1e-3  # of full scale, -60 dB: below is a microphone that is muted


class MediaError(ValueError):
    """A recording or a picture that cannot be used; the message says which and why."""


def load_speech(speech: Any, sampling_rate: int | None, target_rate: int) -> np.ndarray:
    """Mono float32 samples at `target_rate`.

    Args:
        speech: a path, encoded bytes, a mapping with `array` and `sampling_rate`, or with `bytes` or `path` (as
            `datasets.Audio(decode=False)` gives), or a numeric array of shape (samples,), (channels, samples) or
            (samples, channels). A tensor counts as an array.
        sampling_rate: rate of bare arrays in Hz; files and mappings know their own.

    Raises:
        MediaError: undecodable, empty, not finite, or an array whose rate is not declared.
    """
    if isinstance(speech, Mapping):
        if speech.get("array") is not None:
            return load_speech(np.asarray(speech["array"]), speech.get("sampling_rate") or sampling_rate, target_rate)
        speech = speech["bytes"] if speech.get("bytes") is not None else speech.get("path")
        if speech is None:
            raise MediaError("The speech mapping has neither 'array', 'bytes' nor 'path'.")
    if isinstance(speech, (str, Path, bytes)):
        samples, sampling_rate, name = _decode(speech)
    else:
        samples, name = np.asarray(speech), "The speech array"
        if samples.dtype.kind not in "fiu":
            raise MediaError(f"{name} must hold numbers, not {samples.dtype}; its shape is {samples.shape}.")
        if sampling_rate is None:
            raise MediaError(f"{name} has no sampling rate. Pass sampling_rate=..., for example sampling_rate=16_000.")
        samples = _as_float(samples)
    if not samples.size:
        raise MediaError(f"{name} holds no samples.")
    samples = _mono(samples, name)
    if not np.isfinite(samples).all():
        raise MediaError(f"{name} has NaN or infinite samples.")
    if sampling_rate <= 0:
        raise MediaError(f"{name} has a sampling rate of {sampling_rate} Hz; it must be positive.")
    if sampling_rate != target_rate:
        samples = soxr.resample(samples, sampling_rate, target_rate)
    return np.ascontiguousarray(samples, dtype=np.float32)


def is_silent(samples: np.ndarray) -> bool:
    """Whether nobody can have said anything in (samples,) float32."""
    return not len(samples) or float(np.abs(samples).max()) < _QUIETEST


def load_image(image: Any) -> Image.Image:
    """An RGB picture, upright, on white where it was transparent.

    Args:
        image: a PIL image, a path, encoded bytes, a mapping with `bytes` or `path` (as
            `datasets.Image(decode=False)` gives), or a (height, width[, 3 or 4]) uint8 array.

    Raises:
        MediaError: undecodable, truncated, or of more than 120 million pixels.
    """
    if isinstance(image, Mapping):
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
        if image is None:
            raise MediaError("The image mapping has neither 'bytes' nor 'path'.")
    if isinstance(image, (str, Path, bytes)):
        return _decode_image(image)
    if isinstance(image, Image.Image):
        return _checked_rgb(image, "The picture")
    array = np.asarray(image)
    if array.dtype != np.uint8 or not array.size or array.shape[2:] not in ((), (3,), (4,)) or array.ndim < 2:
        raise MediaError(f"An image array must be uint8 (height, width[, channels]), not {array.dtype} {array.shape}.")
    return _to_rgb(Image.fromarray(array))


def _decode(source: str | Path | bytes) -> tuple[np.ndarray, int, str]:
    name = f"The recording ({len(source)} bytes)" if isinstance(source, bytes) else f"The recording {source}"
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise MediaError(f"{name} does not exist.")
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        samples, rate = soundfile.read(stream, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise MediaError(f"{name} cannot be decoded as audio: {_reason(error)}") from error
    except MemoryError as error:
        raise MediaError(
            f"{name} needs more memory than there is, or does not say how long it is. Shorten it, or write it again, "
            "to a file and not a pipe."
        ) from error
    except ValueError as error:  # what libsndfile takes an unknown number of samples for
        raise MediaError(f"{name} does not say how long it is. Write it again, to a file and not a pipe.") from error
    return samples, rate, name


def _reason(error: Exception) -> str:
    """What a decoder says, without the file's name."""
    if isinstance(error, UnidentifiedImageError):
        return "no known format"
    if isinstance(error, soundfile.LibsndfileError):
        return error.error_string
    return getattr(error, "strerror", None) or str(error)


def _as_float(samples: np.ndarray) -> np.ndarray:
    """Integers of PCM width to [-1, 1]."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min or -1)


def _mono(samples: np.ndarray, name: str) -> np.ndarray:
    if samples.ndim == 1:
        return samples
    if samples.ndim == 2 and min(samples.shape) <= 32:
        return samples.mean(axis=int(np.argmin(samples.shape)))
    raise MediaError(f"{name} must be one recording of shape (samples,) or (channels, samples), not {samples.shape}.")


def _decode_image(source: str | Path | bytes) -> Image.Image:
    name = f"The picture ({len(source)} bytes)" if isinstance(source, bytes) else f"The picture {source}"
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise MediaError(f"{name} does not exist.")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name} has too many pixels: {error}") from error
    except _UNDECODABLE as error:
        raise MediaError(f"{name} cannot be decoded as an image: {_reason(error)}") from error
    with image:
        return _checked_rgb(image, name)


def _checked_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are accepted.")
    try:
        return _to_rgb(image)
    except _UNDECODABLE as error:
        raise MediaError(f"{name} cannot be decoded as an image: {_reason(error)}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:  # the common case, spared the copies below
        image.load()
        return ImageOps.exif_transpose(image) if image.getexif() else image.copy()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # 16-bit grey: PIL's own conversion clips at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
