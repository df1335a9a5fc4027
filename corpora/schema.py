"""The one schema that every corpus has: a row is one spoken caption of one picture."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from datasets import (
    Audio,
    Dataset,
    DatasetDict,
    Features,
    Image,
    NamedSplit,
    Value,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError

SPLITS = ("train", "validation", "test")
"""The splits that every corpus has."""

FURTHER_TEST = "test_"
"""How the names of further splits start; a corpus may have any number of them."""

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
    """A corpus that cannot be built, read or trained on as it is; the message says what to do."""


class Media(TypedDict):
    """A picture or a recording: encoded bytes, or the path of a file that holds them."""

    bytes: bytes | None
    path: str | None


class SpokenCaption(TypedDict):
    """One row of a corpus. `language` is a BCP-47 tag.

    `image_id` names what is shown, and rows that have the same one are positives of each other. Usually it is one
    picture; in a training split it may be several pictures of the same thing. In every evaluation split an `image_id`
    is exactly one picture.
    """

    image: Media
    audio: Media
    image_id: str
    caption_id: str
    text: str | None
    speaker: str | None
    language: str | None


def split_from_rows(
    rows: Callable[..., Iterator[SpokenCaption]],
    num_proc: int | None = None,
    *,
    cache_dir: str | Path | None = None,
    split_name: str = "train",
    **kwargs: Any,
) -> Dataset:
    """Write the rows that a generator function yields as one split, without holding them in memory.

    `kwargs` reach the generator; with `num_proc` any list among them is shared out between the processes.
    The rows wait for :func:`save_corpus` in a new folder under `cache_dir`, which the caller removes
    (:func:`building_folder`); without `cache_dir`, in a temporary folder that is removed when Python ends.
    `split_name` only labels the progress bar.

    Raises:
        CorpusError: as raised by the generator, from whichever process.
    """
    # Never datasets' shared cache: its key does not cover the code that the generator calls, so it gives stale rows.
    folder = Path(tempfile.mkdtemp(prefix="split-", dir=cache_dir))
    if cache_dir is None:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    problem = folder / "problem.txt"
    try:
        written = Dataset.from_generator(
            partial(_reporting, problem, rows),
            features=_STORAGE,
            gen_kwargs=kwargs or None,
            num_proc=num_proc,
            cache_dir=str(folder),
            split=NamedSplit(split_name),
        )
    except DatasetGenerationError:
        if problem.is_file():
            raise CorpusError(problem.read_text(encoding="utf-8")) from None
        raise
    with no_progress_bars():
        return written.cast(FEATURES)


def _reporting(problem: Path, rows: Callable[..., Iterator[SpokenCaption]], **kwargs: Any) -> Iterator[SpokenCaption]:
    # datasets replaces the error of a generator by its own, and loses the cause between processes.
    try:
        yield from rows(**kwargs)
    except CorpusError as error:
        problem.write_text(str(error), encoding="utf-8")
        raise


def save_corpus(splits: dict[str, Dataset], directory: str | Path) -> DatasetDict:
    """Save the three splits and any `test_...` under `directory` and return them as read back from there.

    The corpus appears whole or not at all, and takes the place of an older corpus there.

    Raises:
        CorpusError: a split or a column is wrong, or `directory` holds something else than a corpus.
    """
    check_schema(splits, where="the corpus to save")
    check_replaceable(directory)
    target = Path(directory).absolute()
    with building_folder(target) as folder, no_progress_bars():
        DatasetDict({name: splits[name] for name in _names(splits)}).save_to_disk(str(folder / "new"))
        if target.exists():
            target.rename(folder / "old")
        (folder / "new").rename(target)
    return load_corpus(directory)


@contextmanager
def building_folder(directory: str | Path) -> Iterator[Path]:
    """A temporary folder beside `directory`, so on the same disk, for what is not yet a corpus."""
    target = Path(directory).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.building-", dir=target.parent) as folder:
        yield Path(folder)


def check_replaceable(directory: str | Path) -> None:
    """Refuse a place for a corpus that holds anything but an older corpus."""
    target = Path(directory)
    if target.is_dir() and (not any(target.iterdir()) or (target / "dataset_dict.json").is_file()):
        return
    if target.exists():
        raise CorpusError(f"{directory} exists and is not a corpus, so it is not replaced. Choose another folder.")


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
    for name in _names(splits):
        features = splits[name].features
        wrong = [column for column, feature in FEATURES.items() if features.get(column) != feature]
        if wrong:
            expected = ", ".join(f"{column}: {FEATURES[column]}" for column in wrong)
            raise CorpusError(f"{where}: split {name!r} needs the columns {expected}; it has {features}.")
        if len(splits[name]) == 0:
            raise CorpusError(f"{where}: split {name!r} is empty. Every split needs at least one spoken caption.")


def _names(splits: Iterable[str]) -> list[str]:
    return [*SPLITS, *(name for name in splits if name.startswith(FURTHER_TEST))]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
