"""Pictures and recordings in the small forms that are kept to be looked at and listened to."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from PIL import Image

THUMBNAIL = 256
_FLAC_FRAME = 4096  # samples


def thumbnail(picture: Image.Image, longest_side: int = THUMBNAIL) -> bytes:
    """A JPEG of an RGB picture, its longest side at most so many pixels."""
    small = picture.copy()
    small.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def ogg_opus(clip: np.ndarray, rate: int) -> bytes:
    """(samples,) at `rate` Hz, one of Opus' rates, as Ogg Opus."""
    stream = io.BytesIO()
    soundfile.write(stream, clip.clip(-1, 1), rate, format="OGG", subtype="OPUS")  # Vorbis crashes on long recordings
    return stream.getvalue()


def flac(clip: np.ndarray, rate: int) -> bytes:
    """(samples,) at `rate` Hz as FLAC of 16 bits: lossless, and written a hundred times faster than Opus, which takes
    longer than a small model needs to encode the recording."""
    stream = io.BytesIO()
    level = 0 if len(clip) <= _FLAC_FRAME else None  # with frames of 1,152, for Chromium plays no FLAC of a single one
    soundfile.write(stream, clip.clip(-1, 1), rate, format="FLAC", subtype="PCM_16", compression_level=level)
    return stream.getvalue()
