from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from speech_image_retrieval.modeling.configuration_speech_image_retrieval import SpeechImageRetrievalConfig
from speech_image_retrieval.training.arguments import ArgumentError, load_arguments
from speech_image_retrieval.training.setup import (
    _refuse_unknown,
    build_model,
    build_objective,
    build_optimizers,
    build_processor,
    freeze_bottom_layers,
    keep_frozen_in_evaluation,
    learning_rate_factor,
)
from torch import nn

CPU = torch.device("cpu")


class Backbone(nn.Module):
    """A front end, a short list of blocks in it, and three layers."""

    def __init__(self):
        super().__init__()
        self.front = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
        self.norm = nn.LayerNorm(2)


def trained(module: nn.Module) -> set[str]:
    return {name.rsplit(".", 1)[0] for name, part in module.named_parameters() if part.requires_grad}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, {"front.0", "front.1", "layers.0", "layers.1", "layers.2", "norm"}),
        (1, {"layers.1", "layers.2"}),
        (3, set()),
        (-1, set()),
    ],
)
def test_layers_are_frozen_from_the_bottom(count, expected):
    backbone = Backbone()
    freeze_bottom_layers(backbone, count)
    assert trained(backbone) - {"norm"} == expected - {"norm"}


def test_more_layers_than_there_are_cannot_be_frozen():
    with pytest.raises(ArgumentError, match="has 3 layers; 4"):
        freeze_bottom_layers(Backbone(), 4)


def test_a_frozen_share_is_taken_of_the_backbones_transformer_layers(make_arguments, tmp_path):
    model = build_model(make_arguments(tmp_path, frozen_speech_layers=1, frozen_vision_layers=-1), CPU)
    assert not trained(model.vision_backbone)
    speech = trained(model.speech_backbone)
    assert any(".layers.1." in f".{name}" for name in speech)
    assert not any(".layers.0." in f".{name}" or "conv" in name for name in speech)


def test_what_is_frozen_behaves_as_in_evaluation(make_arguments, tmp_path):
    model = build_model(make_arguments(tmp_path, frozen_speech_layers=1, frozen_vision_layers=-1), CPU).train()
    keep_frozen_in_evaluation(model)
    assert not any(part.training for part in model.vision_backbone.modules() if list(part.parameters()))
    first, second = model.speech_backbone.encoder.layers[:2]
    assert not first.attention.training
    assert second.attention.training
    assert model.speech_transformer.training


def rates_of(optimizers) -> dict[int, tuple[type, float, float, float]]:
    """By parameter: the kind of optimizer, the rate, its peak and the weight decay."""
    groups = [(type(optimizer), group) for optimizer in optimizers for group in optimizer.param_groups]
    settings = {
        id(p): (kind, group["lr"], group["peak_lr"], group["weight_decay"])
        for kind, group in groups
        for p in group["params"]
    }
    assert sum(len(group["params"]) for _, group in groups) == len(settings)
    return settings


def test_the_optimizer_holds_every_trained_parameter_once_at_its_rate(make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, frozen_speech_layers=1, muon_learning_rate=None, weight_decay=0.1)
    model = build_model(arguments, CPU)
    settings = rates_of(build_optimizers(arguments, model))
    named = {name: part for name, part in model.named_parameters() if part.requires_grad}
    assert {id(part) for part in named.values()} == set(settings)
    for name, part in named.items():
        rate = arguments.learning_rate
        assert settings[id(part)] == (torch.optim.AdamW, rate, rate, 0.1 if part.ndim > 1 else 0.0), name


def test_muon_takes_the_matrices_inside_layers_and_nothing_else(make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, frozen_speech_layers=1, muon_learning_rate=0.02, weight_decay=0.1)
    model = build_model(arguments, CPU)
    settings = rates_of(build_optimizers(arguments, model))
    named = {name: part for name, part in model.named_parameters() if part.requires_grad}
    assert {id(part) for part in named.values()} == set(settings)
    by_muon = {name for name, part in named.items() if settings[id(part)][0] is torch.optim.Muon}
    assert all(settings[id(named[n])][3] == 0.1 for n in by_muon)
    assert {"speech_transformer.layers.0.self_attention.q_proj.weight", "speech_input.weight"} <= by_muon
    assert settings[id(model.multimodal_encoder.layers[0].cross_attention.v_proj.weight)][1] == 0.02
    assert not by_muon & {"speech_projection.weight", "image_projection.weight", "matching_head.weight"}
    assert all(named[name].ndim == 2 and "embed" not in name for name in by_muon)


def test_the_learning_rate_warms_up_and_ends_at_its_minimum(make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, warmup_steps=4, min_learning_rate_ratio=0.2)
    factors = [learning_rate_factor(arguments, step, 20) for step in range(21)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[4:]))
    assert factors[12] == pytest.approx(0.6)
    assert factors[20] == pytest.approx(0.2)
    assert learning_rate_factor(arguments, 25, 20) == pytest.approx(0.2)
    arguments.warmup_steps = 0
    assert learning_rate_factor(arguments, 0, 20) == 1.0
    arguments.warmup_steps = 30
    assert learning_rate_factor(arguments, 19, 20) == pytest.approx(20 / 30)


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
        ({"image_processor": None}, "`type`"),
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
    with pytest.raises(ArgumentError, match="model: "):
        build_model(arguments, CPU)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_configurations_that_come_along_have_no_misspelt_field(path):
    arguments = load_arguments(path, [])
    _refuse_unknown(arguments.model, SpeechImageRetrievalConfig(**arguments.model), "model")
