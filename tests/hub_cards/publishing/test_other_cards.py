"""A corpus and the metric on the Hub: what was published is what is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, HfApi
from speech_image_retrieval.corpora.building import Reading, build_from_files
from speech_image_retrieval.hub_cards.corpus_publishing import checked_card
from speech_image_retrieval.hub_cards.metric_publishing import publish_metric, stage_metric
from speech_image_retrieval.hub_cards.refusal import PublishError

from ...corpora.spoken_rows import SPLITS, file, picture, recording, row
from ...hub_client import run
from ...hub_server import HubServer


def build(folder: Path, *, shared: bool = False) -> Path:
    """A corpus of files on disk; with a picture that all splits share, or sound."""
    (folder / "media").mkdir()
    rows = []
    for place, split in enumerate(SPLITS):
        for number in range(2):
            seed = 10 * place + number
            image = file(folder / "media" / f"{seed}.png", picture(number if shared else seed))
            audio = file(folder / "media" / f"{seed}.wav", recording(seed))
            rows.append((split, row(seed, split, image=image, audio=audio)))
    build_from_files(Reading(rows), folder / "corpus", num_proc=1)
    return folder / "corpus"


def test_a_corpus_and_the_metric_come_back_from_the_hub(hub: HubServer, tmp_path: Path):
    corpus = build(tmp_path)
    script = f"""
        from speech_image_retrieval.cli import app
        def sir(*words):
            app(list(words), standalone_mode=False)
        sir("corpus", "publish", {str(corpus)!r}, "--repo-id", "org/spoken", "--license", "cc-by-4.0", "--dry-run")
        sir("publish-metric", "--repo-id", "org/recall_at_k", "--dry-run")
        from huggingface_hub import HfApi
        there = [HfApi().repo_exists("org/spoken", repo_type="dataset")]
        sir("corpus", "publish", {str(corpus)!r}, "--repo-id", "org/spoken", "--license", "cc-by-4.0", "--private")
        sir("publish-metric", "--repo-id", "org/recall_at_k")
        from speech_image_retrieval.corpora.hub import load_hub_corpus, stream_training_rows
        loaded = load_hub_corpus("org/spoken")
        import evaluate
        metric = evaluate.load("org/recall_at_k")
        print([
            there,
            HfApi().dataset_info("org/spoken").private,
            {{name: [one["caption_id"] for one in rows] for name, rows in loaded.items()}},
            loaded["test"][0]["image"]["bytes"],
            stream_training_rows("org/spoken")[1],
            metric.compute(predictions=[["a", "b"]], references=[["b"]], ks=[1, 2]),
        ])
    """
    there, private, captions, shown, streamed, measured = run(hub, tmp_path, script, token="hf_reader")
    assert there == [False] and private
    assert captions == {
        split: [f"{split}-{10 * place + number}#0" for number in range(2)] for place, split in enumerate(SPLITS)
    }
    assert shown == (tmp_path / "media" / "20.png").read_bytes()
    assert streamed == 2
    assert measured["R@1"] == 0.0 and measured["R@2"] == 100.0
    card = DatasetCard(hub.files("dataset", "org/spoken")["README.md"].decode())
    assert card.data.license == "cc-by-4.0"
    assert {split["name"]: split["num_examples"] for split in card.data.dataset_info["splits"]} == dict.fromkeys(
        SPLITS, 2
    )
    assert "| rows | 2 | 2 | 2 |" in card.text
    assert str(tmp_path) not in str(card)


def test_an_unfit_corpus_is_refused(tmp_path: Path):
    with pytest.raises(PublishError, match=r"is not fit for use, by itself or others\.\n.*picture"):
        checked_card(build(tmp_path, shared=True), "org/spoken", "cc-by-4.0", 1)


def test_a_licence_is_known_before_media_are_decoded(tmp_path: Path):
    with pytest.raises(PublishError, match=r"no licence 'cc-by'\. Did you mean .*cc-by-"):
        checked_card(tmp_path, "org/spoken", "cc-by", 1)


def test_a_metric_is_called_after_its_file(hub: HubServer, api: HfApi, tmp_path: Path):
    stage_metric(tmp_path / "metric")
    with pytest.raises(PublishError, match="publish to ORG/recall_at_k, not to org/recall"):
        publish_metric(tmp_path / "metric", "org/recall", api=api)
    assert hub.requests == []
