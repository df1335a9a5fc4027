"""Items to rows of an index: threads decode while the model encodes, and what cannot be read is set aside."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor, nn

from ..evaluation.embedding import inference, inputs_for
from ..modeling.token_states import PackedStates
from ..processing.media import load_image, load_speech
from .checksums import COLUMN, row_checksums
from .previews import flac, thumbnail
from .sources import Item, Modality

_PIXELS_AT_ONCE = 16_000_000
_READ_AT_A_TIME = 1 << 20
_BATCHES_SORTED = 8  # recordings among which those of similar length share a batch


class Unreadable(NamedTuple):
    """An item that could not be indexed, and why. `unread`: the disk or the rights failed, not the content."""

    id: str
    reason: str
    unread: bool = False


class EncodedBatch(NamedTuple):
    """Some rows of an index, None if no item was readable, and the items that were not."""

    rows: pa.Table | None
    unreadable: list[Unreadable]


class _Prepared(NamedTuple):
    items: list[Item]
    inputs: Mapping[str, Tensor]
    previews: list[bytes]
    unreadable: list[Unreadable]


def encode_items(
    model: nn.Module,
    processor: Callable[..., Mapping[str, Tensor]],
    items: Iterable[Item],
    schema: pa.Schema,
    modality: Modality,
    *,
    batch_size: int,
    num_workers: int,
) -> Iterator[EncodedBatch]:
    """Encode items batch by batch; pictures stay in order, recordings are sorted by length among neighbours.

    Args:
        schema: columns of the rows; with a column `states`, token states are kept.
        num_workers: threads that decode. At most `num_workers + 2` batches are in memory.

    Raises:
        ValueError: an embedding or a state is not finite.
    """
    pool, waiting = ThreadPoolExecutor(num_workers), deque()
    try:
        for batch in _batches(items, batch_size, modality):
            waiting.append(pool.submit(_prepare, processor, modality, batch))
            if len(waiting) > num_workers + 1:
                yield _encode(model, waiting.popleft().result(), schema, modality)
        while waiting:
            yield _encode(model, waiting.popleft().result(), schema, modality)
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(items: Iterable[Item], batch_size: int, modality: Modality) -> Iterator[list[Item]]:
    if modality == "image":
        yield from _groups(items, batch_size)
        return
    for neighbours in _groups(items, _BATCHES_SORTED * batch_size):
        yield from _groups(sorted(neighbours, key=lambda item: -item.size), batch_size)


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while group := list(islice(remaining, size)):
        yield group


def _prepare(processor: Callable, modality: Modality, items: list[Item]) -> _Prepared | list[Unreadable]:
    try:
        return _Prepared(items, *_inputs(processor, modality, items), [])
    except (ValueError, OSError):  # one of them, so each is tried alone
        failures = [_failure(processor, modality, item) for item in items]
    unreadable = [failure for failure in failures if failure]
    readable = [item for item, failure in zip(items, failures, strict=True) if not failure]
    if not readable:
        return unreadable
    return _Prepared(readable, *_inputs(processor, modality, readable), unreadable)


def _failure(processor: Callable, modality: Modality, item: Item) -> Unreadable | None:
    try:
        _inputs(processor, modality, [item])
    except (ValueError, OSError) as error:
        reason = str(error).removeprefix("audio[0]: ").replace("audio[0]", "The recording")
        return Unreadable(item.id, reason, isinstance(item.medium, Path) and _cannot_be_read(item.medium))
    return None


def _cannot_be_read(file: Path) -> bool:
    try:
        with file.open("rb") as content:
            while content.read(_READ_AT_A_TIME):
                pass
    except FileNotFoundError:  # gone
        return False
    except OSError:
        return True
    return False


def _inputs(processor: Callable, modality: Modality, items: list[Item]) -> tuple[Mapping[str, Tensor], list[bytes]]:
    if modality == "image":
        previews: list[bytes] = []
        parts = []
        for pictures in _loaded(items):
            previews += [thumbnail(picture) for picture in pictures]
            parts.append(processor(images=pictures, return_tensors="pt"))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, previews
    rate = processor.sampling_rate
    clips = [load_speech(item.medium, None, rate) for item in items]
    inputs = processor(audio=clips, sampling_rate=rate, return_tensors="pt")  # first: it refuses what is too long
    return inputs, [flac(clip, rate) for clip in clips]


def _loaded(items: list[Item]) -> Iterator[list[Image.Image]]:
    """Some pictures at a time: a batch of photographs in full resolution would be gigabytes."""
    pictures, pixels = [], 0
    for item in items:
        pictures.append(load_image(item.medium))
        pixels += math.prod(pictures[-1].size)
        if pixels > _PIXELS_AT_ONCE:
            yield pictures
            pictures, pixels = [], 0
    if pictures:
        yield pictures


def _encode(
    model: nn.Module, prepared: _Prepared | list[Unreadable], schema: pa.Schema, modality: Modality
) -> EncodedBatch:
    if isinstance(prepared, list):
        return EncodedBatch(None, prepared)
    embeddings, states = encode_inputs(model, prepared.inputs, modality)
    _refuse_not_finite(embeddings, "embedding", prepared.items)
    columns: dict[str, Any] = {
        name: [getattr(item, name) for item in prepared.items] for name in schema.names if name in Item._fields
    }
    columns["preview"] = prepared.previews
    flat = pa.array(embeddings.numpy().reshape(-1))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    if "states" in schema.names:
        columns["token_count"] = states.lengths.numpy().astype(np.int32)
        columns["states"] = _stored(states, prepared.items)
    columns[COLUMN] = row_checksums(embeddings.numpy(), prepared.previews, columns.get("states"))
    return EncodedBatch(pa.table(columns, schema=schema), prepared.unreadable)


def encode_inputs(model: nn.Module, inputs: Mapping[str, Tensor], modality: Modality) -> tuple[Tensor, PackedStates]:
    """Embeddings (items, projection) float32 and token states of what the processor gave, both on the CPU."""
    with inference(model):
        if modality == "image":
            output = model.get_image_features(**inputs_for(model, inputs))
            mask = torch.ones(output.last_hidden_state.shape[:2], dtype=torch.bool)
        else:
            output = model.get_speech_features(**inputs_for(model, inputs))
            mask = output.attention_mask.cpu()
        states = PackedStates.from_padded(output.last_hidden_state.cpu(), mask)
        return output.pooler_output.float().cpu(), states


def _stored(states: PackedStates, items: list[Item]) -> list[bytes]:
    parts = states.tokens.half().split(states.lengths.tolist())
    for part, item in zip(parts, items, strict=True):
        _refuse_not_finite(part[None], "token states in float16", [item])
    return [part.numpy().tobytes() for part in parts]


def _refuse_not_finite(values: Tensor, what: str, items: list[Item]) -> None:
    finite = values.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        name = items[int((~finite).nonzero()[0])].id
        raise ValueError(
            f"The {what} of {name} is not finite. Look for a diverged checkpoint; if only the states overflow, index "
            "without them."
        )
