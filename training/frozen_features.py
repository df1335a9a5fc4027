"""Frozen backbones run once over a corpus: afterwards their hidden states stand in for recordings and pictures.

What comes before a backbone's last hidden state cannot act on features that are read from a cache: random crops and
masking inside the backbone are left out, augmentation of waveforms or pixels is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from torch import Tensor, nn
from transformers import BatchFeature

from ..corpora.schema import CorpusError
from ..evaluation.digest import weights_digest
from ..evaluation.embedding import encoded_size, inference, inputs_for, read_batch
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from .arguments import ArgumentError
from .feature_cache import FeatureCache, filled_cache, missing_rows
from .momentum import is_frozen

FORMAT = 2  # of what a cache holds; raise it when the same key would give other features

# What a configuration says of its checkpoint and not of the model.
_NO_ARCHITECTURE = ("_name_or_path", "architectures", "dtype", "transformers_version")
# What acts in training only, and a frozen backbone runs in evaluation mode.
_TRAINING_ONLY = re.compile("dropout|layerdrop|drop_path|^mask_|^apply_spec_augment$")
_BATCH = 64
_PROBED = 16  # rows whose features tell how large all will be
_SLICE = 256  # rows of media that are held at once to be hashed


class FeatureRows(Sequence):
    """A split whose `audio` or `image` are features where these are cached; all else is the split's.

    Args:
        speech: (tokens, layers, width) features by row. images: by picture. None leaves the media.
        pictures: (rows,) int64, the picture of each row.
    """

    def __init__(self, split: Dataset, speech: FeatureCache | None, images: FeatureCache | None, pictures: Tensor):
        self.column_names = split.column_names
        cached = {"audio": speech, "image": images}
        self._cached = {name: cache for name, cache in cached.items() if cache and name in self.column_names}
        self.speech = speech
        self._pictures = pictures
        self._split = split
        self._rest = split.remove_columns(list(self._cached))

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, row: int | str) -> Any:
        """A row, or a column that is not cached."""
        if isinstance(row, str):
            return self._rest[row]
        example = dict(self._rest[row]) if self._rest.column_names else {}
        for name, cache in self._cached.items():
            example[name] = cache[row if name == "audio" else int(self._pictures[row])]
        return example

    def select_columns(self, names: list[str]) -> FeatureRows:
        """The same rows with fewer columns."""
        cached = self._cached
        return FeatureRows(self._split.select_columns(names), cached.get("audio"), cached.get("image"), self._pictures)


class FeatureProcessor:
    """A processor that also takes features from a cache, and gives what the model takes as `backbone_features`."""

    def __init__(self, processor: SpeechImageRetrievalProcessor):
        self._processor = processor

    def __call__(
        self, audio: list[Any] | None = None, images: list[Any] | None = None, return_tensors: str = "pt"
    ) -> BatchFeature:
        if audio is not None and isinstance(audio[0], Tensor):
            lengths = torch.tensor([len(features) for features in audio])
            mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
            padded = nn.utils.rnn.pad_sequence(audio, batch_first=True).float()
            return BatchFeature({"backbone_features": padded, "attention_mask": mask})
        if images is not None and isinstance(images[0], Tensor):
            return BatchFeature({"backbone_features": torch.stack(images).float()})
        return self._processor(audio=audio, images=images, return_tensors=return_tensors)


def distinct_pictures(split: Dataset) -> tuple[Tensor, list[int]]:
    """Which picture every row shows, by path or content, and the row where each picture is first shown.

    Returns:
        (rows,) int64 numbers of pictures in the order of their first rows, and those rows.
    """
    pictures, first_rows = _distinct(_identities(split, "image"))
    return pictures, list(first_rows.values())


def _distinct(identities: Iterable[str]) -> tuple[Tensor, dict[str, int]]:
    """(rows,) int64 numbers of what is distinct, in order, and the first row of each."""
    first_rows: dict[str, int] = {}
    numbers: dict[str, int] = {}
    of_row = []
    for row, identity in enumerate(identities):
        first_rows.setdefault(identity, row)
        of_row.append(numbers.setdefault(identity, len(numbers)))
    return torch.tensor(of_row), first_rows


def _identities(split: Dataset, column: str) -> Iterator[str]:
    """By row, a digest of the medium's bytes; of a file path, size and time."""
    for rows in split.select_columns([column]).iter(_SLICE):
        for medium in rows[column]:
            if medium["bytes"] is not None:
                yield hashlib.blake2b(medium["bytes"]).hexdigest()
                continue
            file = Path(medium["path"] or "")
            status = file.stat() if file.is_file() else None  # a missing file is reported when it is read
            yield f"{medium['path']} {status and (status.st_size, status.st_mtime_ns)}"


def cached_rows(
    model: SpeechImageRetrievalModel,
    processor: SpeechImageRetrievalProcessor,
    split: Dataset,
    name: str,
    corpus: str | Path,
    *,
    precision: str,
    autocast: Callable[[], AbstractContextManager],
) -> FeatureRows:
    """The rows of a split with features in place of the media of each frozen backbone, computed where missing.

    They are kept beside the corpus, in `CORPUS.features/`, in a folder for each split and backbone that is named by a
    digest of weights, preprocessing and media, and found again by every run whose backbone and media are the same.

    Args:
        name: of the split. corpus: the corpus' folder.
        precision: what `autocast` computes in; part of the digest.

    Raises:
        ArgumentError: neither backbone is frozen, a cache is damaged, or the disk lacks the space for it.
        CorpusError: a recording or a picture cannot be used.
    """
    pictures, first_rows = _distinct(_identities(split, "image"))
    settings = processor.to_dict()
    sides = {
        "audio": _Side(
            model.speech_backbone,
            split.select_columns(["audio", "caption_id"]),
            {
                "preprocessing": _plain({name: settings[name] for name in settings if name != "image_processor"}),
                "layers": model.speech_layers,
                "pooling": model.config.speech_pooling,
            },
            partial(_encode_speech, model),
        ),
        "image": _Side(
            model.vision_backbone,
            split.select_columns(["image", "caption_id"]).select(list(first_rows.values())),
            {
                "preprocessing": _plain(settings["image_processor"]),
                "layer": model.config.vision_feature_layer,
            },
            partial(_encode_images, model),
        ),
    }
    folder = Path(corpus).absolute()
    folder = folder.with_name(f"{folder.name}.features")
    caches = {}
    for column, side in sides.items():
        if is_frozen(side.backbone):
            key = {"format": FORMAT, "split": name, "media": column, "precision": precision, **side.key()}
            key["corpus"] = _digest(first_rows if column == "image" else _identities(split, column))
            with inference(model):
                caches[column] = _filled(folder, key, side, processor, column, autocast)
    if not caches:
        raise ArgumentError(
            "feature_cache keeps what frozen backbones see and hear, and none is frozen: set "
            "trainable_speech_layers=0 or trainable_vision_layers=0, or feature_cache=false."
        )
    return FeatureRows(split, caches.get("audio"), caches.get("image"), pictures)


@dataclass
class _Side:
    """One backbone: its media with the captions that name them, and how they become features."""

    backbone: nn.Module
    media: Dataset
    settings: dict[str, Any]
    encode: Callable[[dict[str, Tensor]], list[Tensor]]

    def key(self) -> dict[str, Any]:
        config = self.backbone.config.to_dict()
        return {
            "backbone": _architecture(_plain(config)),
            "weights": weights_digest(self.backbone.state_dict().items()),
            **self.settings,
        }


def _filled(
    folder: Path,
    key: dict[str, Any],
    side: _Side,
    processor: SpeechImageRetrievalProcessor,
    column: str,
    autocast: Callable[[], AbstractContextManager],
) -> FeatureCache:
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()
    folder = folder / f"{key['split']}-{column}-{digest}"
    missing = sum(map(len, missing_rows(folder, len(side.media))))

    def batches(rows: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        examples = side.media[rows]
        named = list(zip(map(repr, examples["caption_id"]), examples[column], strict=True))
        # Clips of similar length share a batch: less padding.
        order = sorted(range(len(named)), key=lambda place: -encoded_size(named[place][1]))
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            modality = "audio" if column == "audio" else "images"
            try:
                inputs = read_batch(processor, modality, [named[place] for place in places])
            except ValueError as error:
                raise CorpusError(str(error)) from error
            with autocast():  # not around the processor, which computes spectrograms
                yield dict(zip((rows[place] for place in places), side.encode(inputs), strict=True))

    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{column} features, {key['split']}", total=missing, visible=missing > 0)
        row_bytes = 0.0
        if missing:
            row_bytes = _row_bytes(batches(range(0, len(side.media), -(-len(side.media) // _PROBED))))
            size = _gigabytes(row_bytes * missing)
            what = f"{column} features, {key['split']}: about {size} in {folder}"
            _require_space(folder, row_bytes * missing, what)
            progress.console.print(what, soft_wrap=True, highlight=False, markup=False)

        def compute(rows: range) -> Iterator[dict[int, Tensor]]:
            for batch in batches(rows):
                yield batch
                progress.advance(task, len(batch))

        return filled_cache(folder, key, len(side.media), compute, row_bytes)


def _row_bytes(batches: Iterable[dict[int, Tensor]]) -> float:
    sizes = [2 * tensor.numel() for batch in batches for tensor in batch.values()]
    return sum(sizes) / len(sizes)


def _require_space(folder: Path, size: float, what: str) -> None:
    there = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise ArgumentError(
            f"{what}, where {_gigabytes(free)} are free. Make room (old folders beside it can be removed), raise "
            "model.speech_pooling, or set feature_cache=false."
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _encode_speech(model: SpeechImageRetrievalModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    features, mask = model.get_speech_backbone_features(**inputs_for(model, inputs))
    return [clip[valid].to("cpu", torch.bfloat16) for clip, valid in zip(features, mask, strict=True)]


def _encode_images(model: SpeechImageRetrievalModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    return list(model.get_image_backbone_features(**inputs_for(model, inputs)).to("cpu", torch.bfloat16).clone())


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what does not change the features of a frozen backbone."""
    return {
        name: _architecture(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in _NO_ARCHITECTURE and not _TRAINING_ONLY.search(name)
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON, without what an export adds to say where its code is."""
    return json.loads(json.dumps(values, default=str), object_hook=_without_code)


def _without_code(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "auto_map"}


def _digest(identities: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for identity in identities:
        digest.update(f"{identity}\n".encode())
    return digest.hexdigest()


__all__ = ["FeatureProcessor", "FeatureRows", "cached_rows", "distinct_pictures"]
