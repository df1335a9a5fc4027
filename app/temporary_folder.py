"""A folder that is gone when its process is: however it ends or, if it was killed, when the next one begins."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "sir-app-"
_LOCK = "lock"
_SECONDS_TO_LOCK = 60


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder, deleted at the end, also by SIGTERM or by a terminal that is closed."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, lambda *_: sys.exit(0))
    _delete_left_behind()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, FileLock(Path(folder, _LOCK)):
        inner = Path(folder, "files")
        inner.mkdir()
        yield inner


def _delete_left_behind() -> None:
    """Delete the folders of killed processes. Who lives holds the lock in theirs: a process id would tell nothing of
    another container."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not _is_own_folder(folder) or not (folder / _LOCK).is_file() or _is_new(folder):
            continue
        try:
            with FileLock(folder / _LOCK, blocking=False):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            continue


def _is_new(folder: Path) -> bool:
    """Whether its owner may be about to take the lock."""
    return time.time() - folder.lstat().st_mtime < _SECONDS_TO_LOCK


def _is_own_folder(path: Path) -> bool:
    try:
        status = path.lstat()  # of a link itself
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid())
