"""Reads JSON metadata one entry at a time; what is wrong with it is told by file, entry and key."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ijson

from .locating import checked_relative
from .schema import CorpusError


class Entry(NamedTuple):
    """A JSON object, and where it stands."""

    where: str
    values: dict[str, Any]

    def text(self, *keys: str) -> str | None:
        """The value under the first of the keys that is there, as text; None if there is none, or an empty one.

        Raises:
            CorpusError: it is neither text nor a whole number.
        """
        key, value = next(((key, self.values[key]) for key in keys if self.values.get(key) is not None), (None, None))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise CorpusError(f"{self.where}: {key!r} should be text, not {value!r:.60}.")
        return str(value) or None

    def required_text(self, *keys: str) -> str:
        """The same for what must be there.

        Raises:
            CorpusError: nothing is there.
        """
        value = self.text(*keys)
        if value is None:
            raise CorpusError(
                f"{self.where}: no {' or '.join(map(repr, keys))}. Its keys: {', '.join(self.values) or 'none'}."
            )
        return value

    def text_that_may_be_empty(self, key: str) -> str | None:
        """The same for what must be there but may have nothing to say.

        Raises:
            CorpusError: the key is not there.
        """
        return self.text(key) if self.values.get(key) == "" else self.required_text(key)

    def relative_path(self, key: str) -> str:
        """A path that must be there and stay in the folder that it is relative to.

        Raises:
            CorpusError: nothing is there, or the path leads elsewhere.
        """
        return checked_relative(self.required_text(key), f"{self.where}: {key!r}")

    def entry(self, key: str) -> Entry:
        """The object under a key.

        Raises:
            CorpusError: no object is there.
        """
        return _entry(self.values.get(key), f"{self.where}: {key!r}")

    def entries(self, key: str) -> list[Entry]:
        """The objects in the list under a key.

        Raises:
            CorpusError: no list of objects is there.
        """
        values = self.values.get(key)
        if not isinstance(values, list):
            raise CorpusError(f"{self.where}: no list {key!r}. Its keys: {', '.join(self.values) or 'none'}.")
        return [_entry(value, f"{self.where}: {key!r}, item {place}") for place, value in enumerate(values, start=1)]


def stream_entries(path: Path, key: str) -> Iterator[Entry]:
    """The objects of the list under a top-level key, read as they are asked for.

    Raises:
        CorpusError: no valid JSON, or nothing in such a list.
    """
    place = 0
    try:
        with _without_mark(path) as file:
            for place, values in enumerate(ijson.items(file, f"{key}.item", use_float=True), start=1):
                yield _entry(values, f"{path}, entry {place} of {key!r}")
    except ijson.JSONError as error:
        raise CorpusError(f"{path}: no valid JSON after entry {place} of {key!r}: {_first_line(error)}.") from None
    if place == 0:
        raise CorpusError(f"{path}: there is no list {key!r} with entries.")


def top_level_text(path: Path, key: str) -> str | None:
    """The text under a top-level key, which may come after long lists; None if there is none.

    Raises:
        CorpusError: no valid JSON.
    """
    try:
        with _without_mark(path) as file:
            value = next(ijson.items(file, key), None)
    except ijson.JSONError as error:
        raise CorpusError(f"{path}: no valid JSON: {_first_line(error)}.") from None
    return value if isinstance(value, str) else None


def json_lines(path: Path) -> Iterator[Entry]:
    """One object a line; empty lines are passed over.

    Raises:
        CorpusError: a line that is no JSON object.
    """
    with _without_mark(path) as file:
        for place, line in enumerate(file, start=1):
            if line.strip():
                yield _parsed(line, f"{path}, line {place}")


def json_file(path: Path) -> Entry:
    """The one object of a small file.

    Raises:
        CorpusError: no JSON object.
    """
    return _parsed(path.read_bytes().removeprefix(codecs.BOM_UTF8), str(path))


@contextmanager
def _without_mark(path: Path) -> Iterator[BinaryIO]:
    """The file behind its byte order mark, which editors on Windows write and JSON does not allow."""
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        yield file


def _parsed(content: bytes, where: str) -> Entry:
    try:
        return _entry(json.loads(content), where)
    except ValueError as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{where}: no valid JSON: {error}.") from None


def _entry(values: Any, where: str) -> Entry:
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"{values!r:.60}"
        raise CorpusError(f"{where} should be an object with keys, not {found}.")
    return Entry(where, values)


def _first_line(error: Exception) -> str:
    message = str(error).strip()
    # ijson passes some messages of its parser on as the text of a bytes literal.
    return message.removeprefix("b'").removeprefix('b"').replace("\\n", "\n").splitlines()[0].strip().rstrip(".")
