"""A run publishes its model at the end and on the way, and never dies of the Hub before its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from speech_image_retrieval import SpeechImageRetrievalModel, SpeechImageRetrievalProcessor
from speech_image_retrieval.evaluation.model_identity import model_identity
from speech_image_retrieval.training.loop import Trainer


def fingerprint_of(folder: Path) -> str:
    model = SpeechImageRetrievalModel.from_pretrained(folder)
    return model_identity(model, SpeechImageRetrievalProcessor.from_pretrained(folder))


class Hub:
    """Keeps what it is given to publish, and fails at it."""

    def __init__(self, failing: bool):
        self.failing = failing
        self.seen: list[tuple[str, int]] = []

    def publish(self, folder: Path, example: dict) -> None:
        report, record = (json.loads((folder / f"{name}.json").read_text()) for name in ("evaluation", "training"))
        assert (folder / "model.safetensors").is_file() and example["image_id"] == "test-0"
        assert report["protocol"]["checkpoint"] == {"name": "model", "fingerprint": fingerprint_of(folder)}
        self.seen.append((report["protocol"]["split"], record["steps"]))
        if self.failing:
            raise RuntimeError("[the Hub] is away")


def test_the_model_so_far_is_published_with_every_nth_checkpoint(make_arguments, tmp_path: Path):
    hub = Hub(failing=False)
    Trainer(
        make_arguments(tmp_path, num_epochs=4, push_to_hub="org/a", license="mit", push_every_checkpoints=2),
        publish=hub.publish,
    ).run()
    assert [split for split, _ in hub.seen] == ["validation", "test"]
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    expected = {"corpus": "tones", "captions": 12, "languages": [], "pretrained": False, "batch_size": 4, "seed": 0}
    assert {name: record[name] for name in expected} == expected
    assert record["hours"] > 0 and "speech_backbone" not in record


def test_training_survives_a_hub_that_fails_and_says_so(make_arguments, tmp_path: Path, capsys):
    hub = Hub(failing=True)
    arguments = make_arguments(tmp_path, push_to_hub="org/a", license="mit", push_every_checkpoints=1)
    with pytest.raises(RuntimeError, match="is away"):
        Trainer(arguments, publish=hub.publish).run()
    assert [split for split, _ in hub.seen] == ["validation", "validation", "test"]
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.count("was not published, and training goes on. RuntimeError: [the Hub] is away") == 2
    report = json.loads((tmp_path / "evaluation.json").read_text())  # all was written before
    assert report["protocol"]["split"] == "test"
    again = Hub(failing=False)
    Trainer(arguments, publish=again.publish).run()  # the same command publishes what had not been
    assert [split for split, _ in again.seen] == ["test"]


def test_the_time_of_an_interrupted_run_adds_up(make_arguments, tmp_path: Path, monkeypatch):
    arguments = make_arguments(tmp_path)
    trainer = Trainer(arguments)
    trainer.started -= 7200  # as if the first session had taken two hours
    monkeypatch.setattr(trainer.run_model, "finish", lambda *_: {})
    trainer.run()
    resumed = Trainer(arguments)
    resumed._resume()
    assert 2 <= resumed._seconds / 3600 < 3
