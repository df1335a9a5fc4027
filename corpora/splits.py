"""Which split a picture is in: Karpathy's split of COCO, and splits drawn by a hash where a corpus has none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from .schema import SpokenCaption

DRAWN_PICTURES = 1000
"""The most pictures that are drawn for validation: as many as the test split of Places has."""

_LARGEST_SHARE = 0.1
_OFFICIAL = Path(__file__).parent / "official_splits"


def karpathy_split(coco_id: int) -> str:
    """The split of a picture of COCO 2014 after Karpathy & Fei-Fei (CVPR 2015), with `restval` as training pictures.

    5,000 pictures each are in `validation` and `test`; every other id is in `train`.
    """
    return next((split for split in ("validation", "test") if coco_id in _karpathy_ids(split)), "train")


def validation_drawn_from(image_ids: Iterable[str]) -> Callable[[str], bool]:
    """Draws validation pictures from the training pictures of a corpus that has none.

    By a hash of the picture's id, the same on every machine: 1,000 pictures, or a tenth of a smaller corpus.

    Args:
        image_ids: of all training pictures, as often as there are captions.

    Returns:
        whether a training picture, by its id, is drawn.
    """
    hashes = sorted({_hash(image_id) for image_id in image_ids})
    count = min(DRAWN_PICTURES, max(int(len(hashes) * _LARGEST_SHARE), 1)) if len(hashes) > 1 else 0
    drawn = frozenset(hashes[:count])
    return lambda image_id: _hash(image_id) in drawn


def with_drawn_validation(
    rows: Iterable[tuple[str, SpokenCaption]], training_image_ids: Iterable[str]
) -> Iterator[tuple[str, SpokenCaption]]:
    """Rows of a corpus whose validation split serves as its test split: some of those for training become validation.

    Args:
        rows: pairs of split and row, in the splits `train` and `test`.
        training_image_ids: of all rows for training, read before the rows are.
    """
    drawn = validation_drawn_from(training_image_ids)
    for split, row in rows:
        yield "validation" if split == "train" and drawn(row["image_id"]) else split, row


def drawn_validation_note(corpus: str) -> str:
    """What a report says of such a corpus."""
    return (
        f"{corpus} has no test split: its val is the test split, and validation is drawn from its train by a hash of "
        f"the picture's id, {DRAWN_PICTURES:,} pictures or a tenth of fewer."
    )


@cache
def _karpathy_ids(split: str) -> frozenset[int]:
    return frozenset(map(int, (_OFFICIAL / f"coco_karpathy_{split}.txt").read_text(encoding="ascii").split()))


def _hash(image_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "big")
