"""Where an index takes its items from: a folder tree of files, or a split of a corpus.

A source is read from its beginning at every update, in the same order, and never held in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from ..processing.media import PICTURE_SUFFIXES, RECORDING_SUFFIXES
from .index_place import is_utf8

if TYPE_CHECKING:
    from datasets import Dataset

Modality = Literal["image", "speech"]

SUFFIXES: dict[Modality, frozenset[str]] = {"image": PICTURE_SUFFIXES, "speech": RECORDING_SUFFIXES}
PLURAL: dict[Modality, str] = {"image": "pictures", "speech": "recordings"}
_ROWS_AT_A_TIME = 64


class Item(NamedTuple):
    """A picture or a recording to be indexed.

    Attributes:
        id: unique in the index. source: what it comes from. name: what people call it.
        medium: a path, encoded bytes, or a mapping with either, as the processor reads it.
        fingerprint: another one means that the item changed.
        size: encoded bytes, by which recordings of similar length are put in one batch.
        path: the file, if there is one, from which token states can be recomputed.
    """

    id: str
    source: str
    name: str
    medium: Any
    fingerprint: str
    size: int
    path: str | None = None
    text: str | None = None
    speaker: str | None = None
    language: str | None = None


class Source(Protocol):
    """Items of one modality. `len` is what the progress is measured by.

    Attributes:
        name: the same at every update; rows of that name which are not among the items any more are deleted.
        folder: whose files are the items, with their paths as ids; None where items have ids of their own.
    """

    name: str
    modality: Modality
    folder: Path | None

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Item]: ...

    def left_out(self) -> Counter[str]:
        """How many files of other types lie among the items, by suffix."""


class FolderSource:
    """All pictures, or all recordings, under a folder. Links to folders are not followed, and what is hidden (its name
    begins with a dot) is left alone.

    Raises:
        ValueError: there is no such folder, or its name is not UTF-8. Also when it is counted or read and holds no
            file of that modality: an unmounted disk must not empty an index.
    """

    def __init__(self, folder: str | Path, modality: Modality):
        self.folder, self.modality = Path(folder).resolve(), modality
        self.name = str(self.folder)
        if not self.folder.is_dir():
            raise ValueError(f"There is no folder {folder}.")
        if not is_utf8(self.name):
            shown = self.name.encode(errors="backslashreplace").decode()
            raise ValueError(f"The name of the folder {shown} is not valid UTF-8. Rename it.")

    def __len__(self) -> int:
        count = sum(1 for _ in self._files(self.modality))
        if not count:
            kinds = ", ".join(sorted(SUFFIXES[self.modality]))
            other: Modality = "speech" if self.modality == "image" else "image"
            hint = f" It holds {PLURAL[other]}: --modality {other}" if any(self._files(other)) else ""
            raise ValueError(f"{self.folder} holds no {PLURAL[self.modality]} ({kinds}).{hint}")
        return count

    def __iter__(self) -> Iterator[Item]:
        for path in self._files(self.modality):
            try:
                status = path.stat()
            except OSError:  # deleted since the folder was listed, or a broken link: reading it says so
                fingerprint, size = "missing", 0
            else:
                fingerprint, size = file_fingerprint(status), status.st_size
            name = path.relative_to(self.folder).as_posix()
            yield Item(str(path), self.name, name, path, fingerprint, size, str(path))

    def left_out(self) -> Counter[str]:
        suffixes = Counter(path.suffix.lower() or "without suffix" for path in _files(self.folder))
        return Counter({suffix: suffixes[suffix] for suffix in suffixes if suffix not in SUFFIXES[self.modality]})

    def _files(self, modality: Modality) -> Iterator[Path]:
        return (path for path in _files(self.folder) if path.suffix.lower() in SUFFIXES[modality])


def modality_of(folder: Path) -> Modality:
    """What a folder tree holds, pictures or recordings.

    Raises:
        ValueError: it holds both, or neither.
    """
    suffixes = Counter(path.suffix.lower() for path in _files(folder))
    counts = {modality: sum(suffixes[suffix] for suffix in SUFFIXES[modality]) for modality in SUFFIXES}
    held = [modality for modality, count in counts.items() if count]
    if not held:
        raise ValueError(
            f"{folder} holds neither pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) nor recordings "
            f"({', '.join(sorted(RECORDING_SUFFIXES))})."
        )
    if len(held) > 1:
        raise ValueError(
            f"{folder} holds both: pictures ({counts['image']}) and recordings ({counts['speech']}). An index has one "
            "kind: choose with --modality image or --modality speech."
        )
    return held[0]


def _files(tree: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(tree, onerror=_raise):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _raise(error: OSError) -> None:
    """A folder that cannot be listed must not look empty: its rows would be deleted."""
    raise ValueError(
        f"The folder {error.filename} cannot be listed ({error.strerror}). Nothing was deleted."
    ) from error


class CorpusSource:
    """The distinct pictures, or the recordings, of one split of a corpus.

    A picture has the text of its first caption.

    Args:
        split: rows of :mod:`..corpora.schema`. name: what tells this split from all others, for instance
            `org/name#test`.
    """

    folder = None

    def __init__(self, split: Dataset, name: str, modality: Modality):
        self.name, self.modality = name, modality
        if modality == "image":
            from ..evaluation import distinct_images

            first_rows, _ = distinct_images(split["image_id"][:])
            split = split.remove_columns("audio").select(first_rows)
        else:
            split = split.remove_columns("image")
        self._rows = split

    def __len__(self) -> int:
        return len(self._rows)

    def left_out(self) -> Counter[str]:
        return Counter()

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self._rows), _ROWS_AT_A_TIME):
            columns = self._rows[start : start + _ROWS_AT_A_TIME]
            for values in zip(*columns.values(), strict=True):
                yield self._item(dict(zip(columns, values, strict=True)))

    def _item(self, row: Mapping[str, Any]) -> Item:
        picture = self.modality == "image"
        name = row["image_id" if picture else "caption_id"]
        medium = row["image" if picture else "audio"]
        fingerprint, size = _fingerprint(medium)
        described = json.dumps([row["text"], None if picture else row["speaker"], row["language"]])
        fingerprint += f" {hashlib.blake2b(described.encode(), digest_size=8).hexdigest()}"
        return Item(
            id=f"{self.name}/{name}",
            source=self.name,
            name=name,
            medium=medium,
            fingerprint=fingerprint,
            size=size,
            path=medium["path"] if medium["bytes"] is None else None,
            text=row["text"],
            speaker=None if picture else row["speaker"],
            language=row["language"],
        )


def file_fingerprint(status: os.stat_result) -> str:
    """The fingerprint of an item that is a file."""
    return f"{status.st_size} {status.st_mtime_ns}"


def is_unchanged(path: Path, fingerprint: str) -> bool:
    """Whether a file is there, and as it was when an item was given this fingerprint."""
    try:
        now = file_fingerprint(path.stat())
    except OSError:
        return False
    return fingerprint == now or fingerprint.startswith(f"{now} ")


def _fingerprint(medium: Mapping[str, Any]) -> tuple[str, int]:
    if medium["bytes"] is not None:
        return hashlib.blake2b(medium["bytes"], digest_size=16).hexdigest(), len(medium["bytes"])
    file = Path(medium["path"] or "")
    if not file.is_file():  # reported when it is read
        return "missing", 0
    status = file.stat()
    return file_fingerprint(status), status.st_size
