"""The card says what the report and the record of training say, and its metadata are what the Hub reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from speech_image_retrieval.evaluation.report_text import interval
from speech_image_retrieval.hub_cards.model_card import (
    check_metadata,
    own_card,
    published_report,
    read_reports,
    render_model_card,
)
from speech_image_retrieval.hub_cards.refusal import PublishError
from speech_image_retrieval.hub_cards.staging import stage_model

from .conftest import TRAINING


@pytest.fixture
def staged(exported: Path, rows, tmp_path: Path) -> Path:
    """A staged folder without its card."""
    stage_model(exported, tmp_path / "model", rows[0], (), "sim")
    return tmp_path / "model"


def card_of(folder: Path) -> ModelCard:
    reports = [published_report(report) for report in read_reports(folder).values()]
    return render_model_card(folder, "org/tiny", reports, license="mit")


def written(folder: Path, training: dict) -> str:
    (folder / "training.json").unlink()
    (folder / "training.json").write_text(json.dumps(training))
    return card_of(folder).text


def test_the_metadata_are_what_the_hub_reads(staged: Path):
    card = card_of(staged)
    check_metadata(card)
    metadata = ModelCard(str(card)).data.to_dict()  # as it is read back
    assert {name: metadata[name] for name in ("license", "library_name", "pipeline_tag", "metrics", "datasets")} == {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",  # without a gallery, no widget could answer
        "metrics": ["recall"],
        "datasets": ["org/spoken"],
    }
    assert metadata["base_model"] == [TRAINING["speech_backbone"], TRAINING["vision_backbone"]]
    assert metadata["language"] == ["cs", "en"]
    assert "speech-image-retrieval" in metadata["tags"]
    assert "widget" not in metadata and "co2_eq_emissions" not in metadata


def test_the_model_index_holds_the_figures_with_their_protocol(staged: Path):
    report = json.loads((staged / "evaluation.json").read_text())
    name, results = model_index_to_eval_results(ModelCard(str(card_of(staged))).data.to_dict()["model-index"])
    assert name == "tiny"
    figures = {result.metric_name: result for result in results}
    assert len(figures) == len(results) == 12
    for direction, title in (("speech_to_image", "speech to image"), ("image_to_speech", "image to speech")):
        for stage, words in (("coarse", "coarse"), ("reranked", "re-ranked")):
            for k in (1, 5, 10):
                result = figures[f"R@{k}, {title}, {words}"]
                assert result.metric_value == pytest.approx(report[direction][stage][f"R@{k}"], abs=0.01)
                assert result.dataset_args["images"] == 4 and result.dataset_split == "test"
                assert ("score_rule" in result.metric_args) == (stage == "reranked")


def test_the_table_has_figures_with_intervals_and_slices(staged: Path):
    report = json.loads((staged / "evaluation.json").read_text())
    text = card_of(staged).text
    figures, bounds = report["speech_to_image"]["reranked"], report["intervals"]["speech_to_image"]["reranked"]
    cells = [f"{figures[f'R@{k}']:.1f} ({interval(bounds[f'R@{k}'])})" for k in (1, 5, 10)]
    top_k = report["speech_to_image"]["rerank_top_k"]
    row = f"| speech to image, re-ranked, top {top_k} | {' | '.join(cells)} | {figures['median_rank']:.1f} |"
    assert row in text.splitlines()
    assert "Non-standard pool: the literature has no pool of spoken." in text
    slices = report["speech_to_image"]["groups"]
    assert sorted(slices) == ["cs", "en"]
    assert f"| en | {slices['en']['captions']} | coarse | {slices['en']['coarse']['R@1']:.1f} |" in text


CASCADE = {
    "protocol": {
        "corpus": "/home/me/spoken/corpus",
        "split": "test",
        "images": 4,
        "captions": 4,
        "whisper": "a/tiny.en",
    },
    **{
        direction: {"cascade": {"R@1": 25.0, "R@5": 75.0, "R@10": 100.0, "median_rank": 2.0}}
        for direction in ("speech_to_image", "image_to_speech")
    },
}


def test_a_cascade_is_shown_beside_the_figures_of_the_same_pool_only(staged: Path):
    (staged / "cascade.json").write_text(json.dumps(CASCADE))
    row = "| speech to image, cascade: tiny.en, transcripts against captions | 25.0 | 75.0 | 100.0 | 2.0 |"
    assert row in card_of(staged).text.splitlines()
    (staged / "cascade.json").write_text(json.dumps({**CASCADE, "protocol": {**CASCADE["protocol"], "images": 3}}))
    assert "cascade: tiny.en" not in card_of(staged).text
    (staged / "cascade.json").write_text("{}")
    with pytest.raises(PublishError, match=r"cascade\.json is not what benchmarks\.cascade writes"):
        card_of(staged)


def test_paragraphs_are_one_blank_line_apart(staged: Path):
    assert "\n\n\n" not in str(card_of(staged))


def test_what_was_not_recorded_is_not_said(staged: Path):
    text = written(staged, TRAINING)
    assert "30 steps of 4 pairs, seed 7, in float32; 0.25 hours on 2 CPU cores." in text
    assert "training began with facebook/hubert-base-ls960 and facebook/dinov2-small" in text
    assert "The licences of facebook/hubert-base-ls960 and facebook/dinov2-small hold for these weights, too." in text
    assert "CO2" not in text and "random weights" not in text
    scratch = {**TRAINING, "pretrained": False, "co2_grams": 12.5}
    for name in ("speech_backbone", "vision_backbone", "hours"):
        del scratch[name]
    text = written(staged, scratch)
    assert "Measured emissions: 12.5 g of CO2." in text
    assert "both were trained from random weights" in text and "understands the voices and the things of" in text
    assert "hours" not in text and "hold for these weights" not in text
    (staged / "training.json").unlink()
    text = card_of(staged).text
    assert "steps" not in text and "random weights" not in text and "Trained on spoken" in text


def test_lengths_and_rate_are_the_processors(staged: Path):
    text = card_of(staged).text
    assert "Speech at 16000 Hz" in text
    assert "From 0.25 s" in text and "to 128 s; clips of more than 2 s are heard in chunks" in text
    assert "do not depend on the batch" in text


def test_an_own_card_must_be_found_too(staged: Path, tmp_path: Path):
    card = card_of(staged)
    card.save(tmp_path / "own.md")
    assert str(own_card(tmp_path / "own.md")) == str(card)
    del card.data.license
    card.save(tmp_path / "own.md")
    with pytest.raises(PublishError, match="lacks license"):
        own_card(tmp_path / "own.md")
    (tmp_path / "own.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(PublishError, match=r"metadata of .*own\.md cannot be read"):
        own_card(tmp_path / "own.md")


def test_staging_writes_nothing_into_the_model(exported: Path, rows, tmp_path: Path):
    model = Path(shutil.copytree(exported, tmp_path / "own"))
    (model / "handler.py").write_text("old = 1\n")
    stage_model(model, tmp_path / "staged", rows[0], (), "sim")
    assert (model / "handler.py").read_text() == "old = 1\n"
    assert "EndpointHandler" in (tmp_path / "staged" / "handler.py").read_text()
    assert not (model / "examples").exists()
