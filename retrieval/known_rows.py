"""Which items a table already holds, in 17 bytes an item whatever their names are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np


class KnownRows:
    """Ids and fingerprints that were stored when an update began, as 64-bit hashes.

    Two ids of a million collide with a probability of 3e-8; one of the two would then be encoded at every update.
    """

    def __init__(self, stored: Iterable[tuple[Sequence[str], Sequence[str]]]):
        """`stored` gives ids and fingerprints of some rows at a time."""
        none = np.empty(0, dtype=np.uint64)
        hashes = [(none, none), *((_hashes(ids), _hashes(fingerprints)) for ids, fingerprints in stored)]
        ids, fingerprints = (np.concatenate(parts) for parts in zip(*hashes, strict=True))
        order = ids.argsort()
        self._ids, self._fingerprints = ids[order], fingerprints[order]
        self._seen = np.zeros(len(order), dtype=bool)

    def see(self, item_id: str, fingerprint: str) -> Literal["new", "changed", "unchanged"]:
        """Note that the source still has an item, and say how it compares with what is stored."""
        place = self._place(item_id)
        if place is None:
            return "new"
        self._seen[place] = True
        return "unchanged" if self._fingerprints[place] == _hash(fingerprint) else "changed"

    def unsee(self, item_id: str) -> None:
        """Treat an item as gone from the source: it is there and cannot be read."""
        place = self._place(item_id)
        if place is not None:
            self._seen[place] = False

    def gone(self, ids: Sequence[str], fingerprints: Sequence[str]) -> list[int]:
        """Places of those rows that were stored just so when the update began and were not seen since."""
        places = [self._place(item_id) for item_id in ids]
        unseen = [at for at, place in enumerate(places) if place is not None and not self._seen[place]]
        return [at for at in unseen if self._fingerprints[places[at]] == _hash(fingerprints[at])]

    def _place(self, item_id: str) -> int | None:
        hashed = np.uint64(_hash(item_id))
        place = int(self._ids.searchsorted(hashed))
        return place if place < len(self._ids) and self._ids[place] == hashed else None


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _hashes(texts: Sequence[str]) -> np.ndarray:
    return np.fromiter((_hash(text) for text in texts), dtype=np.uint64, count=len(texts))
