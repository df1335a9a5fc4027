"""From rows of a corpus to batches of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..corpora.schema import CorpusError
from ..evaluation.embedding import encoded_size
from ..processing.media import MediaError
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from .objective import Batch


class SpokenCaptions(torch.utils.data.Dataset):
    """Processed examples of one split, by row number.

    Args:
        cache: keep every processed example in memory as float16, so that media are decoded once.
    """

    def __init__(self, split: Dataset, processor: SpeechImageRetrievalProcessor, cache: bool = False):
        self._split = split
        self._processor = processor
        self._speech: dict[int, dict[str, Tensor]] | None = {} if cache else None
        self._pixels: dict[int, Tensor] | None = {} if cache else None
        names = np.asarray(split.with_format(None)["image_id"][:])
        _, numbers = np.unique(names, return_inverse=True)
        self.image_ids = torch.from_numpy(numbers).long()

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, row: int) -> dict[str, Any]:
        image_id = int(self.image_ids[row])
        speech = self._speech.get(row) if self._speech is not None else None
        pixels = self._pixels.get(image_id) if self._pixels is not None else None
        if speech is None or pixels is None:
            speech, pixels = self._process(row)
            if self._speech is not None:
                self._speech[row] = speech = {name: _half(part) for name, part in speech.items()}
                self._pixels[image_id] = pixels = _half(pixels)
        return {"speech": speech, "pixel_values": pixels, "image_id": image_id, "row": row}

    def speech_bytes(self) -> Tensor:
        """(rows,) int64 size of the encoded speech, which grows with its duration."""
        column = self._split.select_columns(["audio"]).with_format("arrow")
        sizes = []
        for start in range(0, len(column), 1000):
            sizes += map(encoded_size, column[start : start + 1000]["audio"].to_pylist())
        return torch.tensor(sizes)

    def _process(self, row: int) -> tuple[dict[str, Tensor], Tensor]:
        example = self._split[row]
        try:
            features = self._processor(audio=[example["audio"]], images=[example["image"]], return_tensors="pt")
        except MediaError as error:
            raise CorpusError(f"Caption {example['caption_id']!r}: {error}") from error
        pixels = features.pop("pixel_values")[0]
        return {name: part[0] for name, part in features.items()}, pixels


class Collator:
    """Stack examples; speech is padded at its end to the longest, with 0 in the attention mask.

    Args:
        time_axis: which axis of an unbatched speech feature is time.
    """

    def __init__(self, time_axis: int):
        self.time_axis = time_axis

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        speech = {}
        for name in examples[0]["speech"]:
            axis = 0 if name == "attention_mask" else self.time_axis
            parts = [example["speech"][name].movedim(axis, 0) for example in examples]
            padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).movedim(1, axis + 1)
            speech[name] = padded.float() if padded.is_floating_point() else padded
        pixel_values = torch.stack([example["pixel_values"] for example in examples]).float()
        return Batch(
            speech=speech,
            # Convolutions are faster with the channels innermost.
            pixel_values=pixel_values.contiguous(memory_format=torch.channels_last),
            image_ids=torch.tensor([example["image_id"] for example in examples]),
            rows=torch.tensor([example["row"] for example in examples]),
        )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device."""
    return Batch(
        speech={name: part.to(device, non_blocking=True) for name, part in batch.speech.items()},
        pixel_values=batch.pixel_values.to(device, non_blocking=True),
        image_ids=batch.image_ids.to(device, non_blocking=True),
        rows=batch.rows.to(device, non_blocking=True),
    )


def _half(part: Tensor) -> Tensor:
    return part.half() if part.is_floating_point() else part


__all__ = ["Collator", "SpokenCaptions", "to_device"]
