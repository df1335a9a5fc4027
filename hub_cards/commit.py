"""A folder becomes a revision of a repository on the Hub, in one commit or not at all."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx, validate_repo_id

from .refusal import PublishError

_KEPT = ".gitattributes"  # the Hub's own, which says what is stored as a large file


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no id of a repository with its owner. The Hub would make a repository without one for whoever is
    logged in, and then not find it by that name.

    Raises:
        PublishError: that.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise PublishError(f"{repo_id!r} is no id of a repository on the Hub. Such an id is like org/name.") from None
    if "/" not in repo_id:
        raise PublishError(
            f"{repo_id!r} does not say whose repository it is. Put your organisation or user name before it: "
            f"ORG/{repo_id}"
        )


def make_repository(api: HfApi, repo_id: str, kind: str, private: bool) -> bool:
    """Make a repository unless it is there; returns whether it is private.

    Args:
        kind: `model`, `dataset` or `space`.
        private: whether a new repository is; one that is there stays as it is.

    Raises:
        PublishError: it is no id, or the Hub does not allow it.
    """
    check_repo_id(repo_id)
    try:
        api.create_repo(
            repo_id,
            repo_type=kind,
            private=private,
            exist_ok=True,
            space_sdk="static" if kind == "space" else None,
        )
        return bool(api.repo_info(repo_id, repo_type=kind).private)
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise explained(error, repo_id, "Nothing was uploaded") from error


def make_repository_as_asked(api: HfApi, repo_id: str, kind: str, private: bool) -> None:
    """Make a repository unless it is there, and refuse one that everybody reads where it shall be private.

    Raises:
        PublishError: that, or the Hub does not allow it.
    """
    if not make_repository(api, repo_id, kind, private) and private:
        raise PublishError(
            f"{repo_id} is on the Hub already, and everybody can read it. Make it private in its settings, or publish "
            "without --private."
        )


def commit_folder(api: HfApi, folder: Path, repo_id: str, kind: str, revision: str | None, message: str) -> str:
    """Make a repository hold exactly this folder, by one commit; returns the commit's address.

    `HfApi.upload_folder` may divide a folder into several commits, and its users would meet new code with old weights.
    What the repository held before stays in its history.

    Args:
        revision: a branch, made from `main` if it is not there; None is `main`.

    Raises:
        PublishError: the Hub did not take it, or its answer did not arrive; the message says how the branch is.
    """
    before = None
    try:
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True)
        before = api.repo_info(repo_id, repo_type=kind, revision=revision)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        stale = {file.rfilename for file in before.siblings} - set(files) - {_KEPT}
        operations = [
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
            *(CommitOperationDelete(path_in_repo=name) for name in sorted(stale)),
        ]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            repo_type=kind,
            revision=revision,
            parent_commit=before.sha,  # whoever published at the same time is not overwritten unseen
        ).commit_url
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
        state = _state_of_branch(api, repo_id, kind, revision, before.sha if before else None)
        raise explained(error, repo_id, state) from error


def _state_of_branch(api: HfApi, repo_id: str, kind: str, revision: str | None, before: str | None) -> str:
    """How a branch is after a commit whose answer was an error, or did not arrive: it may have been made all the same.

    Args:
        before: its commit before; None if that was not known yet, and nothing was committed.
    """
    branch = f"Its branch {revision or 'main'}"
    if before is None:
        return f"{branch} is as it was"
    try:
        now = api.repo_info(repo_id, repo_type=kind, revision=revision).sha
    except (HfHubHTTPError, httpx.HTTPError, OSError):
        return f"{branch} may have changed or not: the Hub does not say"
    return f"{branch} is as it was" if now == before else f"{branch} has changed, to commit {now}: look what it holds"


def commit_card(api: HfApi, card: RepoCard, repo_id: str, kind: str, revision: str | None) -> str:
    """Replace the card of a repository; returns the commit's address.

    Raises:
        PublishError: the Hub did not take it.
    """
    try:
        operation = CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=str(card).encode())
        return api.create_commit(
            repo_id, [operation], commit_message="Write the card", repo_type=kind, revision=revision
        ).commit_url
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise explained(error, repo_id, "All but its card is there") from error


def explained(error: Exception, repo_id: str, state: str) -> PublishError:
    """What to tell of an error of the Hub, and in which `state` the repository is."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RevisionNotFoundError):
        return PublishError(f"{repo_id} has no such branch. {state}. Give the name of a branch, not a tag or commit.")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return PublishError(
            f"The Hub does not let you write to {repo_id}. {state}. Set HF_TOKEN to a token that may, or log in: "
            "hf auth login"
        )
    if status == 412:
        return PublishError(
            f"Somebody else published to {repo_id} meanwhile, and it is as they left it. Look, and run again."
        )
    said = (str(error).strip() or type(error).__name__).splitlines()
    return PublishError(f"The Hub did not take {repo_id}: {' '.join(said[:2])} {state}. Run the same command again.")
