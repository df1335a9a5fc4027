"""Encode every spoken caption and every picture of a gallery once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..modeling.token_states import PackedStates, join
from .sharing import of_all_processes, own_share


@dataclass(frozen=True)
class EncodedSpeech:
    """Spoken captions on the CPU, in the order they were given.

    Attributes:
        embeddings: (captions, projection) float32, unit length.
        states: the token states for re-ranking; None if they were not kept.
    """

    embeddings: Tensor
    states: PackedStates | None = None


@dataclass(frozen=True)
class EncodedImages:
    """Pictures on the CPU, in the order they were given.

    Attributes:
        embeddings: (images, projection) float32, unit length.
        states: (images, tokens, width) for re-ranking; None if they were not kept.
    """

    embeddings: Tensor
    states: Tensor | None = None


def encode_speech(
    model: nn.Module,
    processor: Callable[..., Mapping[str, Tensor]],
    audio: Sequence[Any],
    *,
    batch_size: int = 64,
    lengths: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    keep_states: bool = True,
    states_dtype: torch.dtype | None = None,
    num_workers: int = 0,
    progress: bool = False,
) -> EncodedSpeech:
    """Encode clips in batches of similar length, which saves padding; the longest go first, so that a batch that does
    not fit in memory is the first one.

    Args:
        model: its `get_speech_features` gives `pooler_output`, `last_hidden_state` and `attention_mask`.
        processor: called with `audio=[...], return_tensors="pt"`.
        audio: whatever the processor reads; taken one by one, so a lazy sequence is not held in memory.
        lengths: one per clip, in any unit. Without it the encoded size stands in for the duration.
        names: what errors call the clips, for instance their caption_id; without it their places in `audio`.
        keep_states: keep the token states, which re-ranking needs.
        states_dtype: what to keep them in; None keeps the type they come in.
        num_workers: processes that decode while the model computes.

    Raises:
        ValueError: there is no clip, a clip cannot be read or has no valid frame, or there are more or fewer lengths
            than clips.
    """
    if lengths is not None and len(lengths) != len(audio):
        raise ValueError(f"{len(lengths)} lengths were given for {len(audio)} clips")
    sizes = torch.tensor([encoded_size(clip) for clip in audio] if lengths is None else list(lengths))
    order = sizes.argsort(descending=True, stable=True)
    named = _Named(audio, names)
    batches = _batches(named, order, batch_size, partial(read_batch, processor, "audio"), num_workers)
    encoded = []
    with inference(model):
        for inputs in track(batches, "Encoding speech", disable=not progress):
            output = model.get_speech_features(**inputs_for(model, inputs))
            part = [output.pooler_output.float().cpu()]
            if keep_states:
                valid = output.attention_mask.bool()
                part += [output.last_hidden_state[valid].to("cpu", states_dtype), valid.sum(dim=1).cpu()]
            encoded.append(part)
    embeddings, *states_and_lengths = map(join, _columns(of_all_processes(encoded)))
    given_order = order.argsort()
    if not keep_states:
        return EncodedSpeech(embeddings[given_order])
    states = PackedStates.from_tokens(*states_and_lengths).select(given_order)
    if not states.lengths.all():
        name = named.name(int((states.lengths == 0).nonzero()[0]))
        raise ValueError(f"audio {name} has no valid frame left after the speech encoder: it is empty or too short")
    return EncodedSpeech(embeddings[given_order], states)


def encode_images(
    model: nn.Module,
    processor: Callable[..., Mapping[str, Tensor]],
    images: Sequence[Any],
    *,
    batch_size: int = 64,
    names: Sequence[str] | None = None,
    keep_states: bool = True,
    states_dtype: torch.dtype | None = None,
    num_workers: int = 0,
    progress: bool = False,
) -> EncodedImages:
    """Encode pictures in the order given; the arguments are those of :func:`encode_speech`.

    For a gallery, give each distinct picture once (:func:`distinct_images`).
    """
    order = torch.arange(len(images))
    batches = _batches(_Named(images, names), order, batch_size, partial(read_batch, processor, "images"), num_workers)
    encoded = []
    with inference(model):
        for inputs in track(batches, "Encoding pictures", disable=not progress):
            output = model.get_image_features(**inputs_for(model, inputs))
            part = [output.pooler_output.float().cpu()]
            if keep_states:
                part.append(output.last_hidden_state.to("cpu", states_dtype))
            encoded.append(part)
    return EncodedImages(*map(join, _columns(of_all_processes(encoded))))


def distinct_images(image_ids: Sequence[str]) -> tuple[list[int], Tensor]:
    """The gallery behind rows that repeat their pictures, in the order of first appearance.

    Returns:
        The row of each distinct picture's first appearance, and (rows,) int64, the place of every row's picture in
        that list.
    """
    place: dict[str, int] = {}
    first_rows = []
    for row, image_id in enumerate(image_ids):
        if image_id not in place:
            place[image_id] = len(place)
            first_rows.append(row)
    return first_rows, torch.tensor([place[image_id] for image_id in image_ids], dtype=torch.int64)


def encoded_size(clip: Any) -> int:
    """Bytes of an encoded clip (a media dictionary or a path), samples of a decoded one."""
    if isinstance(clip, str | Path):
        return Path(clip).stat().st_size
    if not isinstance(clip, Mapping):
        return len(clip)
    if clip.get("array") is not None:
        return len(clip["array"])
    if clip.get("bytes") is not None:
        return len(clip["bytes"])
    if clip.get("path") is not None:
        return Path(clip["path"]).stat().st_size
    raise ValueError(f"a clip needs 'bytes', 'path' or 'array'; this one has {sorted(clip)}, and none of them is set")


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without autograd; afterwards every submodule is back in the mode it was in (a frozen backbone
    may have been in evaluation mode while the rest was training)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


class _Named(Sequence):
    """Items with what errors call them."""

    def __init__(self, items: Sequence[Any], names: Sequence[str] | None):
        self._items, self._names = items, names

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[str, Any]:
        return self.name(index), self._items[index]

    def name(self, index: int) -> str:
        return str(index) if self._names is None else repr(self._names[index])


def _batches(
    items: _Named,
    order: Tensor,
    batch_size: int,
    read: Callable[[list[tuple[str, Any]]], Mapping[str, Tensor]],
    num_workers: int,
) -> DataLoader:
    if len(items) == 0:
        raise ValueError("there is nothing to encode")
    return DataLoader(
        items,
        batch_sampler=own_share([rows.tolist() for rows in order.split(batch_size)]),
        collate_fn=read,
        num_workers=num_workers,
        generator=torch.Generator(),  # a loader draws a seed; the global generator belongs to the training around us
    )


def _columns(parts: list[list[Tensor]]) -> list[list[Tensor]]:
    """Of each column the parts, emptied out of their rows: `join` frees them one by one."""
    columns = [list(column) for column in zip(*parts, strict=True)]
    parts.clear()
    return columns


def read_batch(
    processor: Callable[..., Mapping[str, Tensor]], modality: str, batch: list[tuple[str, Any]]
) -> Mapping[str, Tensor]:
    """Model inputs of named items; `modality` is the processor's argument, `audio` or `images`.

    Raises:
        ValueError: an item cannot be read; the message has its name.
    """
    try:
        return processor(**{modality: [item for _, item in batch]}, return_tensors="pt")
    except ValueError:
        for name, item in batch:  # the processor knows places in a sorted batch, which would lead nobody to the item
            try:
                processor(**{modality: [item]}, return_tensors="pt")
            except ValueError as error:
                said = str(error).removeprefix(f"{modality}[0]: ")
                names_itself = isinstance(item, str | Path) and str(item) in said
                raise ValueError(said if names_itself else f"{modality} {name}: {said}") from error
        raise


def inputs_for(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs where the model is, floating-point ones in its type."""
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }
