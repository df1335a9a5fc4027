"""The LanceDB table behind an index: its columns, what it says of itself, and its errors in plain words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

import lancedb
import pyarrow as pa
from filelock import FileLock

from .checksums import COLUMN as CHECKSUM
from .index_place import TABLE, is_index, local_folder, refuse_not_utf8
from .sources import Modality

FORMAT = 5
_METADATA = b"speech_image_index"
_MOVED_MODEL = "speech_image_index:model_name"  # in the metadata of `embedding`, for those of a table are fixed
# Makes LanceDB see that two writers at once insert the same ids, and repeat one of the writes as an update.
_KEY = {"lance-schema:unenforced-primary-key": "true"}
_MAGIC = b"LANC"  # how every data file of LanceDB ends
_LANCE_ERRORS = ("lance error", "External error")  # how errors of the engine begin; a model's do not
_DATA_FILE = re.compile(r"[\w-]+\.lance\b(?!/)")


class IndexProblem(ValueError):
    """An index that cannot be used as it is; the message says what to do."""


@dataclass(frozen=True)
class IndexInfo:
    """What an index says of itself.

    Attributes:
        modality: of the gallery: "image" is searched by speech, "speech" by pictures.
        projection_dim: numbers in an embedding. width: numbers in a token state.
        model_name: Hub id or folder as it was given.
        model_digest: see :func:`..evaluation.model_identity.model_identity`.
        keep_states: whether the token states are stored for re-ranking, in float16.
    """

    modality: Modality
    projection_dim: int
    width: int
    model_name: str
    model_digest: str
    keep_states: bool
    format: int = FORMAT

    def schema(self) -> pa.Schema:
        """Columns of the table.

        `preview` is what a result shows: a JPEG of at most 256 pixels a side, or the whole recording as FLAC.
        `embedding` has unit length, `states` is (token_count, width) float16, `crc32` is of the bytes
        of these three.
        """
        fields = [
            pa.field("id", pa.string(), nullable=False, metadata=_KEY),
            pa.field("source", pa.string(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("path", pa.string()),
            pa.field("fingerprint", pa.string(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("speaker", pa.string()),
            pa.field("language", pa.string()),
            pa.field("preview", pa.binary(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), self.projection_dim), nullable=False),
            pa.field(CHECKSUM, pa.int64(), nullable=False),
        ]
        if self.keep_states:
            fields += [
                pa.field("token_count", pa.int32(), nullable=False),
                pa.field("states", pa.large_binary(), nullable=False),
            ]
        return pa.schema(fields, metadata={_METADATA: json.dumps(asdict(self))})


def create_table(uri: str, info: IndexInfo) -> lancedb.table.Table:
    """The table at this address: a new one, or what is there already."""
    refuse_not_utf8(uri)
    folder = local_folder(uri)
    if folder is not None and not is_index(uri) and folder.exists() and any(_foreign_files(folder)):
        raise IndexProblem(f"{uri} exists and is not an index. Choose another folder.")
    database = lancedb.connect(uri)
    with writing(uri), damage_explained(uri):
        table = _existing(database)  # an empty one is false
        return database.create_table(TABLE, schema=info.schema()) if table is None else table


def open_table(uri: str, session: lancedb.Session | None = None) -> lancedb.table.Table:
    """The latest version of the table, which later writes do not change under the reader.

    Args:
        session: whose caches, of an approximate index for instance, are shared.

    Raises:
        IndexProblem: there is no index, or it cannot be read.
    """
    refuse_not_utf8(uri)
    if not is_index(uri):
        raise IndexProblem(_no_index(uri))
    with damage_explained(uri):
        table = _existing(lancedb.connect(uri, session=session))
    if table is None:
        raise IndexProblem(_no_index(uri))
    return table


def _existing(database: lancedb.db.DBConnection) -> lancedb.table.Table | None:
    try:
        return database.open_table(TABLE)
    except ValueError as error:
        if "was not found" not in str(error):
            raise
        return None


def _no_index(uri: str) -> str:
    return f"{uri} holds no index. Build one: sir index MODEL SOURCE --out {quote(uri)}"


def read_info(uri: str, table: lancedb.table.Table) -> IndexInfo:
    """
    Raises:
        IndexProblem: a table that is no index, or one of another format.
    """
    stated = (table.schema.metadata or {}).get(_METADATA)
    if stated is None:
        raise IndexProblem(
            f"The table {TABLE!r} in {uri} is not an index of speech or pictures. Choose another folder."
        )
    fields = json.loads(stated)
    if fields["format"] != FORMAT:
        raise IndexProblem(
            f"{uri} is an index of format {fields['format']}, and this version reads format {FORMAT}. Delete it, or "
            "choose another folder, and build it again: sir index MODEL SOURCE --out DIR"
        )
    moved_to = (table.schema.field("embedding").metadata or {}).get(_MOVED_MODEL.encode())
    if moved_to is not None:
        fields["model_name"] = moved_to.decode()
    return IndexInfo(**fields)


def store_model_name(uri: str, table: lancedb.table.Table, name: str) -> None:
    """Where the model is now, which :func:`read_info` says from then on."""
    with writing(uri), damage_explained(uri):
        table.checkout_latest()
        table.update_field_metadata({"path": "embedding", "metadata": {_MOVED_MODEL: name}})


def writing(uri: str) -> AbstractContextManager:
    """Let one process at a time write to a local index, each only as long as a write takes.

    Elsewhere LanceDB alone orders the writes: a commit that conflicts with another, by its rows or by the key `id`, is
    repeated on top of it.
    """
    folder = local_folder(uri)
    if folder is None:
        return nullcontext()
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".write.lock")


def one_of(column: str, values: Sequence[str]) -> str:
    """A LanceDB filter: the column has one of these values."""
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({quoted})"


@contextmanager
def damage_explained(uri: str) -> Iterator[None]:
    """Say of LanceDB's errors about its files which index and which file, and what to do."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not str(error).startswith(_LANCE_ERRORS) and "Lance file" not in str(error):
            raise
        named = sorted({*_DATA_FILE.findall(str(error))} or _broken_files(uri))
        said = str(error).splitlines()[0][:300]
        if not named and "corrupt" not in said:
            raise IndexProblem(f"The index {uri} cannot be read or written. LanceDB says: {said}") from error
        raise IndexProblem(
            f"The index {uri} cannot be read: a data file is damaged or missing "
            f"({', '.join(named) or 'LanceDB does not name it'}). Put it back from a copy, or delete the index and "
            f"build it again with sir index. LanceDB says: {said}"
        ) from error


def _broken_files(uri: str) -> set[str]:
    """Data files that do not end as LanceDB ends them: cut off, or overwritten."""
    folder = local_folder(uri)
    if folder is None:
        return set()
    return {path.name for path in Path(folder, f"{TABLE}.lance", "data").glob("*.lance") if not _ends_well(path)}


def _ends_well(path: Path) -> bool:
    if path.stat().st_size < len(_MAGIC):
        return False
    with path.open("rb") as file:
        file.seek(-len(_MAGIC), 2)
        return file.read() == _MAGIC


def _foreign_files(folder: Path) -> Iterator[Path]:
    """What an index that was interrupted at its creation would not have."""
    if not folder.is_dir():
        yield folder
        return
    yield from (path for path in folder.iterdir() if path.name not in (".write.lock", f"{TABLE}.lance"))
