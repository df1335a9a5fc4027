"""The pools that the literature reports its figures on. A figure on another pool can be compared with none of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, NamedTuple


class StandardPool(NamedTuple):
    """Where a split of a corpus is whole, and in how many folds figures are averaged."""

    name: str
    corpus: str
    split: str
    images: int
    captions: int
    folds: int = 1


STANDARD_POOLS = (
    StandardPool("Flickr8k Audio, 1,000 x 5,000", "flickr8k_audio", "test", 1_000, 5_000),
    StandardPool("SpokenCOCO 5k, 5,000 x 25,031", "spoken_coco", "test", 5_000, 25_031),
    StandardPool("SpokenCOCO 1k, mean of 5 folds of 1,000 x 5,000", "spoken_coco", "test", 5_000, 25_031, folds=5),
    StandardPool("Places Audio, 1,000 x 1,000", "places_audio", "test", 1_000, 1_000),
    StandardPool("Places Audio unseen, 1,000 x 1,000", "places_audio", "test_unseen", 1_000, 1_000),
)


def describe_pool(corpus: str, split: str, images: int, captions: int, folds: int = 1) -> dict[str, Any]:
    """Whether a pool is one of the literature's.

    Args:
        corpus: as :func:`corpus_called` reads it.
        images, captions: of the whole split, over all folds.

    Returns:
        `standard`, and the pool's `name` if it is, else the `reason` why not.
    """
    known = corpus_called(corpus, {pool.corpus for pool in STANDARD_POOLS})
    of_corpus = [pool for pool in STANDARD_POOLS if pool.corpus == known]
    here = (split, images, captions, folds)
    for pool in of_corpus:
        if here == (pool.split, pool.images, pool.captions, pool.folds):
            return {"standard": True, "name": pool.name}
    if not of_corpus:
        return {"standard": False, "reason": f"the literature has no pool of {corpus_name(corpus)}"}
    expected = " or ".join(_stated(pool) for pool in of_corpus)
    in_folds = "" if folds == 1 else f" in {folds} folds"
    return {
        "standard": False,
        "reason": f"the literature's is {expected}; this is split {split}, {images:,} x {captions:,}{in_folds}",
    }


def corpus_called(name: str, known: Iterable[str]) -> str | None:
    """Which of the `known` corpora is meant by a name, a folder such as `outputs/spoken_coco/corpus` or a Hub id such
    as `org/SpokenCOCO`: the one that a part of it is called after, the last such part, whatever its case and
    hyphens."""
    called = {_plain(corpus): corpus for corpus in known}
    return next((called[_plain(part)] for part in reversed(PurePath(name).parts) if _plain(part) in called), None)


def corpus_name(corpus: str) -> str:
    """What to call a corpus given as a name, a folder or a Hub id: the last part, or the one before it where that is
    just `corpus`, as in `outputs/NAME/corpus`."""
    path = PurePath(corpus)
    return path.parent.name or path.name if path.name == "corpus" else path.name


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold()


def _stated(pool: StandardPool) -> str:
    in_folds = "" if pool.folds == 1 else f" in {pool.folds} folds"
    return f"split {pool.split}, {pool.images:,} x {pool.captions:,}{in_folds}"
