from __future__ import annotations

import json
import random

import pytest
import torch
from datasets import Dataset
from speech_image_retrieval.evaluation import (
    EncodedImages,
    EncodedSpeech,
    PackedStates,
    distinct_images,
    encode_images,
    encode_speech,
    evaluate_encoded,
    evaluate_retrieval,
    format_report,
    protocol,
)

from .slow_reference import report_of_one_query_at_a_time

NAMES = {"corpus": "digits", "split": "test"}
CUTOFFS = ("R@1", "R@5", "R@10")


@pytest.mark.parametrize("k", [1, 3, 9, 12, 1000])
@pytest.mark.parametrize("seed", [1, 2])
def test_figures_are_those_of_one_query_at_a_time(model, processor, make_rows, k, seed):
    rows = make_rows(images=11, captions_per_image=[2, 1, 3], seed=seed)
    expected = report_of_one_query_at_a_time(model, processor, rows, k)
    report = evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=k)
    for name, direction in expected.items():
        for stage in ("coarse", "reranked"):
            assert {key: report[name][stage][key] for key in CUTOFFS} == pytest.approx(direction[stage])
        assert report[name]["rerank_ceiling"] == pytest.approx(direction["rerank_ceiling"])


def test_report_has_the_documented_shape_and_is_json(model, processor, rows):
    report = evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=4)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["protocol"] == {
        "corpus": "digits",
        "split": "test",
        "images": 9,
        "captions": 18,
        "rerank_top_k": 4,
        "score_rule": "sim",
        "pool": {"standard": False, "reason": "the literature has no pool of digits"},
    }
    for name in ("speech_to_image", "image_to_speech"):
        assert set(report[name]) == {"coarse", "reranked", "chance", "rerank_top_k", "rerank_ceiling"}
        assert set(report[name]["coarse"]) == set(report[name]["reranked"]) == {*CUTOFFS, "median_rank"}
    assert set(report["intervals"]) == {"confidence", "speech_to_image", "image_to_speech", "mean_r1"}
    for stage in ("coarse", "reranked"):
        assert set(report["intervals"]["image_to_speech"][stage]) == set(CUTOFFS)
        both = report["speech_to_image"][stage]["R@1"] + report["image_to_speech"][stage]["R@1"]
        assert report["mean_r1"][stage] == pytest.approx(both / 2)


def test_top_k_is_clamped_to_each_gallery(model, processor, rows):
    report = evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=32)
    assert report["protocol"]["rerank_top_k"] == 18
    assert report["speech_to_image"]["rerank_top_k"] == 9
    assert report["image_to_speech"]["rerank_top_k"] == 18
    assert report["speech_to_image"]["rerank_ceiling"] == report["image_to_speech"]["rerank_ceiling"] == 100


def test_the_sum_of_scores_takes_the_models_temperature_and_reports_it(model, processor, rows):
    options = {**NAMES, "rerank_top_k": 6, "score_rule": "sim+sic"}
    learned, plain = (evaluate_retrieval(model, processor, rows, **options, temperature=t) for t in (None, 1.0))
    assert learned["protocol"]["temperature"] == model.rerank_temperature == 0.125
    assert plain["protocol"]["temperature"] == 1
    assert learned == evaluate_retrieval(model, processor, rows, **options, temperature=0.125)
    assert learned["mean_r1"]["reranked"] != plain["mean_r1"]["reranked"]


def test_coarse_only_never_matches_and_reports_nothing_about_reranking(model, processor, rows):
    report = evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=0)
    assert model.matched == []
    assert set(report["speech_to_image"]) == set(report["image_to_speech"]) == {"coarse", "chance"}
    assert set(report["mean_r1"]) == {"coarse"}
    assert (report["protocol"]["rerank_top_k"], report["protocol"]["score_rule"]) == (0, None)
    assert (
        report["speech_to_image"]["coarse"]
        == (evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=5)["speech_to_image"]["coarse"])
    )


def test_coarse_only_holds_no_states(model, processor, rows, monkeypatch):
    encoded = []
    monkeypatch.setattr(
        protocol, "evaluate_encoded", lambda _model, speech, images, *_, **__: encoded.extend([speech, images])
    )
    evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=0)
    assert [part.states for part in encoded] == [None, None]


def test_every_picture_is_encoded_once_and_every_caption_once(model, processor, rows):
    evaluate_retrieval(model, processor, rows, **NAMES, batch_size=4)
    assert sum(len(batch["pixel_values"]) for batch in model.batches if "pixel_values" in batch) == 9
    assert sum(len(batch["input_values"]) for batch in model.batches if "input_values" in batch) == len(rows)


def test_batch_sizes_and_storage_do_not_change_the_figures(model, processor, rows):
    expected = evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=4)
    for options in (
        {"batch_size": 1, "pairs_per_batch": 1},
        {"batch_size": 5, "pairs_per_batch": 3},
        {"states_dtype": torch.float16},  # exact: the states are small whole numbers
        {"num_workers": 1},
    ):
        assert evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=4, **options) == expected


@pytest.mark.parametrize("k", [0, 1000])
def test_order_of_rows_does_not_change_the_figures(model, processor, make_rows, k):
    rows = make_rows(images=9, captions_per_image=[2, 1, 3], seed=3)
    shuffled = random.Random(0).sample(rows, len(rows))
    reports = [evaluate_retrieval(model, processor, order, **NAMES, rerank_top_k=k) for order in (rows, shuffled)]
    for part in reports[0]["speech_to_image"].keys() & {"coarse", "reranked", "chance"}:
        for name in ("speech_to_image", "image_to_speech"):
            assert reports[0][name][part] == pytest.approx(reports[1][name][part])


@pytest.mark.parametrize("k", [1, 4, 10])
def test_order_of_galleries_does_not_change_the_figures_of_a_block(model, k):
    # without equal scores, which the boundary of the block would have to cut somewhere
    generator = torch.Generator().manual_seed(0)
    captions, images, image_of_caption = 30, 12, torch.arange(30) % 12
    speech = torch.randn(captions, 8, generator=generator), torch.randn(captions, 2, 3, generator=generator)
    pictures = torch.randn(images, 8, generator=generator), torch.randn(images, 4, 3, generator=generator)
    model.match = lambda states, mask, tokens, image_rows, speech_rows: (
        states[speech_rows, 0] * tokens[image_rows, 0]
    ).sum(dim=1)

    def report(caption_order, image_order):
        states = PackedStates.from_padded(speech[1], torch.ones(captions, 2)).select(caption_order)
        return evaluate_encoded(
            model,
            EncodedSpeech(speech[0][caption_order], states),
            EncodedImages(pictures[0][image_order], pictures[1][image_order]),
            image_order.argsort()[image_of_caption[caption_order]],
            **NAMES,
            rerank_top_k=k,
        )

    expected = report(torch.arange(captions), torch.arange(images))
    permuted = report(torch.randperm(captions, generator=generator), torch.randperm(images, generator=generator))
    for name in ("speech_to_image", "image_to_speech"):
        assert expected[name]["reranked"] == pytest.approx(permuted[name]["reranked"])
        assert expected[name]["rerank_ceiling"] == pytest.approx(permuted[name]["rerank_ceiling"])


@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_perfect_matcher_reaches_the_ceiling_and_no_more(perfect_matcher, processor, make_rows, k):
    rows = make_rows(images=10, captions_per_image=[2, 1, 3], seed=4)
    report = evaluate_retrieval(perfect_matcher, processor, rows, **NAMES, rerank_top_k=k)
    ceilings = [report[name]["rerank_ceiling"] for name in ("speech_to_image", "image_to_speech")]
    assert ceilings == [report[name]["reranked"]["R@1"] for name in ("speech_to_image", "image_to_speech")]
    assert min(ceilings) < 100, "the coarse ranking misses nothing: this test needs it to"


def test_a_perfect_matcher_over_the_whole_gallery_is_right_everywhere(perfect_matcher, processor, make_rows):
    rows = make_rows(images=10, captions_per_image=[2, 1, 3], seed=4)
    report = evaluate_retrieval(perfect_matcher, processor, rows, **NAMES, rerank_top_k=100)
    assert report["mean_r1"]["reranked"] == 100
    assert report["speech_to_image"]["reranked"]["median_rank"] == 1


def test_any_caption_of_the_image_is_a_hit():
    speech = EncodedSpeech(torch.tensor([[0.1, 0.9], [1.0, 0.0], [0.2, 0.8]]))
    images = EncodedImages(torch.eye(2))
    report = evaluate_encoded(None, speech, images, torch.tensor([0, 0, 1]), **NAMES, rerank_top_k=0)
    assert report["image_to_speech"]["coarse"]["R@1"] == 50  # the second caption finds image 0; image 1 gets caption 0
    assert report["speech_to_image"]["coarse"]["R@1"] == pytest.approx(200 / 3)
    assert report["speech_to_image"]["chance"]["R@1"] == 50
    assert report["image_to_speech"]["chance"]["R@1"] == pytest.approx(50)


def test_the_same_figures_inside_training(model, processor, rows):
    first_rows, image_of_caption = distinct_images([row["image_id"] for row in rows])
    speech = encode_speech(model, processor, [row["audio"] for row in rows])
    images = encode_images(model, processor, [rows[row]["image"] for row in first_rows])
    report = evaluate_encoded(model, speech, images, image_of_caption, **NAMES, rerank_top_k=4)
    assert report == evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=4)


def test_a_saved_corpus_is_read_like_a_list(model, processor, rows):
    dataset = Dataset.from_list([{**row, "text": None, "speaker": "s"} for row in rows])
    assert evaluate_retrieval(model, processor, dataset, **NAMES, rerank_top_k=4) == evaluate_retrieval(
        model, processor, rows, **NAMES, rerank_top_k=4
    )


def test_faults_of_the_split_are_refused(model, processor, rows):
    with pytest.raises(ValueError, match="digits, split 'test': there are no rows"):
        evaluate_retrieval(model, processor, [], **NAMES)
    with pytest.raises(ValueError, match="caption_id 'i0#0' occurs 2 times"):
        evaluate_retrieval(model, processor, [*rows, rows[0]], **NAMES)
    unreadable = {"bytes": b"1x", "path": None}
    with pytest.raises(ValueError, match="audio 'i0#1': could not convert"):
        evaluate_retrieval(model, processor, [rows[0], {**rows[1], "audio": unreadable}, *rows[2:]], **NAMES)
    with pytest.raises(ValueError, match="images 'i1': could not convert"):
        evaluate_retrieval(model, processor, [*rows[:2], {**rows[2], "image": unreadable}, *rows[3:]], **NAMES)
    model.batches.clear()
    with pytest.raises(ValueError, match="rerank_top_k must be 0"):
        evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=-1)
    with pytest.raises(ValueError, match="score_rule must be"):
        evaluate_retrieval(model, processor, rows, **NAMES, score_rule="sic")
    assert model.batches == [], "faults should show before anything is encoded"


def test_reranking_without_states_is_refused(model):
    speech, images = EncodedSpeech(torch.eye(2)), EncodedImages(torch.eye(2))
    with pytest.raises(ValueError, match="keep_states=True"):
        evaluate_encoded(model, speech, images, torch.tensor([0, 1]), **NAMES, rerank_top_k=2)


def test_a_collapsed_model_is_not_credited_with_ties(processor, rows, model):
    speech, images = EncodedSpeech(torch.ones(6, 2)), EncodedImages(torch.ones(3, 2))
    report = evaluate_encoded(None, speech, images, torch.arange(6) // 2, **NAMES, rerank_top_k=0)
    assert report["mean_r1"]["coarse"] == 0


def test_text_report_shows_protocol_figures_chance_and_ceiling(model, processor, rows):
    report = evaluate_retrieval(
        model, processor, rows, **NAMES, rerank_top_k=4, score_rule="sim+sic", temperature=0.25
    )
    text = format_report(report)
    assert "digits, split test: 9 distinct images, 18 spoken captions" in text
    assert "top 4 by the matching score plus the cosine similarity / 0.25" in text
    for name in ("speech_to_image", "image_to_speech"):
        for stage in ("coarse", "reranked", "chance"):
            figures = "".join(f"{report[name][stage][key]:>8.1f}" for key in CUTOFFS)
            assert any(line.split()[:1] == [stage] and figures in line for line in text.splitlines())
        assert f"{report[name]['rerank_ceiling']:.1f} % of queries" in text
    assert f"reranked {report['mean_r1']['reranked']:.1f}" in text
    low, high = report["intervals"]["image_to_speech"]["reranked"]["R@5"]
    assert f"R@5 {low:.1f}–{high:.1f}, " in text
    assert "Non-standard pool: the literature has no pool of digits." in text


def test_where_all_queries_fare_alike_no_interval_is_told(model, processor, rows):
    report = evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=0)
    report["intervals"]["speech_to_image"]["coarse"]["R@1"] = [0.0, 0.0]
    assert "R@1 undetermined, R@5" in format_report(report)


def test_text_report_of_a_coarse_evaluation_speaks_of_no_reranking(model, processor, rows):
    text = format_report(evaluate_retrieval(model, processor, rows, **NAMES, rerank_top_k=0))
    assert "rank" in text
    assert "re-ranked" not in text
    assert "reranked" not in text


def test_groups_of_queries_meet_the_whole_gallery(model, processor, rows):
    tongues = ["fr" if place % 3 else "en" for place in range(len(rows))]
    spoken = [{**row, "language": tongue} for row, tongue in zip(rows, tongues, strict=True)]
    report = evaluate_retrieval(
        model, processor, spoken, corpus="c", split="test", rerank_top_k=4, group_by="language"
    )
    direction = report["speech_to_image"]
    groups = direction["groups"]
    assert {name: group["captions"] for name, group in groups.items()} == {
        "en": tongues.count("en"),
        "fr": tongues.count("fr"),
    }
    for stage in ("coarse", "reranked"):
        for cutoff in ("R@1", "R@5", "R@10"):
            mean = sum(group["captions"] * group[stage][cutoff] for group in groups.values()) / len(rows)
            assert mean == pytest.approx(direction[stage][cutoff])
    assert "  fr, " in format_report(report)
    silent = evaluate_retrieval(model, processor, rows, corpus="c", split="test", rerank_top_k=4)
    assert "groups" not in silent["speech_to_image"]
