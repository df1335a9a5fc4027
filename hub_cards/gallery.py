"""Writes rows of an index as the gallery that ships with its model."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ..evaluation.reranking import ScoreRule, check_score_rule
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..modeling.shipped_gallery import (
    GALLERY_FOLDERS,
    GALLERY_FORMAT,
    ITEMS_FILE,
    MEDIA_FOLDER,
    PLURAL,
    TENSORS_FILE,
)
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from ..retrieval.index import SpeechImageIndex

MAX_ITEMS = 2000
_SUFFIX = {"image": ".jpg", "speech": ".flac"}


def ship_gallery(
    uri: str, model_folder: str | Path, *, score_rule: ScoreRule = "sim", where: str | None = None
) -> int:
    """Write the index at `uri` to where the pipeline looks for it in an exported model's folder; the options are those
    of :func:`write_gallery`.

    Raises:
        ValueError: also if the index is of another model.
    """
    model = SpeechImageRetrievalModel.from_pretrained(model_folder)
    index = SpeechImageIndex.open(uri, model, SpeechImageRetrievalProcessor.from_pretrained(model_folder))
    folder = Path(model_folder, GALLERY_FOLDERS[index.info.modality])
    return write_gallery(index, folder, score_rule=score_rule, where=where)


def refuse_two_of_a_kind(uris: Sequence[str]) -> None:
    """A model ships one gallery of each modality: of two, the second would replace the first.

    Raises:
        ValueError: two of the indexes are of one modality.
    """
    seen: dict[str, str] = {}
    for uri in uris:
        modality = SpeechImageIndex.open(uri).info.modality
        if modality in seen:
            raise ValueError(
                f"{seen[modality]} and {uri} are both indexes of {PLURAL[modality]}, and a model ships one gallery of "
                "each kind. Add the sources of both to one index: sir index MODEL SOURCE --out INDEX"
            )
        seen[modality] = uri


def write_gallery(
    index: SpeechImageIndex, folder: str | Path, *, score_rule: ScoreRule = "sim", where: str | None = None
) -> int:
    """Write an index as a gallery of plain files, which the pipeline reads without this package.

    What is written can be published: names within their source and texts, but no path of this machine. Token states
    are written if the index keeps them; without, answers are ranked by similarity only.

    Args:
        index: of the model that the gallery ships with; opened with it, it is refused if it is another's.
        folder: `gallery/images` or `gallery/speech` of the model's folder, see
            :data:`..modeling.shipped_gallery.GALLERY_FOLDERS`. Replaced as a whole.
        score_rule: what orders re-ranked answers unless the caller says otherwise: the one chosen on validation.
        where: SQL filter on the index's columns, for a part of it.

    Returns:
        How many items were written.

    Raises:
        ValueError: no row or more than 2,000, two rows of one name, or `folder` holds something else.
    """
    check_score_rule(score_rule)
    folder = Path(folder)
    rows = _rows(index, where)
    if folder.exists() and not (folder / ITEMS_FILE).is_file():
        raise ValueError(f"{folder} exists and is no gallery. Choose another folder, or delete it.")
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / MEDIA_FOLDER).mkdir(parents=True)
    items = []
    for place, row in enumerate(rows):
        file = f"{place:04}{_SUFFIX[index.info.modality]}"
        (partial / MEDIA_FOLDER / file).write_bytes(row["preview"])
        items.append({"id": row["name"], "label": row["text"] or row["name"], "file": file})
    stated = {
        "format": GALLERY_FORMAT,
        "modality": index.info.modality,
        "model": index.info.model_digest,
        "score_rule": score_rule,
        "items": items,
    }
    (partial / ITEMS_FILE).write_text(json.dumps(stated, indent=1, ensure_ascii=False), encoding="utf-8")
    save_file(_tensors(rows, index.info.width), partial / TENSORS_FILE, metadata={"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return len(rows)


def _rows(index: SpeechImageIndex, where: str | None) -> list[dict[str, Any]]:
    """Sorted by name, so that the same index gives the same files."""
    names = [name for batch in index.rows(["name"], where) for name in batch["name"].to_pylist()]
    kind = PLURAL[index.info.modality]
    if not names:
        raise ValueError(f"{index.uri} has no {kind} to ship{'' if where is None else f' where {where}'}.")
    if len(names) > MAX_ITEMS:
        raise ValueError(
            f"{index.uri} has {len(names):,} {kind}; a gallery that ships with a model has at most {MAX_ITEMS:,}. "
            'Give an index of fewer, or select some of them in Python, where write_gallery takes where="source LIKE '
            "'%holiday%'\". A larger one is served from the index itself: sir app."
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} names of {index.uri} are there more than once, the first {twice[0]!r}; answers could not "
            "tell them apart. Give an index of one source, or select one in Python, where write_gallery takes "
            "where=\"source = '...'\"."
        )
    columns = ["name", "text", "preview", "embedding"]
    columns += ["token_count", "states"] if index.info.keep_states else []
    rows = [row for batch in index.rows(columns, where) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: row["name"])


def _tensors(rows: list[dict[str, Any]], width: int) -> dict[str, torch.Tensor]:
    tensors = {"embeddings": torch.tensor([row["embedding"] for row in rows], dtype=torch.float32)}
    if "states" in rows[0]:
        states = np.frombuffer(bytearray().join(row["states"] for row in rows), dtype=np.float16)
        tensors["states"] = torch.from_numpy(states).view(-1, width)
        tensors["lengths"] = torch.tensor([row["token_count"] for row in rows])
    return tensors


__all__ = ["MAX_ITEMS", "refuse_two_of_a_kind", "ship_gallery", "write_gallery"]
