"""Publish a corpus: checked, with its media inside, and with a card that says what it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from huggingface_hub import DatasetCard, DatasetCardData, HfApi

from ..corpora.check import inspect_corpus
from ..corpora.check_table import HOW_TO_READ, split_rows
from ..corpora.schema import load_corpus
from .commit import check_repo_id, commit_card, explained, make_repository_as_asked
from .known_licences import check_license, licences_of
from .refusal import PublishError

_TEMPLATE = Path(__file__).with_name("dataset_card.md")
_TAGS = ["speech-image-retrieval", "spoken-captions", "audio", "image"]


def render_dataset_card(folder: Path, repo_id: str, check: Mapping[str, Any], license: str) -> DatasetCard:
    """The card of a corpus, from what :meth:`..corpora.check.CorpusCheck.to_dict` gave of it.

    Args:
        license: of the whole, as the Hub names it.
    """
    languages = {tag.split("-")[0] for split in check["splits"].values() for tag in split["languages"]} - {"und"}
    data = DatasetCardData(
        language=sorted(languages) or None,
        license=license,
        pretty_name=repo_id.split("/")[-1],
        tags=_TAGS,
    )
    return DatasetCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        repo_id=repo_id,
        splits=list(check["splits"]),
        counts=split_rows(check),
        how_to_read=HOW_TO_READ,
        license=license,
        licences=licences_of(str(folder)),
        warnings=[f"{found['count']} x {kind}" for kind, found in check["warnings"].items()],
    )


def checked_card(
    folder: Path, repo_id: str, license: str, num_proc: int | None, say: Callable[[str], None] = lambda line: None
) -> tuple[DatasetDict, DatasetCard]:
    """A corpus that is fit for use, and its card.

    Raises:
        PublishError: it is not fit, see `sir corpus check`; or `repo_id` is no id, or the Hub knows no such licence.
    """
    check_repo_id(repo_id)
    check_license(license)
    corpus = load_corpus(folder)
    say(f"Checking {folder}: every recording and picture is decoded.")
    check = inspect_corpus(corpus, num_proc=num_proc)
    if not check.fit:
        raise PublishError(f"{folder} is not fit for use, by itself or others.\n{check.refusal()}")
    return corpus, render_dataset_card(folder, repo_id, check.to_dict(), license)


def publish_corpus(
    corpus: DatasetDict, card: DatasetCard, repo_id: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Push rows with their media, then the card; returns the address of the last commit.

    `datasets` writes the rows, and divides what has more than 50 files among several commits. They are read whole at
    any of them, since the card of the last one names the files.

    Raises:
        PublishError: the Hub did not take it.
    """
    api = HfApi()
    make_repository_as_asked(api, repo_id, "dataset", private)
    try:
        corpus.push_to_hub(repo_id, revision=revision)
        metadata = DatasetCard.load(api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=revision))
    except Exception as error:  # datasets and its file system raise errors of many kinds
        raise explained(error, repo_id, "Rows may be there in part") from error
    # What datasets wrote of columns and splits stays: without it, nobody can stream the corpus.
    for name, value in metadata.data.to_dict().items():
        card.data[name] = card.data.get(name, value)
    return commit_card(api, card, repo_id, "dataset", revision)
