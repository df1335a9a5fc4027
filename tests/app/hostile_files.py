"""Files that a stranger may send: small on the wire, large or broken when they are opened."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import soundfile

RATE = 16_000


def recording(seconds: float, file_format: str = "WAV", loudness: float = 0.1) -> bytes:
    stream = io.BytesIO()
    samples = np.random.default_rng(0).normal(0, loudness, round(seconds * RATE)).astype(np.float32)
    soundfile.write(stream, samples, RATE, format=file_format)
    return stream.getvalue()


def long_silence(seconds: int = 7200, file_format: str = "FLAC") -> bytes:
    """0.4 MB of FLAC are two hours."""
    stream = io.BytesIO()
    subtype = "OPUS" if file_format == "OGG" else None
    soundfile.write(stream, np.zeros(seconds * RATE, dtype=np.float32), RATE, format=file_format, subtype=subtype)
    return stream.getvalue()


def lying_mp3(seconds: int, frames_said: int) -> bytes:
    """An MP3 whose header says that it has fewer frames than follow."""
    encoded = bytearray(recording(seconds, "MP3"))
    header = encoded.index(b"Xing")
    encoded[header + 8 : header + 12] = frames_said.to_bytes(4, "big")
    return bytes(encoded)


def bomb_png(width: int = 12_000, height: int = 12_000) -> bytes:
    """A white picture of 144 megapixels in 0.02 MB: grey, one bit a pixel, every row the same."""
    rows = zlib.compress((b"\0" + b"\xff" * (width // 8)) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
