"""Corpora that were pushed to the Hub: downloaded, or read as they arrive."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from datasets import (
    Audio,
    Dataset,
    DatasetBuilder,
    DatasetDict,
    Image,
    IterableDataset,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from .schema import FEATURES, FURTHER_TEST, SPLITS, CorpusError, check_schema

_HUB_ID = re.compile(r"[\w-]+/[\w.-]+")
_Rows = TypeVar("_Rows", Dataset, IterableDataset)


def is_hub_id(name: str) -> bool:
    """Whether a name is like `org/name`, and neither it nor `org` is a folder here."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).parent.exists()


def load_hub_corpus(repo_id: str, revision: str | None = None, *, without_train: bool = False) -> DatasetDict:
    """Download a corpus from the Hub; its media stay encoded until they are used.

    Splits and columns that no corpus has are left out. `without_train` neither downloads nor gives the training
    split, for those who stream it.

    Raises:
        CorpusError: nothing can be read there, or it lacks a split or a column of a corpus.
    """
    needed = [name for name in SPLITS if name != "train" or not without_train]
    builder = _open(repo_id, revision, needed)
    further = [name for name in builder.config.data_files if name.startswith(FURTHER_TEST)]
    with _explained(repo_id, revision):
        loaded = load_dataset(
            _address(repo_id),
            revision=builder.hash,
            # By files, for datasets downloads all splits even if it is asked for one.
            data_files={name: builder.config.data_files[name] for name in [*needed, *further]},
            features=builder.info.features,
        )
    corpus = DatasetDict({name: _as_in_a_corpus(split) for name, split in loaded.items()})
    try:
        # A training split that is not here is checked when it is streamed; another one stands in for it.
        check_schema({"train": corpus["validation"], **corpus}, where=repo_id)
    except CorpusError as error:
        raise CorpusError(f"{error} {_how_to_build(repo_id)}") from None
    return corpus


def stream_training_rows(repo_id: str, revision: str | None = None) -> tuple[IterableDataset, int]:
    """The training split of a corpus on the Hub as it arrives, with encoded media, and how many rows it has.

    Raises:
        CorpusError: nothing can be read there, it lacks a column of a corpus, or does not state its rows.
    """
    builder = _open(repo_id, revision, ["train"])
    stated = (builder.info.splits or {}).get("train")
    if not builder.info.features or not stated or not stated.num_examples:
        raise CorpusError(
            f"{repo_id} does not state the columns and the number of rows of its split 'train', without which it "
            f"cannot be streamed. {_how_to_build(repo_id)}"
        )
    with _explained(repo_id, revision):
        stream = _as_in_a_corpus(builder.as_streaming_dataset(split="train"))
    other = [f"{name}: {stream.features[name]}" for name in FEATURES if stream.features[name] != FEATURES[name]]
    if other:
        raise CorpusError(f"{repo_id} has columns as no corpus has: {', '.join(other)}. {_how_to_build(repo_id)}")
    return stream, stated.num_examples


def _open(repo_id: str, revision: str | None, splits: Sequence[str]) -> DatasetBuilder:
    """The dataset at one commit, if it has these splits and, as far as it states them, the columns of a corpus."""
    with _explained(repo_id, revision):
        info = HfApi().dataset_info(repo_id, revision=revision)
        if info.gated:
            HfApi().auth_check(repo_id, repo_type="dataset")
        builder = load_dataset_builder(_address(repo_id), revision=info.sha)
    if builder.hash != info.sha:  # datasets takes any commit that it has cached if it does not get this one
        raise CorpusError(
            f"The Hub gives {repo_id} in part only, and an older copy in the cache is not used. Try again."
        )
    for kind, wanted, there in (
        ("split", splits, builder.config.data_files),
        ("column", FEATURES, builder.info.features or FEATURES),
    ):
        missing = [name for name in wanted if name not in there]
        if missing:
            raise CorpusError(
                f"{repo_id} has no {kind} {', '.join(missing)}; it has {', '.join(there)}. {_how_to_build(repo_id)}"
            )
    return builder


def _address(repo_id: str) -> str:
    # A bare id may be that of a folder here, too, which datasets would load instead.
    return f"hf://datasets/{repo_id}"


def _as_in_a_corpus(rows: _Rows) -> _Rows:
    """With the columns of a corpus alone, and media that are not decoded."""
    rows = rows.select_columns([name for name in FEATURES if name in rows.column_names])
    for name, feature in rows.features.items():
        if isinstance(feature, (Audio, Image)):
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


@contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise CorpusError(f"{repo_id!r} is no id of a dataset on the Hub. Such an id is like org/name.") from error
    except GatedRepoError as error:
        raise CorpusError(
            f"{repo_id} is given to those who asked for it: do so on its page on the Hub, and set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise CorpusError(
            f"{repo_id} is no dataset on the Hub, or a private one: correct the id, or set HF_TOKEN to a token that "
            "may read it."
        ) from error
    except RevisionNotFoundError as error:
        raise CorpusError(
            f"{repo_id} has no revision {revision}. Give one of its branches, tags or commits."
        ) from error
    except (httpx.HTTPError, ConnectionError, LocalEntryNotFoundError) as error:
        raise CorpusError(
            f"The Hub does not give {repo_id}: {_first_line(error)} Check the network and HF_TOKEN, and try again."
        ) from error
    except (DatasetsError, OSError, ValueError) as error:
        raise CorpusError(f"{repo_id} cannot be read: {_first_line(error)} {_how_to_build(repo_id)}") from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if line.endswith(".") else f"{line}."


def _how_to_build(repo_id: str) -> str:
    return (
        f"Build a corpus from it: sir corpus build columns --source {repo_id} --column image=... --column audio=... "
        "--out DIR"
    )
