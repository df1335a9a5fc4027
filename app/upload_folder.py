"""The folder that uploaded files are written to, and that none stays in for long."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from os import stat_result
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_SWEPT_EVERY = 60  # seconds
_KEPT = 900  # seconds
_MAX_BYTES = 1_000_000_000
_LEAST_BYTES = 65_536  # that a file counts for, so that many small ones fill the folder too


class UploadFolder:
    """Whatever lies in the folder is an upload, also the half of one whose sender went away."""

    def __init__(self, path: Path):
        self.path = path.resolve()
        self._counting = threading.Lock()
        self._measured = 0  # bytes in the folder when it was last swept
        self._arrived = 0  # bytes since then

    def holds(self, path: Any) -> bool:
        """Whether this, as a stranger gave it, is a path in the folder. Links are followed."""
        if not isinstance(path, str) or "\0" in path:
            return False
        return self.path in Path(path).resolve().parents

    def begin(self) -> bool:
        """Whether there is room for another upload; if so, the least that any counts for is taken."""
        return self.take(_LEAST_BYTES)

    def take(self, size: int) -> bool:
        """Whether there is room for these bytes, which arrive now; if so, they are taken.

        They count until the next sweep, also if their upload comes to nothing.
        """
        with self._counting:
            if self._measured + self._arrived + size > _MAX_BYTES:
                return False
            self._arrived += size
            return True

    def sweep(self) -> None:
        """Delete what is older than 15 minutes, and measure what is left."""
        self._delete_old()
        with self._counting:
            arrived_before = self._arrived
        size = sum(max(status.st_size, _LEAST_BYTES) for _, status in self._entries())
        with self._counting:
            self._measured = size
            self._arrived -= arrived_before

    def _delete_old(self) -> None:
        oldest = time.time() - _KEPT
        for path, status in self._entries():
            if status.st_mtime < oldest:
                try:
                    path.rmdir() if path.is_dir() else path.unlink()
                except OSError:  # a folder with a newer file, or one that is gone already
                    continue

    def keep_swept(self) -> None:
        """Sweep every minute, as long as this process lives."""

        def sweep_for_ever() -> None:
            while True:
                time.sleep(_SWEPT_EVERY)
                try:
                    self.sweep()
                except OSError:
                    _log.exception("Old uploads could not be deleted")

        threading.Thread(target=sweep_for_ever, name="upload sweeper", daemon=True).start()

    def _entries(self) -> Iterator[tuple[Path, stat_result]]:
        # Not rglob, which ends with an error when a folder goes while it looks.
        for folder, subfolders, files in os.walk(self.path, topdown=False):
            for name in (*files, *subfolders):
                path = Path(folder, name)
                try:
                    yield path, path.stat()
                except FileNotFoundError:  # deleted meanwhile
                    continue
