"""The one schema that every corpus has: a row is one spoken caption of one picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from datasets import Audio, Dataset, DatasetDict, Features, Image, Value, load_from_disk

SPLITS = ("train", "validation", "test")

FEATURES = Features(
    {
        "image": Image(decode=False),
        "audio": Audio(decode=False),
        "image_id": Value("string"),
        "caption_id": Value("string"),
        "text": Value("string"),
        "speaker": Value("string"),
        "language": Value("string"),
    }
)

# datasets asks torchcodec to encode an `Audio` column; the same bytes written as a plain struct need no codec,
# and the cast to `Audio` afterwards does not touch them.
_MEDIA = {"bytes": Value("binary"), "path": Value("string")}
_STORAGE = Features({**FEATURES, "image": _MEDIA, "audio": _MEDIA})


class CorpusError(ValueError):
    """A corpus that cannot be read or trained on as it is; the message says what to do."""


class Media(TypedDict):
    """A picture or a recording: encoded bytes, or the path of a file that holds them."""

    bytes: bytes | None
    path: str | None


class SpokenCaption(TypedDict):
    """One row of a corpus. `language` is a BCP-47 tag."""

    image: Media
    audio: Media
    image_id: str
    caption_id: str
    text: str | None
    speaker: str | None
    language: str | None


def split_from_rows(rows: Callable[..., Iterator[SpokenCaption]], num_proc: int | None = None, **kwargs: Any) -> Dataset:
    """Write the rows that a generator function yields as one split, without holding them in memory.

    `kwargs` reach the generator; with `num_proc` any list among them is shared out between the processes.
    """
    dataset = Dataset.from_generator(rows, features=_STORAGE, gen_kwargs=kwargs or None, num_proc=num_proc)
    return dataset.cast(FEATURES)


def save_corpus(splits: dict[str, Dataset], directory: str | Path) -> DatasetDict:
    """Save the three splits under `directory` and return them as read back from there."""
    check_schema(splits, where="the corpus to save")
    DatasetDict({name: splits[name] for name in SPLITS}).save_to_disk(str(directory))
    return load_corpus(directory)


def load_corpus(directory: str | Path) -> DatasetDict:
    """Open a corpus saved by :func:`save_corpus`; media stay encoded until they are used.

    Raises:
        CorpusError: no corpus there, a column is missing or of another type, or a split is empty.
    """
    if not (Path(directory) / "dataset_dict.json").is_file():
        raise CorpusError(f"{directory} holds no corpus. Build one: sir corpus build NAME --out {directory}")
    corpus = load_from_disk(str(directory))
    check_schema(corpus, where=str(directory))
    return corpus


def check_schema(splits: dict[str, Dataset], where: str) -> None:
    """Refuse splits that are missing or empty, and columns that are missing or of another type."""
    missing = [name for name in SPLITS if name not in splits]
    if missing:
        raise CorpusError(f"{where}: split {_listed(missing)} is missing; a corpus has {_listed(SPLITS)}.")
    for name in SPLITS:
        features = splits[name].features
        wrong = [column for column, feature in FEATURES.items() if features.get(column) != feature]
        if wrong:
            expected = ", ".join(f"{column}: {FEATURES[column]}" for column in wrong)
            raise CorpusError(f"{where}: split {name!r} needs the columns {expected}; it has {features}.")
        if len(splits[name]) == 0:
            raise CorpusError(f"{where}: split {name!r} is empty. Every split needs at least one spoken caption.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
