"""Rows of a corpus with media made for a test, each different from the others unless a test says so."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import soundfile
from datasets import Dataset
from PIL import Image
from speech_image_retrieval.corpora.schema import Media, SpokenCaption, split_from_rows

RATE = 8000
SPLITS = ("train", "validation", "test")


def picture(number: int, size: tuple[int, int] = (40, 36), encoding: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, encoding)
    return encoded.getvalue()


def recording(number: int, seconds: float = 0.5, peak: float = 0.5, rate: int = RATE, **form: str) -> bytes:
    samples = np.random.default_rng(number).uniform(-peak, peak, max(round(seconds * rate), 1))
    samples[0] = peak
    return encoded_samples(samples, rate, **form)


def encoded_samples(samples: np.ndarray, rate: int = RATE, **form: str) -> bytes:
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, rate, **{"format": "WAV", **form})
    return encoded.getvalue()


def embedded(content: bytes) -> Media:
    return Media(bytes=content, path=None)


def at(path: Path) -> Media:
    return Media(bytes=None, path=str(path))


def file(path: Path, content: bytes) -> Media:
    path.write_bytes(content)
    return at(path)


def row(number: int, split: str = "train", **others) -> SpokenCaption:
    """`number` and `split` decide what is in it; `others` are columns to have otherwise."""
    seed = 1000 * SPLITS.index(split) + number if split in SPLITS else number
    values = {
        "image": embedded(picture(seed)),
        "audio": embedded(recording(seed)),
        "image_id": f"{split}-{number}",
        "caption_id": f"{split}-{number}#0",
        "text": f"caption {number}",
        "speaker": f"speaker {number % 2} of {split}",
        "language": "en",
    }
    return SpokenCaption(**{**values, **others})


def dataset(*rows: SpokenCaption) -> Dataset:
    return split_from_rows(_yield_rows, captions=list(rows))


def sound_corpus(count: int = 4) -> dict[str, Dataset]:
    return {split: dataset(*(row(number, split) for number in range(count))) for split in SPLITS}


def corpus_with(*rows: SpokenCaption, split: str = "train") -> dict[str, Dataset]:
    """A sound corpus, of which a split has these rows besides its first."""
    return {**sound_corpus(1), split: dataset(row(0, split), *rows)}


def parquet_files(splits: Mapping[str, Dataset]) -> dict[str, bytes]:
    """The files of a repository without a dataset card."""
    files = {}
    for name, rows in splits.items():
        content = io.BytesIO()
        rows.to_parquet(content)
        files[f"data/{name}-00000-of-00001.parquet"] = content.getvalue()
    return files


def _yield_rows(captions: Iterable[SpokenCaption]) -> Iterable[SpokenCaption]:
    yield from captions
