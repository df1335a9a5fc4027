"""A split of a corpus, encoded once: everything that is measured on it starts from here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .embedding import EncodedImages, EncodedSpeech, distinct_images, encode_images, encode_speech


@dataclass(frozen=True)
class EncodedSplit:
    """All captions and the distinct pictures of a split.

    Attributes:
        image_of_caption: (captions,) int64, the place of each caption's picture.
        first_rows: (images,) the row of each picture's first appearance.
    """

    speech: EncodedSpeech
    images: EncodedImages
    image_of_caption: Tensor
    first_rows: Sequence[int]


def encode_split(
    model: nn.Module,
    processor: Callable[..., Mapping[str, Tensor]],
    dataset: Sequence[Mapping[str, Any]],
    *,
    name: str,
    keep_states: bool = True,
    batch_size: int = 64,
    states_dtype: torch.dtype | None = None,
    num_workers: int = 0,
    progress: bool = False,
) -> EncodedSplit:
    """Encode a split; the arguments are those of :func:`.protocol.evaluate_retrieval`, and `name` is for errors.

    Raises:
        ValueError: the split is empty, two rows have the same caption_id, or a recording or a picture cannot be read
            (it is named by its id).
    """
    if len(dataset) == 0:
        raise ValueError(f"{name}: there are no rows to evaluate")
    caption_ids, image_ids = list(Column(dataset, "caption_id")), list(Column(dataset, "image_id"))
    _check_caption_ids(caption_ids, name)
    first_rows, image_of_caption = distinct_images(image_ids)
    gallery_ids = [image_ids[row] for row in first_rows]
    options = {
        "batch_size": batch_size,
        "keep_states": keep_states,
        "states_dtype": states_dtype,
        "num_workers": num_workers,
        "progress": progress,
    }
    return EncodedSplit(
        encode_speech(model, processor, Column(dataset, "audio"), names=caption_ids, **options),
        encode_images(model, processor, Column(dataset, "image", first_rows), names=gallery_ids, **options),
        image_of_caption,
        first_rows,
    )


class Column(Sequence):
    """One column of a dataset, read row by row: an audio column must not decode its images, nor fill the memory."""

    def __init__(self, dataset: Sequence[Mapping[str, Any]], name: str, rows: Sequence[int] | None = None):
        self._dataset = dataset.select_columns([name]) if hasattr(dataset, "select_columns") else dataset
        self._name = name
        self._rows = range(len(dataset)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._rows[index]][self._name]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def _check_caption_ids(caption_ids: Sequence[str], where: str) -> None:
    caption_id, count = Counter(caption_ids).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{where}: caption_id {caption_id!r} occurs {count} times. A caption that is in the gallery twice "
            "changes every rank: remove the duplicates."
        )
