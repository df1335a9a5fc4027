from __future__ import annotations

from pathlib import Path

import pytest
import torch
from speech_image_retrieval.modeling.configuration_speech_image_retrieval import SpeechImageRetrievalConfig
from speech_image_retrieval.modeling.supported_backbones import refuse_unknown
from speech_image_retrieval.training.arguments import ArgumentError, load_arguments
from speech_image_retrieval.training.setup import build_config, build_model, build_objective, build_processor

CPU = torch.device("cpu")


def test_the_queue_is_never_larger_than_the_training_set(make_arguments, tmp_path):
    def objective(**changes):
        arguments = make_arguments(tmp_path, **changes)
        return build_objective(arguments, build_model(arguments, CPU), train_rows=12)

    assert len(objective(queue_size=65536).queue.rows) == 12
    assert len(objective(queue_size=5).queue.rows) == 5
    bare = objective(queue_size=0, group_size=1, momentum=None, alpha=0)
    assert bare.queue is None and bare.teacher is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_extractor": {"type": "Wav2Vec3FeatureExtractor"}}, "Wav2Vec3FeatureExtractor"),
        ({"feature_extractor": {"type": "BlipImageProcessorPil"}}, "FeatureExtractionMixin"),
        ({"image_processor": {}}, "BaseImageProcessor"),
        ({"image_processor": None}, "'type'"),
        ({"max_second": 3}, "max_second"),
    ],
    ids=str,
)
def test_a_processor_that_cannot_be_made_is_explained(change, message, make_arguments, tmp_path):
    arguments = make_arguments(tmp_path)
    arguments.processor = {**arguments.processor, **change}
    with pytest.raises(ArgumentError, match=message):
        build_processor(arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"projection_dims": 8},
        {"projection_dim": 0},
        {"projection_dim": "wide"},
        {"speech_config": {"model_type": "hubertt"}},
        {"speech_config": {"model_type": "hubert", "hidden_sise": 16}},
    ],
    ids=str,
)
def test_a_model_that_cannot_be_made_is_explained(change, make_arguments, tmp_path):
    arguments = make_arguments(tmp_path)
    arguments.model = {**arguments.model, **change}
    with pytest.raises(ArgumentError, match=r"^model") as error:
        build_model(arguments, CPU)
    assert "\n" not in str(error.value)


def test_the_nearest_name_of_a_misspelt_field_is_given(make_arguments, tmp_path):
    arguments = make_arguments(tmp_path)
    arguments.model = {**arguments.model, "speech_config": {"model_type": "hubert", "hidden_sise": 16}}
    with pytest.raises(
        ArgumentError, match=r"model\.speech_config has no field 'hidden_sise'. Did you mean 'hidden_s"
    ):
        build_model(arguments, CPU)


def test_an_encoder_that_is_not_supported_is_refused_without_pretrained_weights_too(make_arguments, tmp_path):
    arguments = make_arguments(tmp_path)
    arguments.model = {**arguments.model, "vision_config": {"model_type": "swin"}}
    with pytest.raises(ArgumentError, match=r"swin model, not a supported image encoder: choose one of blip_2_vision"):
        build_model(arguments, CPU)


def test_where_each_backbone_comes_from_reaches_the_hub(make_arguments, tmp_path, monkeypatch):
    seen = []

    def record(source, **options):
        seen.append((source, options))
        raise OSError("not there")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", record)
    arguments = make_arguments(
        tmp_path,
        model={},
        processor={},
        speech_backbone="some/speech",
        vision_backbone="some/vision",
        speech_hub_options={"revision": "abc"},
        vision_hub_options={"revision": "def", "token": "t"},
    )
    for build in (build_config, build_processor):
        seen.clear()
        with pytest.raises(ArgumentError):
            build(arguments)
        assert seen == [("some/speech", {"revision": "abc"})]
    arguments.vision_hub_options = {"revison": "def"}
    with pytest.raises(ArgumentError, match="vision_hub_options cannot hold 'revison': it takes revision, token"):
        build_config(arguments)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_configurations_that_come_along_have_no_misspelt_field(path):
    arguments = load_arguments(path, [])
    refuse_unknown(arguments.model, SpeechImageRetrievalConfig(**arguments.model), "model")
