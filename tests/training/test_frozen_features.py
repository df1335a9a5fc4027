"""Frozen backbones run once; what is cached stands in for media without changing what is learned."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from speech_image_retrieval.corpora.schema import CorpusError, load_corpus, save_corpus, split_from_rows
from speech_image_retrieval.evaluation import embedding, evaluate_retrieval
from speech_image_retrieval.processing import processing_speech_image_retrieval as processing
from speech_image_retrieval.training import frozen_features
from speech_image_retrieval.training.arguments import ArgumentError
from speech_image_retrieval.training.examples import Collator, ExampleReader, SpokenCaptions
from speech_image_retrieval.training.frozen_features import FeatureProcessor, cached_rows, distinct_pictures
from speech_image_retrieval.training.loop import Trainer
from speech_image_retrieval.training.setup import build_model, build_objective, build_processor

from ..fresh_process import run_script
from .conftest import square, tone

FROZEN = {"trainable_speech_layers": 0, "trainable_vision_layers": 0}


@pytest.fixture
def corpus(make_corpus):
    return make_corpus()


@pytest.fixture
def run(make_arguments, corpus, tmp_path):
    """Arguments, model and processor of a run with frozen backbones."""
    torch.manual_seed(0)
    arguments = make_arguments(tmp_path / "run", corpus=str(corpus), **FROZEN)
    arguments.processor = {**arguments.processor, "min_seconds": 0.05}
    return arguments, build_model(arguments, torch.device("cpu")).eval(), build_processor(arguments)


def rows_of(run, corpus, split: str = "train"):
    _, model, processor = run
    return cached_rows(
        model, processor, load_corpus(corpus)[split], split, corpus, precision="no", autocast=nullcontext
    )


def refuse(*args, **kwargs):
    raise AssertionError("decoded again")


def test_a_batch_of_cached_features_encodes_as_its_media_do(run, corpus):
    _, model, processor = run
    split = load_corpus(corpus)["train"]
    media = SpokenCaptions(split, ExampleReader(processor))
    cached = SpokenCaptions(rows_of(run, corpus), ExampleReader(processor))
    collate = Collator(processor.time_axis)
    rows = [7, 0, 3, 11]
    one, other = collate([media[row] for row in rows]), collate([cached[row] for row in rows])
    assert torch.equal(one.image_ids, other.image_ids) and torch.equal(one.rows, other.rows)
    assert set(other.speech) == {"backbone_features", "attention_mask"} and set(other.image) == {"backbone_features"}
    with torch.no_grad():
        for encode, name in ((model.get_speech_features, "speech"), (model.get_image_features, "image")):
            ours, theirs = encode(**getattr(other, name)), encode(**getattr(one, name))
            # bfloat16 has 8 bits.
            torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, atol=2e-2, rtol=0)


def test_nothing_is_decoded_or_encoded_again(run, corpus, monkeypatch):
    first = rows_of(run, corpus)[3]
    for name in ("load_speech", "load_image"):
        monkeypatch.setattr(processing, name, refuse)
    monkeypatch.setattr(run[1], "get_speech_backbone_features", refuse)
    monkeypatch.setattr(run[1], "get_image_backbone_features", refuse)
    second = rows_of(run, corpus)
    assert torch.equal(first["audio"], second[3]["audio"]) and torch.equal(first["image"], second[3]["image"])
    SpokenCaptions(second, ExampleReader(run[2]))[3]


def test_another_process_finds_the_cache(run, corpus, tmp_path):
    rows_of(run, corpus)
    run[1].save_pretrained(tmp_path / "model")
    run[2].save_pretrained(tmp_path / "model")
    code = """
import sys
from contextlib import nullcontext
from speech_image_retrieval import SpeechImageRetrievalModel, SpeechImageRetrievalProcessor
from speech_image_retrieval.corpora.schema import load_corpus
from speech_image_retrieval.training.frozen_features import cached_rows
model = SpeechImageRetrievalModel.from_pretrained(sys.argv[1])
for backbone in (model.speech_backbone, model.vision_backbone):
    backbone.requires_grad_(False)
model.get_speech_backbone_features = model.get_image_backbone_features = None
processor = SpeechImageRetrievalProcessor.from_pretrained(sys.argv[1])
split = load_corpus(sys.argv[2])["train"]
cached_rows(model, processor, split, "train", sys.argv[2], precision="no", autocast=nullcontext)
"""
    done = run_script(code, tmp_path / "model", corpus)
    assert done.returncode == 0, done.stderr


def _folders(corpus) -> set[str]:
    return {path.name for path in corpus.with_name(f"{corpus.name}.features").iterdir()}


@pytest.mark.parametrize(
    "what",
    [
        "speech weights",
        "image weights",
        "layers",
        "vision layer",
        "pooling",
        "picture size",
        "seconds",
        "training only",
        "recordings",
        "captions",
        "precision",
    ],
)
def test_a_cache_belongs_to_weights_preprocessing_and_corpus(run, corpus, what):
    _, model, processor = run
    split = load_corpus(corpus)["train"]
    split._fingerprint = "same"
    cached_rows(model, processor, split, "train", corpus, precision="no", autocast=nullcontext)
    before = _folders(corpus)
    precision = "no"
    with torch.no_grad():
        if what == "speech weights":
            next(model.speech_backbone.parameters()).add_(1e-3)
        elif what == "image weights":
            next(model.vision_backbone.parameters()).add_(1e-3)
        elif what == "layers":
            model.speech_layers = [1]
        elif what == "vision layer":
            model.config.vision_feature_layer = 1
        elif what == "pooling":
            model.config.speech_pooling = 2
        elif what == "seconds":
            processor.max_seconds = 7.0
        elif what == "training only":
            for config in (model.speech_backbone.config, model.vision_backbone.config):
                config.attention_dropout = 0.4
            model.speech_backbone.config.update({"layerdrop": 0.3, "mask_time_prob": 0.2, "apply_spec_augment": False})
        elif what == "picture size":
            processor.image_processor.image_mean = [0.1, 0.2, 0.3]
        elif what == "precision":
            precision = "bf16"
        else:
            rows = [dict(row) for row in load_corpus(corpus)["train"]]
            for number, row in enumerate(rows):
                row["caption_id"] = f"again-{number}"
            if what == "recordings":
                rows[0]["audio"] = {"bytes": tone(900, 0.15), "path": None}
            splits = dict(load_corpus(corpus).items())
            save_corpus({**splits, "train": split_from_rows(lambda: iter(rows))}, corpus)
    split = load_corpus(corpus)["train"]
    # As `datasets` gives it: the same for two corpora by one generator, whatever that reads, and another when rebuilt.
    split._fingerprint = "same" if what == "recordings" else what
    cached_rows(model, processor, split, "train", corpus, precision=precision, autocast=nullcontext)
    new = {name.rsplit("-", 1)[0] for name in _folders(corpus) - before}
    changed = {
        "speech weights": {"train-audio"},
        "image weights": {"train-image"},
        "layers": {"train-audio"},
        "vision layer": {"train-image"},
        "pooling": {"train-audio"},
        "picture size": {"train-image"},
        "seconds": {"train-audio"},
        "recordings": {"train-audio"},
        "training only": set(),
        "captions": set(),
        "precision": {"train-audio", "train-image"},
    }
    assert new == changed[what]


def test_the_size_is_told_before_anything_is_kept(run, corpus, capsys):
    rows = rows_of(run, corpus)
    lines = [line for line in capsys.readouterr().err.splitlines() if ": about " in line]
    assert [line.partition(":")[0] for line in lines] == ["audio features, train", "image features, train"]
    assert all(f" in {corpus}.features/train-" in line for line in lines)
    told = float(lines[1].partition("about ")[2].split()[0]) * 1e6
    pictures = len(set(load_corpus(corpus)["train"]["image_id"]))
    assert abs(told - 2 * pictures * rows[0]["image"].numel()) <= 0.05e6
    rows_of(run, corpus)
    assert "about" not in capsys.readouterr().err


def test_a_disk_without_the_space_is_refused_before_anything_is_kept(run, corpus, monkeypatch):
    monkeypatch.setattr(frozen_features.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(ArgumentError, match=r"audio features, train: about .* MB in .*, where 0\.0 MB are") as error:
        rows_of(run, corpus)
    assert "\n" not in str(error.value)
    assert not corpus.with_name(f"{corpus.name}.features").exists()


def test_media_are_hashed_in_slices_in_the_order_of_rows(run, corpus, monkeypatch):
    split = load_corpus(corpus)["train"]
    whole = list(frozen_features._identities(split, "audio"))
    monkeypatch.setattr(frozen_features, "_SLICE", 5)
    assert list(frozen_features._identities(split, "audio")) == whole
    assert list(frozen_features._identities(split.select([7, 2]), "audio")) == [whole[7], whole[2]]


def test_a_file_that_was_replaced_is_encoded_again(run, tmp_path):
    def rows():
        for number in range(3):
            (tmp_path / f"{number}.png").write_bytes(square((50 * number, 0, 0)))
            (tmp_path / f"{number}.wav").write_bytes(tone(300 + number, 0.15))
            yield {
                "image": {"bytes": None, "path": str(tmp_path / f"{number}.png")},
                "audio": {"bytes": None, "path": str(tmp_path / f"{number}.wav")},
                "image_id": str(number),
                "caption_id": str(number),
                "text": None,
                "speaker": None,
                "language": None,
            }

    _, model, processor = run
    split, options = split_from_rows(rows), {"precision": "no", "autocast": nullcontext}
    first = cached_rows(model, processor, split, "train", tmp_path / "files", **options)
    (tmp_path / "1.wav").write_bytes(tone(900, 0.19))
    second = cached_rows(model, processor, split, "train", tmp_path / "files", **options)
    assert first[1]["audio"].shape != second[1]["audio"].shape
    assert torch.equal(first[1]["image"], second[1]["image"])


def test_several_pictures_of_one_image_id_are_told_apart(run, tmp_path):
    def rows():
        for number, colour in enumerate(((255, 0, 0), (0, 0, 255), (255, 0, 0))):
            yield {
                "image": {"bytes": square(colour), "path": None},
                "audio": {"bytes": tone(300, 0.15), "path": None},
                "image_id": "heart",
                "caption_id": str(number),
                "text": None,
                "speaker": None,
                "language": None,
            }

    corpus = tmp_path / "styles"
    save_corpus({name: split_from_rows(rows) for name in ("train", "validation", "test")}, corpus)
    numbers, first_rows = distinct_pictures(load_corpus(corpus)["train"])
    assert numbers.tolist() == [0, 1, 0] and first_rows == [0, 1]
    cached = rows_of(run, corpus)
    assert torch.equal(cached[0]["image"], cached[2]["image"])
    assert not torch.equal(cached[0]["image"], cached[1]["image"])
    in_memory = SpokenCaptions(load_corpus(corpus)["train"], ExampleReader(run[2]), cache=True)
    first, second = (in_memory[row]["image"]["pixel_values"] for row in (0, 1))
    assert not torch.equal(first, second)


def test_retrieval_on_cached_rows_is_that_on_media(run, corpus):
    _, model, processor = run
    options = {"corpus": "tones", "split": "validation", "rerank_top_k": 2}
    split = load_corpus(corpus)["validation"]
    one = evaluate_retrieval(model, processor, split, **options)
    other = evaluate_retrieval(model, FeatureProcessor(processor), rows_of(run, corpus, "validation"), **options)
    assert one["protocol"] == other["protocol"]
    embeds = [
        embedding.encode_speech(model, prepare, [rows[row]["audio"] for row in range(len(rows))]).embeddings
        for prepare, rows in ((processor, split), (FeatureProcessor(processor), rows_of(run, corpus, "validation")))
    ]
    torch.testing.assert_close(*embeds, atol=2e-2, rtol=0)


def test_one_frozen_backbone_is_cached_and_the_other_reads_media(run, corpus):
    _, model, processor = run
    model.speech_backbone.requires_grad_(True)
    row = SpokenCaptions(rows_of(run, corpus), ExampleReader(processor))[2]
    assert set(row["speech"]) == {"input_values", "attention_mask"} and set(row["image"]) == {"backbone_features"}


def test_without_a_frozen_backbone_there_is_nothing_to_cache(run, corpus):
    run[1].requires_grad_(True)
    with pytest.raises(ArgumentError, match="trainable_speech_layers=0 or trainable_vision_layers=0"):
        rows_of(run, corpus)


def test_a_recording_that_cannot_be_read_is_named(run, corpus):
    rows = [dict(row) for row in load_corpus(corpus)["train"]]
    rows[4]["audio"] = {"bytes": b"RIFF no sound", "path": None}
    splits = dict(load_corpus(corpus).items())
    save_corpus({**splits, "train": split_from_rows(lambda: iter(rows))}, corpus)
    with pytest.raises(CorpusError, match=rows[4]["caption_id"]):
        rows_of(run, corpus)


def test_a_run_with_the_cache_goes_as_one_without(make_arguments, corpus, tmp_path, monkeypatch):
    # In full precision of what is stored, the two would be equal; bfloat16 leaves the losses close.
    changes = {**FROZEN, "corpus": str(corpus), "max_steps": 4, "num_epochs": 2, "group_size": 1}
    runs = {}
    for name, cache in (("media", False), ("features", True)):
        arguments = make_arguments(tmp_path / name, feature_cache=cache, **changes)
        arguments.model["multimodal_config"] = {
            **arguments.model["multimodal_config"],
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        }
        Trainer(arguments).run()
        lines = (tmp_path / name / "log.csv").read_text().splitlines()
        runs[name] = [float(line.split(",")[2]) for line in lines if ",loss/SIC," in line]
    assert len(runs["media"]) == 4
    torch.testing.assert_close(torch.tensor(runs["media"]), torch.tensor(runs["features"]), atol=2e-2, rtol=0)
    monkeypatch.setattr(frozen_features, "_encode_speech", refuse)
    Trainer(make_arguments(tmp_path / "again", feature_cache=True, **changes))


def test_a_frozen_backbone_runs_once_for_student_and_teacher(run, corpus):
    arguments, model, processor = run
    objective = build_objective(replace(arguments, momentum=0.9), model, 12)
    examples = SpokenCaptions(load_corpus(corpus)["train"], ExampleReader(processor))
    batch = Collator(processor.time_axis)([examples[row] for row in (0, 2, 4)])
    calls = []
    for backbone in (model.speech_backbone, model.vision_backbone):
        backbone.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    objective(batch)
    assert sorted(calls) == ["Blip2VisionModel", "HubertModel"]


def test_spectrograms_are_not_computed_in_the_precision_of_the_encoder(run, corpus):
    arguments, model, _ = run
    spectrogram = {"type": "WhisperFeatureExtractor", "feature_size": 8}
    processor = build_processor(
        replace(arguments, processor={**arguments.processor, "feature_extractor": spectrogram})
    )
    model.get_speech_backbone_features = lambda input_features, attention_mask: (
        input_features.transpose(1, 2).unsqueeze(2),
        attention_mask.bool(),
    )
    split = load_corpus(corpus)["train"]
    seen = []
    for autocast in (nullcontext, partial(torch.autocast, "cpu", torch.bfloat16)):
        rows = cached_rows(model, processor, split, "train", corpus, precision=str(autocast), autocast=autocast)
        seen.append(rows[0]["audio"])
    assert torch.equal(*seen)
