"""Tables as Kaldi has them: lines of a key, white space, and a value."""

from __future__ import annotations

import hashlib
import mmap
from array import array
from pathlib import Path

import numpy as np

from .schema import CorpusError


class KaldiTable:
    """The values of a table by their keys, in any order of lines. They stay on disk; 16 bytes a line are in memory.

    Raises:
        CorpusError: the file is empty.
    """

    def __init__(self, path: Path):
        self._path = path
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise CorpusError(f"{path} is empty.")
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        digests, starts = array("Q"), array("Q")
        start = 0
        for line in iter(self._content.readline, b""):
            if fields := line.split(maxsplit=1):
                digests.append(_digest(fields[0]))
                starts.append(start)
            start += len(line)
        order = np.argsort(np.asarray(digests, dtype=np.uint64), kind="stable")
        self._digests = np.asarray(digests, dtype=np.uint64)[order]
        self._starts = np.asarray(starts, dtype=np.uint64)[order]

    def get(self, key: str) -> str | None:
        """The value of a key; None if the key is not there or has no value."""
        place = np.searchsorted(self._digests, np.uint64(_digest(key.encode())))
        if place == len(self._starts):
            return None
        self._content.seek(int(self._starts[place]))
        fields = self._content.readline().decode("utf-8", "replace").split(maxsplit=1)
        return fields[1].strip() if fields[0] == key and len(fields) == 2 else None

    def required(self, key: str) -> str:
        """The value of a key that must be there.

        Raises:
            CorpusError: it is not.
        """
        value = self.get(key)
        if value is None:
            raise CorpusError(f"{self._path} has no value for {key}.")
        return value


def _digest(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
