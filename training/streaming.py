"""Training rows as they arrive from the Hub, for corpora that are not to be built or stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from datasets import IterableDataset

from ..corpora.schema import CorpusError
from ..processing.media import MediaError
from .examples import ExampleReader

# Rows among which the next one is drawn, beside the order of the shards. Captions of a picture lie together on the
# Hub, and a batch of few pictures has few negatives. Rows wait encoded: about 300 kB each with a photograph.
SHUFFLED_ROWS = 2000


class StreamedCaptions(torch.utils.data.Dataset):
    """Processed examples like those of :class:`~.examples.SpokenCaptions`, but of rows that are read in the order in
    which they come. A "row number" that the DataLoader hands to its workers is here the encoded row itself.

    `image_id` and `row` are hashes of the row's image_id and caption_id.

    Args:
        stream: rows with undecoded media.
        rows: how many it has.
        seed: of the order, which depends on the epoch too.
    """

    def __init__(self, stream: IterableDataset, rows: int, reader: ExampleReader, seed: int):
        self._stream = stream.shuffle(seed=seed, buffer_size=SHUFFLED_ROWS)
        self._rows = rows
        self._reader = reader

    def __len__(self) -> int:
        return self._rows

    def start_epoch(self, epoch: int) -> None:
        """Have the next batches be those of this epoch, in its order."""
        self._reader.epoch = epoch
        self._stream.set_epoch(epoch)

    def batch_sampler(self, batches: list[list[int]], first: int) -> Iterator[list[dict[str, Any]]]:
        """Batches of rows as large as those that are given, from the epoch's row `first` on; rows before it are read
        and dropped.

        Raises:
            CorpusError: the stream ends before the number of rows that the dataset states.
        """
        rows = islice(iter(self._stream), first, None)
        for numbers in batches:
            batch = list(islice(rows, len(numbers)))
            if len(batch) < len(numbers):
                raise CorpusError(f"The stream ended early: the dataset states {self._rows} rows and has fewer.")
            yield batch

    def __getitem__(self, example: dict[str, Any]) -> dict[str, Any]:
        row = _number(example["caption_id"])
        try:
            speech, _ = self._reader.speech(row, example["audio"])
            image, _ = self._reader.image(row, example["image"])
        except MediaError as error:
            raise CorpusError(f"Caption {example['caption_id']!r}: {error}") from error
        return {"speech": speech, "image": image, "image_id": _number(example["image_id"]), "row": row}


def _number(name: str) -> int:
    """63 bits, so that it is an int64 and not negative, as -1 marks what is empty in the queue."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


__all__ = ["StreamedCaptions"]
