from __future__ import annotations

import pytest
import torch
from speech_image_retrieval.modeling.image_queries import Blip2ImageQueries, image_queries_config
from speech_image_retrieval.training.arguments import ArgumentError
from speech_image_retrieval.training.policies import backbone_levels, keep_frozen_in_evaluation
from speech_image_retrieval.training.setup import build_model
from torch import nn
from transformers import (
    Blip2QFormerConfig,
    Blip2VisionConfig,
    Blip2VisionModel,
    Dinov2Config,
    Dinov2Model,
    HubertConfig,
    HubertModel,
    ResNetConfig,
    ResNetModel,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
WAVES = {
    **SHAPE, "conv_dim": (4, 4), "conv_kernel": (10, 4), "conv_stride": (8, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
IMAGES = {"image_size": 8, "patch_size": 4}


def image_queries() -> Blip2ImageQueries:
    """A backbone that stands on another, and what belongs to neither."""
    qformer = Blip2QFormerConfig(**{**SHAPE, "num_hidden_layers": 2}, encoder_hidden_size=16)
    return Blip2ImageQueries(image_queries_config(Blip2VisionConfig(**SHAPE, **IMAGES), qformer, 4))


def whisper() -> WhisperEncoder:
    return WhisperEncoder(
        WhisperConfig(d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=16, num_mel_bins=8)
    )


BACKBONES = {
    "pre-norm hubert": lambda: HubertModel(HubertConfig(**WAVES, do_stable_layer_norm=True)),
    "post-norm hubert": lambda: HubertModel(HubertConfig(**WAVES)),
    "whisper": whisper,
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SHAPE, **IMAGES)),
    "blip-2": lambda: Blip2VisionModel(Blip2VisionConfig(**SHAPE, **IMAGES)),
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8], depths=[1, 1, 1])),
    "q-former": image_queries,
}
FINAL_NORMS = {
    "pre-norm hubert": "encoder.layer_norm",
    "post-norm hubert": None,
    "whisper": "layer_norm",
    "dinov2": "layernorm",
    "blip-2": "post_layernorm",
    "resnet": None,
    "q-former": None,
}


def trained(module: nn.Module) -> set[str]:
    return {name for name, part in module.named_parameters() if part.requires_grad}


def level_names(backbone: nn.Module) -> list[set[str]]:
    names = {id(part): name for name, part in backbone.named_parameters()}
    return [{names[id(part)] for part in level} for level in backbone_levels(backbone)]


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_parameter_is_in_one_level_and_the_final_norm_in_the_top_one(kind):
    backbone = BACKBONES[kind]()
    levels = level_names(backbone)
    assert sorted(name for level in levels for name in level) == sorted(dict(backbone.named_parameters()))
    assert len(levels) == {"resnet": 4, "q-former": 6}.get(kind, 4)
    assert all(levels[1:])
    outside = {name for name in levels[-1] if ".layer.1." not in name and ".2." not in name}
    norm = FINAL_NORMS[kind]
    assert outside == ({f"{norm}.weight", f"{norm}.bias"} if norm else set())


@pytest.mark.parametrize("kind", ["pre-norm hubert", "post-norm hubert", "whisper"])
def test_the_level_of_a_norm_is_where_the_computation_applies_it(kind):
    # A frozen front end must not be part of the backward pass: gradients would go through all layers.
    backbone = BACKBONES[kind]()
    backbone.eval().requires_grad_(False)
    for part in backbone_levels(backbone)[-1]:
        part.requires_grad_(True)
    inputs = torch.randn(2, 8, 3000) if kind == "whisper" else torch.randn(2, 800)
    entered = []
    layers = backbone.layers if kind == "whisper" else backbone.encoder.layers
    layers[-1].register_forward_pre_hook(lambda _, args: entered.append(args[0].requires_grad))
    backbone(inputs).last_hidden_state.square().mean().backward()
    assert entered == [False]
    assert all(part.grad is not None for part in backbone_levels(backbone)[-1])


def test_layers_of_a_q_former_come_above_those_of_its_vision_transformer():
    levels = level_names(image_queries())
    assert levels[0] == {
        name for name, _ in image_queries().named_parameters() if name.startswith("vision_model.embeddings")
    }
    assert {name.split(".layers.")[1][0] for name in levels[1]} == {"0"}
    assert {"vision_model.post_layernorm.weight", "vision_model.encoder.layers.2.mlp.fc1.weight"} <= levels[3]
    assert {"query_tokens", "qformer.layernorm.weight"} <= levels[4]
    assert all(name.startswith("qformer.encoder.layer.1.") for name in levels[5])


@pytest.mark.parametrize(("count", "layers"), [(None, {0, 1}), (0, set()), (1, {1}), (2, {0, 1})])
def test_the_top_layers_train_and_nothing_below_them(count, layers, make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, trainable_speech_layers=count, trainable_vision_layers=count)
    model = build_model(arguments, CPU)
    for backbone in (model.speech_backbone, model.vision_backbone):
        names, everything = trained(backbone), set(dict(backbone.named_parameters()))
        expected = (
            everything
            if count is None
            else {name for name in everything if any(f"encoder.layers.{layer}." in name for layer in layers)}
            | ({n for n in everything if "post_layernorm" in n or "encoder.layer_norm" in n} if count else set())
        )
        assert names == expected
    assert all(part.requires_grad for part in model.multimodal_encoder.parameters())


@pytest.mark.parametrize("side", ["speech", "vision"])
def test_more_layers_than_there_are_are_refused(side, make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, **{f"trainable_{side}_layers": 3})
    with pytest.raises(ArgumentError, match=f"trainable_{side}_layers: .* has 2 layers, not 3"):
        build_model(arguments, CPU)


def test_what_is_frozen_behaves_as_in_evaluation(make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, trainable_speech_layers=1, trainable_vision_layers=0)
    model = build_model(arguments, CPU).train()
    keep_frozen_in_evaluation(model)
    assert not any(part.training for part in model.vision_backbone.modules() if list(part.parameters()))
    assert not model.speech_backbone.feature_extractor.training
    first, second = model.speech_backbone.encoder.layers[:2]
    assert not any(part.training for part in first.modules())
    assert second.attention.training
    assert model.speech_transformer.training


def test_frozen_layers_are_never_dropped(make_arguments, tmp_path):
    def model(**changes):
        arguments = make_arguments(tmp_path, **changes)
        speech = {**arguments.model["speech_config"], "layerdrop": 1.0}
        arguments.model = {**arguments.model, "speech_config": speech}
        return build_model(arguments, CPU).train()

    for changes in ({"trainable_speech_layers": 1}, {"speech_lora": {"r": 2, "target_modules": ["q_proj"]}}):
        built = model(**changes)
        keep_frozen_in_evaluation(built)
        called = []
        for layer in built.speech_backbone.encoder.layers:
            layer.register_forward_pre_hook(lambda layer, _, called=called: called.append(layer))
        built.get_speech_features(torch.randn(2, 4000))
        assert len(called) == 2
        assert built.config.speech_config.layerdrop == built.speech_backbone.config.layerdrop == 0
    assert model().config.speech_config.layerdrop == 1.0


@pytest.mark.parametrize("speech", ["hubert", "whisper"])
def test_what_reaches_the_first_trained_layer_is_the_same_twice(speech, make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, trainable_speech_layers=1)
    config = {**arguments.model["speech_config"], "hidden_dropout": 0.5, "mask_time_prob": 0.0, "mask_feature_prob": 0}
    config["feat_proj_dropout"] = 0.5
    if speech == "whisper":
        config = {
            "model_type": "whisper", "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16, "num_mel_bins": 8, "dropout": 0.5,
        }  # fmt: skip
    arguments.model = {**arguments.model, "speech_config": config}
    model = build_model(arguments, CPU).train()
    keep_frozen_in_evaluation(model)
    backbone, entered = model.speech_backbone, []
    layers = backbone.layers if speech == "whisper" else backbone.encoder.layers
    layers[-1].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    inputs = (
        {"input_features": torch.randn(2, 8, 100)} if speech == "whisper" else {"input_values": torch.randn(2, 4000)}
    )
    once, again = (model.get_speech_backbone_features(**inputs)[0] for _ in range(2))
    assert torch.equal(*entered) and not torch.equal(once, again)


def test_the_masking_of_a_partly_trained_backbone_stays_on(make_arguments, tmp_path):
    def encoded(count: int) -> list[torch.Tensor]:
        model = build_model(make_arguments(tmp_path, trainable_speech_layers=count), CPU).train()
        keep_frozen_in_evaluation(model)
        wave = torch.randn(2, 8000)
        return [model.get_speech_backbone_features(wave)[0][:, :, 0] for _ in range(2)]

    assert torch.equal(*encoded(0)) and not torch.equal(*encoded(1))
