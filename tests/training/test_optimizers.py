from __future__ import annotations

import itertools

import pytest
import torch
from speech_image_retrieval.training.muon import Muon
from speech_image_retrieval.training.optimizers import build_optimizers, learning_rate_factor
from speech_image_retrieval.training.setup import build_model

CPU = torch.device("cpu")


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


def settings_by_name(arguments) -> dict[str, tuple[type, float, float, float]]:
    model = build_model(arguments, CPU)
    settings = rates_of(build_optimizers(arguments, model))
    named = {name: part for name, part in model.named_parameters() if part.requires_grad}
    assert {id(part) for part in named.values()} == set(settings), "every trained parameter, and no other"
    return {name: settings[id(part)] for name, part in named.items()}


def test_the_optimizer_holds_every_trained_parameter_once_at_its_rate(make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, trainable_speech_layers=1, muon_learning_rate=None, weight_decay=0.1)
    model = build_model(arguments, CPU)
    settings = rates_of(build_optimizers(arguments, model))
    named = {name: part for name, part in model.named_parameters() if part.requires_grad}
    assert {id(part) for part in named.values()} == set(settings)
    for name, part in named.items():
        rate = arguments.learning_rate
        assert settings[id(part)] == (torch.optim.AdamW, rate, rate, 0.1 if part.ndim > 1 else 0.0), name


@pytest.mark.parametrize(("mixed_precision", "bfloat16"), [("no", False), ("bf16", True), ("auto", True)])
def test_muon_is_as_precise_as_the_run(make_arguments, tmp_path, mixed_precision, bfloat16):
    arguments = make_arguments(tmp_path, muon_learning_rate=0.02, mixed_precision=mixed_precision)
    _, muon = build_optimizers(arguments, build_model(arguments, CPU))
    assert muon.bfloat16 == bfloat16


def test_muon_takes_the_matrices_inside_layers_and_nothing_else(make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, trainable_speech_layers=1, muon_learning_rate=0.02, weight_decay=0.1)
    model = build_model(arguments, CPU)
    settings = rates_of(build_optimizers(arguments, model))
    named = {name: part for name, part in model.named_parameters() if part.requires_grad}
    assert {id(part) for part in named.values()} == set(settings)
    by_muon = {name for name, part in named.items() if settings[id(part)][0] is Muon}
    assert all(settings[id(named[n])][3] == 0.1 for n in by_muon)
    assert {"speech_transformer.layers.0.self_attention.q_proj.weight", "speech_input.weight"} <= by_muon
    assert settings[id(model.multimodal_encoder.layers[0].cross_attention.v_proj.weight)][1] == 0.02
    assert not by_muon & {"speech_projection.weight", "image_projection.weight", "matching_head.weight"}
    assert all(named[name].ndim == 2 and "embed" not in name for name in by_muon)


@pytest.mark.parametrize("muon", [None, 2e-2])
def test_each_part_has_its_rate_and_each_layer_less_than_the_one_above(muon, make_arguments, tmp_path):
    settings = settings_by_name(
        make_arguments(
            tmp_path,
            learning_rate=1e-3,
            muon_learning_rate=muon,
            speech_learning_rate=1e-4,
            layer_decay=0.5,
        )
    )
    shares = {  # of the rate of the parts without a backbone
        "speech_backbone.encoder.layer_norm.weight": 0.1,
        "speech_backbone.encoder.layers.1.attention.q_proj.weight": 0.1,
        "speech_backbone.encoder.layers.0.attention.q_proj.weight": 0.05,
        "speech_backbone.encoder.layers.0.layer_norm.bias": 0.05,
        "speech_backbone.feature_projection.projection.weight": 0.025,
        "speech_backbone.feature_extractor.conv_layers.0.conv.weight": 0.025,
        "vision_backbone.post_layernorm.weight": 1.0,
        "vision_backbone.encoder.layers.1.mlp.fc1.weight": 1.0,
        "vision_backbone.encoder.layers.0.mlp.fc1.weight": 0.5,
        "vision_backbone.embeddings.class_embedding": 0.25,
        "speech_input.weight": 1.0,
        "logit_scale": 1.0,
    }
    for name, share in shares.items():
        kind, rate, peak, _ = settings[name]
        base = 1e-3 if kind is torch.optim.AdamW else muon
        assert rate == peak == pytest.approx(share * base), name
    kinds = {settings[name][0] for name in shares}
    assert kinds == ({torch.optim.AdamW, Muon} if muon else {torch.optim.AdamW})


def test_the_first_group_has_the_rate_of_the_arguments(make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, speech_learning_rate=1e-5, vision_learning_rate=1e-5, layer_decay=0.5)
    for optimizer, rate in zip(build_optimizers(arguments, build_model(arguments, CPU)), (3e-3, 1e-2), strict=True):
        assert optimizer.param_groups[0]["peak_lr"] == rate, "it is the one that is logged"


def test_lora_matrices_stay_with_adamw_at_the_rates_of_their_layers(make_arguments, tmp_path):
    lora = {"r": 2, "target_modules": ["q_proj"]}
    settings = settings_by_name(
        make_arguments(tmp_path, speech_lora=lora, speech_learning_rate=6e-4, layer_decay=0.5, muon_learning_rate=0.02)
    )
    rates = {name: setting for name, setting in settings.items() if "lora_" in name}
    assert len(rates) == 4
    for name, (kind, rate, _, _) in rates.items():
        assert kind is torch.optim.AdamW
        assert rate == pytest.approx(6e-4 if ".layers.1." in name else 3e-4), name


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
