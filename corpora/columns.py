"""Data that users bring: any local or Hub dataset, a manifest, or a folder of recordings and one of pictures.

What is what is said by a mapping from the columns of a corpus to those of the data. `image` and `audio` hold paths,
relative to the manifest, or media that `datasets` keeps as such.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import (
    Audio,
    Dataset,
    DatasetDict,
    Features,
    Image,
    Value,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetsError

from ..processing.media import PICTURE_SUFFIXES, RECORDING_SUFFIXES
from .building import Reading
from .findings import Findings
from .schema import FURTHER_TEST, SPLITS, CorpusError, Media, SpokenCaption
from .splits import validation_drawn_from

NO_PARTNER = "recording without a picture of its name, left out"
UNHEARD = "picture without a recording of its name, left out"

_OPTIONAL = ("image_id", "caption_id", "text", "speaker", "language", "split")
_MANIFESTS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def read_columns(
    sources: Sequence[str],
    columns: Mapping[str, str] | None = None,
    *,
    config_name: str | None = None,
    language: str | None = None,
) -> Reading:
    """Rows of one dataset, or of a folder of recordings and a folder of pictures.

    A dataset is a CSV, TSV, JSONL or Parquet file, a folder that `datasets` can load (saved by it, `audiofolder`,
    `imagefolder`, Parquet), or a Hub id. Columns that are not mapped are taken by their own name if the data has it.
    Without `image_id`, pictures with the same path or the same bytes are one picture. Of two folders, a recording
    belongs to the picture of the same name: `cat.wav` or `cat_2.wav` to `cat.jpg`.

    Splits are those of the data, or of the column `split`; where validation or test is missing, a tenth of the
    training pictures is drawn for it, by a hash of the picture's id.

    Args:
        columns: column of a corpus -> column of the data.
        config_name: configuration of a dataset that has several.
        language: BCP-47 tag for rows that state none.

    Raises:
        CorpusError: nothing to read there, or a column that is missing or mapped to nothing known.
    """
    reading = Reading(rows=())
    if len(sources) == 2 and all(Path(source).is_dir() for source in sources):
        pairs = [("train", row) for row in _paired(Path(sources[0]), Path(sources[1]), reading.findings)]
        read, reading.expected_rows, names = pairs.copy, len(pairs), {"train"}
    elif len(sources) == 1:
        splits, roots = _open(sources[0], config_name)
        mapping = _mapping(columns or {}, splits, sources[0])
        path = Path(sources[0])
        read = partial(_mapped, splits, mapping, roots, path.parent if path.is_file() else path)
        reading.expected_rows = sum(map(len, splits.values()))
        names = _split_names(splits, mapping, sources[0])
    else:
        raise CorpusError("Pass one dataset with --source, or two folders: one of recordings and one of pictures.")
    missing = [split for split in ("test", "validation") if split not in names]
    if missing:
        reading.notes.append(
            f"The data has no split {' or '.join(missing)}: a tenth of the training pictures, at most 1,000, is drawn "
            "for each by a hash of the picture's id."
        )
    reading.rows = _completed(read, missing, language)
    return reading


def _open(source: str, config_name: str | None) -> tuple[DatasetDict, dict[str, Path]]:
    """The splits, and for each the folder that paths in it are relative to."""
    path = Path(source)
    manifests = _folder_metadata(path)
    try:
        if path.is_file():
            splits = {"train": _manifest(path)}
        elif manifests:
            splits = {name: _manifest(file) for name, file in manifests.items()}
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = load_from_disk(source)
            splits = {"train": saved} if isinstance(saved, Dataset) else saved
        elif path.suffix.lower() in _MANIFESTS or (
            path.parent.is_dir() and path.parent != Path() and not path.is_dir()
        ):
            raise CorpusError(f"There is no file or folder {source}.")
        elif path.is_dir() and _media_files(path, RECORDING_SUFFIXES):
            raise CorpusError(
                f"{source} holds recordings, and no metadata.csv that says what they are about. Write one, or give "
                "two folders, with recordings and pictures of the same names: --source RECORDINGS --source PICTURES"
            )
        else:
            splits = load_dataset(source, config_name)
    except CorpusError:
        raise
    except (ValueError, OSError, DatasetsError) as error:
        reason = str(error.__cause__ or error).strip() or type(error).__name__
        raise CorpusError(f"{source} cannot be read: {reason.splitlines()[0]}") from error
    root = path.parent if path.is_file() else path
    roots = {name: manifests[name].parent if name in manifests else root for name in splits}
    return DatasetDict({name: _undecoded(split) for name, split in splits.items()}), roots


def _folder_metadata(folder: Path) -> dict[str, Path]:
    """Split -> the `metadata` file of an `audiofolder` or `imagefolder`, or of each of its splits' folders.

    `datasets` reads such folders too, but not recordings without torchcodec.
    """
    places = {"train": folder} | {child.name: child for child in sorted(folder.glob("*/"))}
    found = {}
    for name, place in places.items():
        for suffix in (".csv", ".jsonl", ".parquet"):
            if (place / f"metadata{suffix}").is_file():
                found.setdefault(name, place / f"metadata{suffix}")
    return found


def _manifest(path: Path) -> Dataset:
    if path.suffix.lower() not in _MANIFESTS:
        raise CorpusError(f"{path} is none of {', '.join(_MANIFESTS)}.")
    builder = _MANIFESTS[path.suffix.lower()]
    options: dict[str, Any] = {}
    if builder == "csv":  # every value as it is written: "007" is no number, "None" a name like others
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        header = _checked_header(path, separator)
        options = {
            "sep": separator,
            "features": Features({name: Value("string") for name in header}),
            "keep_default_na": False,
            "encoding": "utf-8-sig",
        }
    return load_dataset(builder, data_files=str(path), split="train", **options)


def _checked_header(path: Path, separator: str) -> list[str]:
    """The names of the columns; pandas would shift or drop what a line has too much."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=separator)
        header = next(lines, [])
        for line in lines:
            if line and len(line) != len(header):
                raise CorpusError(
                    f"{path}, line {lines.line_num}: {len(line)} values for {len(header)} columns. Put values that "
                    "hold a comma into quotes."
                )
    return header


def _undecoded(split: Dataset) -> Dataset:
    for name, feature in split.features.items():
        if isinstance(feature, (Audio, Image)):
            split = split.cast_column(name, type(feature)(decode=False))
    return split


def _mapping(columns: Mapping[str, str], splits: DatasetDict, source: str) -> dict[str, str]:
    there = list(dict.fromkeys(column for split in splits.values() for column in split.column_names))
    known = ("image", "audio", *_OPTIONAL)
    unknown = [name for name in columns if name not in known]
    if unknown:
        turned = [name for name in unknown if columns[name] in known]
        hint = f" Did you mean {columns[turned[0]]}={turned[0]}?" if turned else ""
        raise CorpusError(f"A corpus has no column {', '.join(unknown)}. Columns: {', '.join(known)}.{hint}")
    mapping = {name: columns.get(name, name) for name in known}
    if "file_name" in there:  # of an audiofolder or imagefolder: the media that the folder is named for
        own = [name for name in ("image", "audio") if mapping[name] not in there]
        mapping |= dict.fromkeys(own[:1], "file_name")
    absent = [name for name in known if mapping[name] not in there and (name in columns or name not in _OPTIONAL)]
    if absent:
        wanted = ", ".join(f"{mapping[name]!r} for {name}" for name in absent)
        raise CorpusError(
            f"{source} has no column {wanted}. Its columns: {', '.join(there)}. Say which is which: "
            "--column image=PHOTO --column audio=RECORDING"
        )
    return {name: column for name, column in mapping.items() if column in there}


def _split_names(splits: DatasetDict, mapping: Mapping[str, str], source: str) -> set[str]:
    stated = set(splits) if "split" not in mapping else _distinct_values(splits, mapping["split"])
    return {_split_name(value, source) for value in stated}


def _distinct_values(splits: DatasetDict, column: str) -> set[Any]:
    return {value for split in splits.values() if column in split.column_names for value in split.unique(column)}


def _split_name(value: Any, source: str) -> str:
    text = str(value).strip().lower()
    for split, spellings in _SPLIT_NAMES.items():
        if text in spellings:
            return split
    if text.startswith(FURTHER_TEST):
        return text
    raise CorpusError(
        f"{source} has a split {value!r}; known are {', '.join(SPLITS)}, {FURTHER_TEST}..., val and dev."
    )


def _mapped(
    splits: DatasetDict, mapping: Mapping[str, str], roots: Mapping[str, Path], source: Path
) -> Iterator[tuple[str, SpokenCaption]]:
    for name, split in splits.items():
        root = roots[name]
        for place, row in enumerate(split):
            values = {column: row.get(there) for column, there in mapping.items()}
            image, audio = _media(values["image"], root), _media(values["audio"], root)
            yield (
                _split_name(values.get("split", name), str(root)),
                SpokenCaption(
                    image=image,
                    audio=audio,
                    image_id=_text(values.get("image_id")) or _identity(image, source),
                    caption_id=_text(values.get("caption_id")) or f"{name}-{place}",
                    text=_text(values.get("text")),
                    speaker=_text(values.get("speaker")),
                    language=_text(values.get("language")),
                ),
            )


def _media(value: Any, root: Path) -> Media:
    if isinstance(value, str):
        return Media(bytes=None, path=os.path.normpath(root / value))
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path")
        return Media(bytes=content, path=os.path.normpath(root / path) if content is None and path else path)
    return Media(bytes=None, path=None)


def _identity(image: Media, root: Path) -> str:
    if image["bytes"] is not None:
        return hashlib.blake2b(image["bytes"], digest_size=16).hexdigest()
    path = Path(image["path"] or "")
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _text(value: Any) -> str | None:
    return None if value is None else str(value) or None


def _media_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes and file.is_file())


def _paired(recordings: Path, pictures: Path, findings: Findings) -> list[SpokenCaption]:
    """Recordings with the pictures of their names; either folder may be the one with the pictures."""
    if not _media_files(pictures, PICTURE_SUFFIXES):
        recordings, pictures = pictures, recordings
    by_name: dict[str, Path] = {}
    for file in _media_files(pictures, PICTURE_SUFFIXES):
        name = file.relative_to(pictures).with_suffix("").as_posix()
        if name in by_name:
            raise CorpusError(f"{by_name[name]} and {file} have one name: which is spoken about? Rename one of them.")
        by_name[name] = file
    if not by_name:
        raise CorpusError(
            f"Neither {recordings} nor {pictures} holds pictures ({', '.join(sorted(PICTURE_SUFFIXES))})."
        )
    rows, heard = [], set()
    for file in _media_files(recordings, RECORDING_SUFFIXES):
        name = file.relative_to(recordings).with_suffix("").as_posix()
        image_id = next((candidate for candidate in (name, name.rpartition("_")[0]) if candidate in by_name), None)
        if image_id is None:
            findings.add(NO_PARTNER, str(file))
            continue
        heard.add(image_id)
        rows.append(
            SpokenCaption(
                image=Media(bytes=None, path=str(by_name[image_id])),
                audio=Media(bytes=None, path=str(file)),
                image_id=image_id,
                caption_id=file.relative_to(recordings).as_posix(),
                text=None,
                speaker=None,
                language=None,
            )
        )
    for image_id in sorted(by_name.keys() - heard):
        findings.add(UNHEARD, str(by_name[image_id]))
    return rows


def _completed(
    read: Callable[[], Iterable[tuple[str, SpokenCaption]]], missing: Sequence[str], language: str | None
) -> Iterator[tuple[str, SpokenCaption]]:
    """With the language where none is stated, and with training pictures drawn for the splits that are missing."""
    training = {row["image_id"] for split, row in read() if split == "train"} if missing else set()
    drawn: dict[str, str] = {}
    for name in missing:
        is_drawn = validation_drawn_from(training - drawn.keys())
        drawn |= {image_id: name for image_id in training - drawn.keys() if is_drawn(image_id)}
    for split, row in read():
        yield (
            drawn.get(row["image_id"], split) if split == "train" else split,
            {**row, "language": row["language"] or language},
        )
