"""Publish a model: put it together, check it as a stranger would use it, and commit it once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..evaluation.model_identity import model_identity
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..modeling.shipped_gallery import GALLERY_FOLDERS, read_gallery
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from .clean_load import check_clean_load
from .commit import check_repo_id, commit_folder, make_repository_as_asked
from .content import check_content
from .known_licences import check_license
from .model_card import (
    CASCADE_FILE,
    backbones_of,
    check_metadata,
    own_card,
    published_report,
    read_cascade,
    read_reports,
    read_training,
    render_model_card,
)
from .refusal import PublishError
from .staging import replace_file, stage_model


@dataclass(frozen=True)
class Publication:
    """What a model is published with.

    Attributes:
        model: the exported folder, with its `evaluation.json`.
        repo_id: where to, such as `org/name`.
        example: gives a row of a corpus whose recording and picture are shown and tried; called once what is quick to
            check has been. None takes those of the model.
        galleries: indexes of pictures or of recordings that are published with the model.
        card: a card of your own in place of the one that is rendered.
        license: of the weights, as the Hub names it; needed for the card that is rendered.
        datasets: Hub ids of the training data, for the card.
    """

    model: Path
    repo_id: str
    example: Callable[[], Mapping[str, Any]] | None = None
    galleries: Sequence[str] = ()
    card: Path | None = None
    license: str | None = None
    datasets: Sequence[str] = ()


@contextmanager
def staged(publication: Publication) -> Iterator[Path]:
    """The folder as it is published, checked; it is gone afterwards, the model's own is never changed.

    Raises:
        PublishError: something must not be published, or is missing.
    """
    model = publication.model
    check_repo_id(publication.repo_id)
    if not (model / "config.json").is_file():
        raise PublishError(f"{model} holds no model: there is no config.json in it. Give the folder `model` of a run.")
    check_content(model)
    _check_license(publication)
    reports, cascade = read_reports(model), read_cascade(model)
    example = publication.example() if publication.example else None
    loaded = SpeechImageRetrievalModel.from_pretrained(model), SpeechImageRetrievalProcessor.from_pretrained(model)
    fingerprint = model_identity(*loaded)
    _check_reports_are_of(model, reports, fingerprint)
    if publication.galleries:  # which replace those of the folder
        _check_indexes_are_of(publication.galleries, *loaded)
    else:
        _check_galleries_are_of(model, fingerprint)
    with tempfile.TemporaryDirectory(prefix=".publishing-", dir=model.resolve().parent) as place:
        folder = Path(place) / "model"
        rule = reports["evaluation.json"]["protocol"]["score_rule"] or "sim"
        stage_model(model, folder, example, publication.galleries, rule)
        reports = {name: published_report(report) for name, report in reports.items()}
        compared = {CASCADE_FILE: published_report(cascade)} if cascade else {}
        for name, report in {**reports, **compared}.items():
            replace_file(folder / name, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
        if publication.card is not None:
            card = own_card(publication.card)
        else:
            card = render_model_card(
                folder,
                publication.repo_id,
                list(reports.values()),
                license=publication.license,
                datasets=publication.datasets,
            )
            check_metadata(card)
        replace_file(folder / "README.md", str(card).encode())
        check_clean_load(folder)
        check_content(folder)
        yield folder


def publish_model(
    publication: Publication,
    *,
    private: bool = False,
    revision: str | None = None,
    api: HfApi | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Publish a model in one commit; returns its address.

    Args:
        revision: a branch, made if it is not there; None is `main`.

    Raises:
        PublishError: see :func:`staged`; or the Hub did not take it.
    """
    api = api or HfApi()
    with staged(publication) as folder:
        say(f"Checked. Uploading to {publication.repo_id}")
        make_repository_as_asked(api, publication.repo_id, "model", private)
        return commit_folder(api, folder, publication.repo_id, "model", revision, f"Publish {publication.model.name}")


def _check_license(publication: Publication) -> None:
    """Refuse weights of which nobody said the licence: nothing here can know what whoever publishes them may grant."""
    if publication.license:
        check_license(publication.license)
    if publication.license or publication.card:
        return
    backbones = backbones_of(read_training(publication.model))
    bound = f" Training began with {' and '.join(backbones)}, whose licences hold for them, too." if backbones else ""
    raise PublishError(
        "Say under which licence the weights are published, as the Hub names it: --license apache-2.0, for instance."
        + bound
    )


def _check_reports_are_of(folder: Path, reports: Mapping[str, Mapping[str, Any]], fingerprint: str) -> None:
    """Refuse figures of another model, and figures that do not say of which model they are."""
    for name, report in reports.items():
        stated = (report["protocol"].get("checkpoint") or {}).get("fingerprint")
        if stated == fingerprint:
            continue
        problem = (
            "does not say which model it is about"
            if stated is None
            else "is about another model: weights, configuration or preprocessing have changed since"
        )
        raise PublishError(
            f"{name} in {folder} {problem}. Measure it again: sir evaluate {folder} --corpus CORPUS --score-rule "
            f"validation --json {folder / name}"
        )


def _check_indexes_are_of(
    galleries: Sequence[str], model: SpeechImageRetrievalModel, processor: SpeechImageRetrievalProcessor
) -> None:
    """Refuse indexes of another model here, where the folder that its publisher knows is named, not the staged one."""
    from ..retrieval.index import SpeechImageIndex  # needs LanceDB

    for uri in galleries:
        SpeechImageIndex.open(uri, model, processor)


def _check_galleries_are_of(folder: Path, fingerprint: str) -> None:
    """Refuse galleries that lie in a model's folder and are damaged, or are of another model."""
    for place in GALLERY_FOLDERS.values():
        if not (folder / place).is_dir():
            continue
        try:
            gallery = read_gallery(folder / place)
        except ValueError as error:
            raise PublishError(str(error)) from error
        if gallery.model != fingerprint:
            raise PublishError(
                f"The gallery {folder / place} is of another model, or does not say of which. Publish it from an "
                "index of this one, --gallery INDEX, or remove it."
            )
