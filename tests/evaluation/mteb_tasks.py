"""A corpus of noise and pictures, and retrieval tasks on it in the layout that mteb loads from the Hub."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from datasets import Audio, Dataset, Features, Image, Value
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from PIL import Image as Pictures

_CARD = """---
configs:
- {config_name: queries, data_files: [{split: test, path: queries.parquet}]}
- {config_name: corpus, data_files: [{split: test, path: corpus.parquet}]}
- {config_name: qrels, data_files: [{split: test, path: qrels.parquet}]}
---
"""


def noise(seed: int, rate: int) -> bytes:
    """A WAV file of 0.2 to 0.6 s."""
    draw, stream = np.random.default_rng(seed), io.BytesIO()
    soundfile.write(stream, draw.normal(0, 0.1, round(draw.uniform(0.2, 0.6) * rate)), rate, format="WAV")
    return stream.getvalue()


def picture(seed: int) -> bytes:
    """A PNG file."""
    draw, stream = np.random.default_rng(seed), io.BytesIO()
    Pictures.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def corpus_rows(images: int, captions: int) -> list[dict[str, Any]]:
    """Rows for `evaluate_retrieval`; pictures have different numbers of captions, recordings different rates."""
    pictures = [{"bytes": picture(image), "path": None} for image in range(images)]
    shown = [number if number < images else number * number % images for number in range(captions)]
    return [
        {
            "image": pictures[image],
            "audio": {"bytes": noise(number, (16_000, 8_000, 22_050)[number % 3]), "path": None},
            "image_id": f"i{image}",
            "caption_id": f"c{number}",
        }
        for number, image in enumerate(shown)
    ]


def retrieval_task(folder: Path, rows: list[dict[str, Any]], category: str) -> AbsTaskRetrieval:
    """The task "a2i" or "i2a" on these rows, its data in `folder`."""
    sides = {
        "audio": _side("audio", Audio, {row["caption_id"]: row["audio"] for row in rows}),
        "image": _side("image", Image, {row["image_id"]: row["image"] for row in rows}),
    }
    query, document = ("audio", "image") if category == "a2i" else ("image", "audio")
    ids = {"audio": "caption_id", "image": "image_id"}
    qrels = [{"query-id": row[ids[query]], "corpus-id": row[ids[document]], "score": 1} for row in rows]
    folder.mkdir()
    sides[query].to_parquet(folder / "queries.parquet")
    sides[document].to_parquet(folder / "corpus.parquet")
    Dataset.from_list(qrels).to_parquet(folder / "qrels.parquet")
    (folder / "README.md").write_text(_CARD)
    metadata = TaskMetadata(
        name=f"Noise{category.upper()}Retrieval",
        description="Noise and random pictures.",
        dataset={"path": str(folder), "revision": "1"},
        type="Any2AnyRetrieval",
        category=category,
        modalities=["audio", "image"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )
    return type(metadata.name, (AbsTaskRetrieval,), {"metadata": metadata})()


def _side(modality: str, feature: type, items: dict[str, Any]) -> Dataset:
    """With the feature that tasks on the Hub have: rows decode when they are read."""
    encoded = {"bytes": Value("binary"), "path": Value("string")}  # for `Audio` takes rows by torchcodec only
    features = Features({"id": Value("string"), modality: encoded})
    rows = [{"id": name, modality: item} for name, item in items.items()]
    return Dataset.from_list(rows, features=features).cast_column(modality, feature())
