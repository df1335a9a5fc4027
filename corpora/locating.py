"""Finds the files and folders of a corpus by their names, wherever they were unpacked."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from .schema import CorpusError

DEPTH = 5
"""How many folders below a source are looked into."""

# What lies below these is not looked through: such folders are slow to list, and metadata lie elsewhere.
_MEDIA_FOLDERS = frozenset(("wav", "wavs", "json", "train2014", "val2014", "train2017", "val2017", "voice-recordings"))
_CROWDED = 1000  # a folder with more entries holds media, too
_TRIES = 1000
_SHOWN = 8


def find_files(sources: Sequence[Path], names: Collection[str]) -> dict[str, Path]:
    """Name -> the file of exactly this name that is nearest to a source; names that are nowhere are left out.

    Raises:
        CorpusError: a source does not exist.
    """
    found: dict[str, Path] = {}
    for folder in walk(sources):
        for name in names:
            if name not in found and (folder / name).is_file():
                found[name] = folder / name
        if len(found) == len(set(names)):
            break
    return {name: found[name] for name in names if name in found}


def find_matching(sources: Sequence[Path], pattern: re.Pattern[str]) -> list[Path]:
    """All files whose whole name matches, nearest to a source first; one of each name.

    Raises:
        CorpusError: a source does not exist.
    """
    found: dict[str, Path] = {}
    for folder in walk(sources):
        for entry in _entries(folder, is_source=folder in sources):
            if pattern.fullmatch(entry.name) and entry.is_file():
                found.setdefault(entry.name, folder / entry.name)
    return list(found.values())


def walk(sources: Sequence[Path]) -> Iterator[Path]:
    """The sources and the folders below them, breadth first, by name on each level.

    Folders of media are given too, but not what is below them. Links are followed; a folder that can be reached in
    two ways is given once.

    Raises:
        CorpusError: a source does not exist.
    """
    for level in _levels(sources):
        yield from level


def nothing_found(corpus: str, sources: Sequence[Path], looked_for: Sequence[str]) -> CorpusError:
    """The error of a reader that recognises nothing: what it looked for, and what lies there instead."""
    lines = [
        f"No {corpus} is found, {DEPTH} folders deep. Looked for:",
        *(f"  {name}" for name in looked_for),
        "Found instead:",
        *(f"  {source}: {_shown(source)}" for source in sources),
    ]
    return CorpusError("\n".join(lines) + "\nGive the folder that holds them, or several folders, with --source.")


class MediaFolders:
    """Where the relative paths of a metadata file begin, which people lay out as they like.

    Paths of one kind that begin with the same folder are relative to the same place: the first of `likely` and then of
    the folders under the sources, nearest first, from which one of these paths leads to a file.

    Raises:
        CorpusError: a source does not exist.
    """

    def __init__(self, sources: Sequence[Path], likely: Sequence[Path] = ()):
        self._candidates = list(dict.fromkeys([*likely, *walk(sources)]))
        self._found: dict[tuple[str, str], Path] = {}
        self._guessed: dict[str, Path] = {}
        self._failed: Counter[tuple[str, str]] = Counter()

    def place(self, relative: str, kind: str = "") -> Path | None:
        """The file's path, whether it is there or not; None as long as no path like it has led to a file."""
        group = (kind, _first_folder(relative))
        # Where all files are missing, the search for them must come to an end.
        if group not in self._found and self._failed[group] < _TRIES:
            base = next((folder for folder in self._candidates if (folder / relative).is_file()), None)
            if base is None:
                self._failed[group] += 1
            else:
                self._found[group] = base
        return self._found[group] / relative if group in self._found else None

    def path(self, relative: str, kind: str = "") -> Path:
        """The same; if no path like it has led to a file, the place where the file is missed."""
        return self.place(relative, kind) or self._guess(_first_folder(relative)) / relative

    def _guess(self, first: str) -> Path:
        if first not in self._guessed:
            holders = (folder for folder in self._candidates if (folder / first).is_dir())
            self._guessed[first] = next(holders, self._candidates[0])
        return self._guessed[first]


def checked_relative(path: str, where: str) -> str:
    """A path of a metadata file, if it stays in the folder that it is relative to.

    Raises:
        CorpusError: it is absolute or goes up.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise CorpusError(
            f"{where}: the path {path!r} leads out of the folder of the corpus. Correct it to a path inside."
        )
    return path


def _first_folder(relative: str) -> str:
    first, slash, _ = relative.partition("/")
    return first if slash else ""


def _levels(sources: Sequence[Path]) -> Iterator[list[Path]]:
    if not sources:
        raise CorpusError("No folder to look in. Give one with --source.")
    for source in sources:
        if not source.is_dir():
            raise CorpusError(f"There is no folder {source}. Give folders that exist with --source.")
    seen: set[Path] = set()
    level = list(sources)
    for depth in range(DEPTH + 1):
        level = [folder for folder in level if not _seen(folder, seen)]
        if not level:
            return
        yield level
        level = [child for folder in level for child in _folders_in(folder, is_source=depth == 0)]


def _seen(folder: Path, seen: set[Path]) -> bool:
    real = folder.resolve()
    known = real in seen
    seen.add(real)
    return known


def _folders_in(folder: Path, is_source: bool) -> list[Path]:
    if folder.name in _MEDIA_FOLDERS and not is_source:
        return []
    return [folder / entry.name for entry in _entries(folder, is_source) if entry.name[0] != "." and entry.is_dir()]


def _entries(folder: Path, is_source: bool) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; nothing where this is too much to be anything but media."""
    try:
        with os.scandir(folder) as found:
            entries = list(found if is_source else islice(found, _CROWDED + 1))
    except PermissionError:
        return []
    return sorted(entries, key=lambda entry: entry.name) if is_source or len(entries) <= _CROWDED else []


def _shown(source: Path) -> str:
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in _entries(source, is_source=True)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "nothing"
