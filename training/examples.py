"""From rows of a corpus to batches of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..corpora.schema import CorpusError
from ..evaluation.embedding import encoded_size
from ..processing.media import MediaError, load_image, load_speech
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from .augmentation import ImageAugmentation, SpeechAugmentation
from .frozen_features import FeatureRows, distinct_pictures
from .objective import Batch


class ExampleReader:
    """Decodes and processes one caption's media, in training as the epoch hears and sees them.

    Args:
        crop_seed: for training: speech longer than the processor's `max_seconds` is cropped to that, at a place that
            depends on this seed, :attr:`epoch` and the row. None gives whole clips, which the processor splits.
            Cached features are of whole clips.
        speech_augmentation, image_augmentation: for training, applied to decoded media: to whole clips, so that the
            crop has `max_seconds` whatever became of the clip's duration. Cached features stay as they are.

    Attributes:
        epoch: number of the epoch; set it before the epoch's DataLoader starts its workers.
    """

    def __init__(
        self,
        processor: SpeechImageRetrievalProcessor,
        crop_seed: int | None = None,
        speech_augmentation: SpeechAugmentation | None = None,
        image_augmentation: ImageAugmentation | None = None,
    ):
        self._processor = processor
        self._crop_seed = crop_seed
        self._augment_speech = speech_augmentation
        self._augment_image = image_augmentation
        self.epoch = 0

    def speech(self, row: int, audio: Any) -> tuple[dict[str, Tensor], bool]:
        """What the processor gives for a clip, a row for each of its chunks, and whether other epochs' may differ."""
        if isinstance(audio, Tensor):
            mask = torch.ones(1, len(audio), dtype=torch.long)
            return {"backbone_features": audio[None], "attention_mask": mask}, False
        heard, varies = self._heard(row, audio)
        return dict(self._processor(audio=[heard], return_tensors="pt")), varies

    def image(self, row: int, media: Any) -> tuple[dict[str, Tensor], bool]:
        """What the processor gives for the picture, and whether other epochs' may differ."""
        if isinstance(media, Tensor):
            return {"backbone_features": media}, False
        if self._augment_image is not None:
            media = self._augment_image(load_image(media), self.epoch, row)
        image = self._processor(images=[media], return_tensors="pt")
        return {name: part[0] for name, part in image.items()}, self._augment_image is not None

    def _heard(self, row: int, audio: Any) -> tuple[dict[str, Any], bool]:
        """The clip of this epoch, of a longer one a random part of `max_seconds`, and whether other epochs' differ."""
        rate = self._processor.sampling_rate
        clip = load_speech(audio, None, rate)
        if self._augment_speech is not None:
            clip = self._augment_speech(clip, self.epoch, row)
        spare = 0 if self._crop_seed is None else len(clip) - round(self._processor.max_seconds * rate)
        if spare > 0:
            start = np.random.default_rng((self._crop_seed, self.epoch, row)).integers(spare + 1)
            clip = clip[start : start + len(clip) - spare]
        return {"array": clip, "sampling_rate": rate}, self._augment_speech is not None or spare > 0


class SpokenCaptions(torch.utils.data.Dataset):
    """Processed examples of one split, by row number: `speech` with what the processor gives for one clip (a row for
    each of its chunks), `image` with what it gives for one picture, `image_id` and `row`.

    Args:
        cache: keep every processed example in memory as float16, so that media are decoded once. Cropped clips and
            all media that are augmented are not kept: the next epoch needs others.
    """

    def __init__(self, split: Dataset | FeatureRows, reader: ExampleReader, cache: bool = False):
        self._split = split
        self._media = split.select_columns(["audio", "image"])
        self._reader = reader
        self._cache = cache
        self._speech: dict[int, dict[str, Tensor]] = {}
        self._images: dict[int, dict[str, Tensor]] = {}
        self._pictures = distinct_pictures(split)[0].tolist() if cache else range(len(split))
        names = np.asarray(split["image_id"][:])
        _, numbers = np.unique(names, return_inverse=True)
        self.image_ids = torch.from_numpy(numbers).long()

    def __len__(self) -> int:
        return len(self._split)

    def start_epoch(self, epoch: int) -> None:
        """Have the next batches hear and see what belongs to this epoch."""
        self._reader.epoch = epoch

    def batch_sampler(self, batches: list[list[int]], first: int) -> list[list[int]]:
        """Batches of row numbers, which are all that a DataLoader needs; see :class:`StreamedCaptions`."""
        return batches

    def __getitem__(self, row: int) -> dict[str, Any]:
        picture = self._pictures[row]
        speech, image = self._speech.get(row), self._images.get(picture)
        if speech is None or image is None:
            example = self._media[row]
            try:
                speech = self._load_speech(row, example["audio"]) if speech is None else speech
                image = self._load_image(row, example["image"]) if image is None else image
            except MediaError as error:
                raise CorpusError(f"Caption {self._split[row]['caption_id']!r}: {error}") from error
        return {"speech": speech, "image": image, "image_id": int(self.image_ids[row]), "row": row}

    def speech_sizes(self) -> Tensor:
        """(rows,) int64 size of the speech as it is stored, which grows with its duration."""
        if isinstance(self._split, FeatureRows) and self._split.speech is not None:
            return self._split.speech.lengths
        column = self._split.select_columns(["audio"]).with_format("arrow")
        sizes = []
        for start in range(0, len(column), 1000):
            sizes += map(encoded_size, column[start : start + 1000]["audio"].to_pylist())
        return torch.tensor(sizes)

    def _load_speech(self, row: int, audio: Any) -> dict[str, Tensor]:
        speech, varies = self._reader.speech(row, audio)
        if self._cache and not varies:
            self._speech[row] = speech = {name: _half(part) for name, part in speech.items()}
        return speech

    def _load_image(self, row: int, media: Any) -> dict[str, Tensor]:
        image, varies = self._reader.image(row, media)
        if self._cache and not varies:
            self._images[self._pictures[row]] = image = {name: _half(part) for name, part in image.items()}
        return image


class Collator:
    """Stack examples; speech is padded at its end to the longest, with 0 in the attention mask. Where a clip has
    several chunks, all chunks of all clips are stacked, and `chunk_clips` says whose they are.

    Args:
        time_axis: which axis of an unbatched speech feature is time.
    """

    def __init__(self, time_axis: int):
        self.time_axis = time_axis

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        return Batch(
            speech=self._speech([example["speech"] for example in examples]),
            image=self._images([example["image"] for example in examples]),
            image_ids=torch.tensor([example["image_id"] for example in examples]),
            rows=torch.tensor([example["row"] for example in examples]),
        )

    def _speech(self, clips: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        speech = {}
        for name in clips[0]:
            if name == "chunk_clips":  # of one clip, all 0
                continue
            axis = self.time_axis if name in ("input_values", "input_features") else 0
            chunks = _alike([chunk.movedim(axis, 0) for clip in clips for chunk in clip[name]])
            padded = torch.nn.utils.rnn.pad_sequence(chunks, batch_first=True)
            speech[name] = _single(padded).movedim(1, axis + 1)
        # A clip that was not split has no chunk_clips, and neither has a batch of such clips.
        chunk_counts = torch.tensor([len(clip["attention_mask"]) for clip in clips])
        if chunk_counts.max() > 1:
            speech["chunk_clips"] = torch.arange(len(clips)).repeat_interleave(chunk_counts)
        return speech

    def _images(self, pictures: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        images = {name: _single(torch.stack(_alike([picture[name] for picture in pictures]))) for name in pictures[0]}
        # Convolutions are faster with the channels innermost.
        return {
            name: part.contiguous(memory_format=torch.channels_last) if part.dim() == 4 else part
            for name, part in images.items()
        }


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device."""
    return Batch(
        speech={name: part.to(device, non_blocking=True) for name, part in batch.speech.items()},
        image={name: part.to(device, non_blocking=True) for name, part in batch.image.items()},
        image_ids=batch.image_ids.to(device, non_blocking=True),
        rows=batch.rows.to(device, non_blocking=True),
    )


def _alike(parts: list[Tensor]) -> list[Tensor]:
    """In single precision where a batch mixes cached float16 with float32 that was cropped a moment ago."""
    return parts if len({part.dtype for part in parts}) == 1 else [_single(part) for part in parts]


def _half(part: Tensor) -> Tensor:
    return part.half() if part.is_floating_point() else part


def _single(part: Tensor) -> Tensor:
    return part.float() if part.is_floating_point() else part


__all__ = ["Collator", "ExampleReader", "SpokenCaptions", "to_device"]
