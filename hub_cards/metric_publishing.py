"""Publish the metric: a Space that `evaluate.load` reads."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import HfApi

from ..evaluation import recall_at_k
from .commit import check_repo_id, commit_folder, make_repository_as_asked
from .refusal import PublishError

METRIC = Path(recall_at_k.__file__).parent


def stage_metric(folder: Path) -> None:
    """The files of the metric, and the page that a Space shows, which is its README."""
    shutil.copytree(METRIC, folder, ignore=shutil.ignore_patterns("__pycache__", "__init__.py"))


def check_name(repo_id: str) -> None:
    """
    Raises:
        PublishError: `repo_id` is no id, or does not end in the name of the metric.
    """
    check_repo_id(repo_id)
    if repo_id.split("/")[-1] != METRIC.name:
        raise PublishError(
            f"evaluate.load looks for the file that is called like the Space: publish to ORG/{METRIC.name}, not to "
            f"{repo_id}."
        )


def publish_metric(folder: Path, repo_id: str, *, private: bool = False, api: HfApi | None = None) -> str:
    """Publish a staged metric in one commit; returns its address.

    Raises:
        PublishError: the Space is not called after the metric, or the Hub did not take it.
    """
    check_name(repo_id)
    api = api or HfApi()
    make_repository_as_asked(api, repo_id, "space", private)
    return commit_folder(api, folder, repo_id, "space", None, "Publish the metric")
