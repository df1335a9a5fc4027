"""A tiny model as training exports it, with figures, and a Hub to publish it to from this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from speech_image_retrieval.evaluation import evaluate_retrieval
from speech_image_retrieval.evaluation.model_identity import model_identity
from speech_image_retrieval.hub_cards import publishing
from speech_image_retrieval.training.export import export_model

from ...hub_server import TOKEN, HubServer
from ...retrieval.tiny_gallery import tiny_model, tiny_processor, write_picture, write_recording

TRAINING = {
    "corpus": "org/spoken",
    "captions": 1200,
    "languages": ["cs", "en-GB"],
    "pretrained": True,
    "speech_backbone": "facebook/hubert-base-ls960",
    "vision_backbone": "facebook/dinov2-small",
    "steps": 30,
    "batch_size": 4,
    "seed": 7,
    "precision": "no",
    "device": "2 CPU cores",
    "hours": 0.25,
}


@pytest.fixture(autouse=True)
def _as_the_hub_on_loopback_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Spoken captions of a test split, in two languages."""
    folder = tmp_path_factory.mktemp("rows")
    return [
        {
            "image": {"bytes": write_picture(folder / f"{number}.png", number).read_bytes(), "path": None},
            "audio": {"bytes": None, "path": str(write_recording(folder / f"{number}.wav", number))},
            "image_id": f"picture {number}",
            "caption_id": f"caption {number}",
            "language": "en" if number % 2 else "cs",
        }
        for number in range(4)
    ]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    """What a run leaves in `model/`; not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "model"
    model, processor = tiny_model(), tiny_processor()
    export_model(model, processor, folder)
    report = evaluate_retrieval(
        model, processor, rows, corpus=str(folder.parent / "spoken" / "corpus"), split="test", group_by="language"
    )
    report["protocol"]["checkpoint"] = {"name": str(folder), "fingerprint": model_identity(model, processor)}
    (folder / "evaluation.json").write_text(json.dumps(report))
    (folder / "training.json").write_text(json.dumps(TRAINING))
    return folder


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the clean process, which takes as long as all else together."""
    monkeypatch.setattr(publishing, "check_clean_load", lambda folder: None)
