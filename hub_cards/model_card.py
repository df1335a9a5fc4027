"""The card of a model: what its report, its configuration and the record of its training say, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..corpora.hub import is_hub_id
from ..evaluation.standard_pools import corpus_name
from ..modeling.shipped_gallery import GALLERY_FOLDERS, read_gallery
from ..processing.processing_speech_image_retrieval import MAX_CHUNKS
from .card_figures import as_table, eval_results, rows_of_cascade
from .examples import find_example
from .known_licences import licences_of
from .refusal import PublishError

CASCADE_FILE = "cascade.json"

_TEMPLATE = Path(__file__).with_name("model_card.md")
_TAGS = ["speech-image-retrieval", "cross-modal-retrieval", "audio-to-image-retrieval", "speech", "image"]


def read_reports(folder: Path) -> dict[str, dict[str, Any]]:
    """The reports `evaluation*.json` of a model by the names of their files, that of the test split first.

    Raises:
        PublishError: there is none, or one is no report of `sir evaluate`.
    """
    paths = sorted(folder.glob("evaluation*.json"), key=lambda path: path.stem)
    how = f"sir evaluate {folder} --corpus CORPUS --score-rule validation --json {folder}/evaluation.json"
    if not (folder / "evaluation.json").is_file():
        raise PublishError(
            f"{folder} has no evaluation.json, and nobody would know how well it finds. Measure it: {how}"
        )
    reports = {path.name: _read(path) for path in paths}
    for name, report in reports.items():
        path = folder / name
        protocol = report.get("protocol") if isinstance(report, dict) else None
        if not isinstance(protocol, dict) or not {"pool", "corpus", "split"} <= set(protocol):
            raise PublishError(f"{path} does not state its pool, as reports do now. Measure the model again: {how}")
        if "intervals" not in report:
            raise PublishError(f"{path} has no intervals, as reports have now. Measure the model again: {how}")
        try:
            eval_results(published_report(report))
            as_table(report)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise PublishError(
                f"{path} is no report of sir evaluate, or a damaged one: {type(error).__name__}, {error}. Measure the "
                f"model again: {how}"
            ) from error
    return reports


def read_cascade(folder: Path) -> dict[str, Any] | None:
    """The figures of a cascade that were measured for comparison, see `benchmarks/cascade.py`; None without them.

    Raises:
        PublishError: the file holds something else.
    """
    path = folder / CASCADE_FILE
    if not path.is_file():
        return None
    cascade = _read(path)
    try:
        rows_of_cascade(cascade)
        published_report(cascade)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise PublishError(
            f"{path} is not what benchmarks.cascade writes: {type(error).__name__}, {error}. Write it again, or "
            "remove it."
        ) from error
    return cascade


def read_training(folder: Path) -> dict[str, Any]:
    """What training noted of itself, see :mod:`..training.record`; nothing if it is not there."""
    return _read(folder / "training.json") if (folder / "training.json").is_file() else {}


def backbones_of(training: Mapping[str, Any]) -> list[str]:
    """Hub ids of the pretrained encoders that training began with."""
    return [training[name] for name in ("speech_backbone", "vision_backbone") if name in training]


def published_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report without folders of this machine, which say nothing elsewhere: their names are left, and Hub ids."""
    protocol = dict(report["protocol"])
    if not is_hub_id(protocol["corpus"]):
        protocol["corpus"] = corpus_name(protocol["corpus"])
    checkpoint = protocol.get("checkpoint")
    if checkpoint and not is_hub_id(checkpoint["name"]):
        protocol["checkpoint"] = {**checkpoint, "name": Path(checkpoint["name"]).name}
    return {**report, "protocol": protocol}


def render_model_card(
    folder: Path,
    repo_id: str,
    reports: Sequence[Mapping[str, Any]],
    *,
    license: str,
    datasets: Sequence[str] = (),
) -> ModelCard:
    """The card of a staged folder, with the metadata that the Hub reads.

    With a gallery of pictures, its endpoint answers the contract of audio classification, which has a widget; with one
    of recordings alone, that of image classification.

    Args:
        reports: see :func:`published_report`.
        license: of the weights, as the Hub names it.
        datasets: Hub ids of the training data.
    """
    config = _read(folder / "config.json")
    processor = _read(folder / "processor_config.json")
    training = read_training(folder)
    corpus = training.get("corpus") or reports[0]["protocol"]["corpus"]
    galleries = {
        modality: len(read_gallery(folder / place))
        for modality, place in GALLERY_FOLDERS.items()
        if (folder / place).is_dir()
    }
    backbones = backbones_of(training)
    recording, picture = (find_example(folder, kind) for kind in ("recording", "picture"))
    data = ModelCardData(
        model_name=repo_id.split("/")[-1],
        language=sorted({tag.split("-")[0] for tag in training.get("languages", ())}) or None,
        license=license,
        library_name="transformers",
        pipeline_tag=_task(galleries),
        base_model=backbones or None,
        datasets=list(datasets) or ([corpus] if is_hub_id(corpus) else None),
        metrics=["recall"],
        tags=_TAGS,
        eval_results=[result for report in reports for result in eval_results(report)],
        widget=_widget(galleries, recording, picture),
        co2_eq_emissions={"emissions": training["co2_grams"]} if "co2_grams" in training else None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        repo_id=repo_id,
        speech_encoder=config["speech_config"]["model_type"],
        vision_encoder=config["vision_config"]["model_type"],
        from_scratch=training.get("pretrained") is False,
        backbones=backbones,
        training=training,
        corpus=corpus,
        licences=licences_of(corpus),
        evaluations=[as_table(report, read_cascade(folder)) for report in reports],
        sampling_rate=processor["feature_extractor"]["sampling_rate"],
        min_seconds=processor["min_seconds"],
        max_seconds=processor["max_seconds"],
        longest=MAX_CHUNKS * processor["max_seconds"],
        recording=recording.name,
        picture=picture.name,
        galleries=galleries,
        task=_task(galleries),
        requirements=[f'"{needed}"' for needed in _requirements(folder)],
        score_rule=reports[0]["protocol"]["score_rule"] or "sim",
    )


def _requirements(folder: Path) -> list[str]:
    """What the shipped code needs beside torch, as pip reads it."""
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def _task(galleries: Collection[str]) -> str:
    if "image" in galleries:
        return "audio-classification"
    return "image-classification" if galleries else "feature-extraction"


def _widget(galleries: Collection[str], recording: Path, picture: Path) -> list[dict[str, str]] | None:
    """What to try, of the one kind that the task takes."""
    if not galleries:
        return None
    shown, title = (recording, "A spoken query") if "image" in galleries else (picture, "A picture")
    return [{"src": f"examples/{shown.name}", "example_title": title}]


def check_metadata(card: ModelCard) -> None:
    """Refuse what the Hub would, as far as that is known without it; it has the last word when a card is uploaded.

    Raises:
        PublishError: the metadata are none, or lack something.
    """
    metadata = card.data.to_dict()
    needed = ("license", "library_name", "pipeline_tag", "metrics", "model-index", "tags")
    missing = [name for name in needed if not metadata.get(name)]
    if missing:
        raise PublishError(f"The card lacks {', '.join(missing)} in its metadata, without which it is not found.")


def own_card(path: Path) -> ModelCard:
    """A card that somebody wrote.

    Raises:
        PublishError: its metadata are no YAML, or lack something.
    """
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise PublishError(f"The metadata of {path} cannot be read: {error}") from error
    check_metadata(card)
    return card


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PublishError(f"{path} is no JSON: {error}. Write it again.") from error
