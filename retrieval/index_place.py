"""Where an index lies, and whether one lies there; without LanceDB, so that the shell can ask."""

from __future__ import annotations

from pathlib import Path

TABLE = "items"
_LOCAL = "file://"


def local_folder(uri: str) -> Path | None:
    """The folder of an address; None for object storage or a server. LanceDB takes `file://` literally, so %20 is no
    space."""
    if uri.startswith(_LOCAL):
        return Path(uri.removeprefix(_LOCAL))
    return None if "://" in uri else Path(uri)


def is_utf8(name: str) -> bool:
    """Whether LanceDB can store a name, which files of a Unix system need not have."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_not_utf8(uri: str) -> None:
    """
    Raises:
        ValueError: no index can lie there.
    """
    if not is_utf8(uri):
        shown = uri.encode(errors="backslashreplace").decode()
        raise ValueError(f"The name of the index {shown} is not valid UTF-8. Choose another folder.")


def is_index(uri: str) -> bool:
    """Whether there is an index in this folder; other addresses are taken for one, for models have none."""
    folder = local_folder(uri)
    return folder is None or Path(folder, f"{TABLE}.lance", "_versions").is_dir()
