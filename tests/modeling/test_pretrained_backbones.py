"""Pretrained encoders arrive bit by bit, whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from speech_image_retrieval import SpeechImageRetrievalModel
from speech_image_retrieval.modeling.supported_backbones import SPEECH_MODEL_TYPES, VISION_MODEL_TYPES
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, Wav2Vec2Config, Wav2Vec2Model

from .checkpoints import _WAVEFORM, NETWORKS, SPEECH, VISION, write
from .tiny import IMAGE_SIZE, WIDTH

_NORM = "encoder.layers.{}.final_layer_norm.weight"
_SMALL = {
    "projection_dim": 8,
    "multimodal_config": {
        "hidden_size": WIDTH,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "num_speech_layers": 1,
        "num_hidden_layers": 1,
    },
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, tuple[Path, nn.Module]]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        name: (folder / name, write(build(), folder / name)) for name, build in (SPEECH | VISION | NETWORKS).items()
    }


def build(checkpoints, speech: str = "hubert-large", vision: str = "vit", **options) -> SpeechImageRetrievalModel:
    return SpeechImageRetrievalModel.from_backbones(
        str(checkpoints[speech][0]), str(checkpoints[vision][0]), **{**_SMALL, **options}
    )


def same_tensors(part: nn.Module, source: nn.Module) -> None:
    ours, theirs = part.state_dict(), source.state_dict()
    assert ours
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def speech_encoder(model: nn.Module) -> nn.Module:
    for name in ("hubert", "wav2vec2"):
        model = getattr(model, name, model)
    return model.model.encoder if hasattr(model, "proj_out") else model


@pytest.mark.parametrize("name", SPEECH)
def test_speech_weights_are_the_checkpoints(checkpoints, name):
    same_tensors(build(checkpoints, speech=name).speech_backbone, speech_encoder(checkpoints[name][1]))


@pytest.mark.parametrize("name", [*VISION, *NETWORKS])
def test_vision_weights_are_the_checkpoints(checkpoints, name):
    source = checkpoints[name][1]
    same_tensors(build(checkpoints, vision=name).vision_backbone, getattr(source, "vision_model", source))


@pytest.mark.parametrize("name", ["blip2", "blip2-itm"])
def test_the_qformer_reads_what_blip2_reads(checkpoints, name):
    model, source = build(checkpoints, vision=name, qformer=True), checkpoints[name][1]
    same_tensors(model.vision_backbone.vision_model, source.vision_model)
    assert torch.equal(model.vision_backbone.query_tokens, source.query_tokens)
    same_tensors(model.vision_backbone.qformer, source.qformer)
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        seen = source.vision_model(pixels).last_hidden_state
        expected = source.qformer(
            query_embeds=source.query_tokens.expand(2, -1, -1), encoder_hidden_states=seen
        ).last_hidden_state
        tokens = model.get_image_backbone_features(pixels)
        states = model.get_image_features(pixels).last_hidden_state
    assert tokens.shape == (2, 3, WIDTH)
    torch.testing.assert_close(tokens, expected)
    assert states.shape == (2, 4, WIDTH)  # its own [CLS] before the three queries


@pytest.mark.parametrize("speech", SPEECH)
def test_a_composed_model_survives_a_save(checkpoints, speech, tmp_path):
    model = build(checkpoints, speech=speech, vision="blip2", qformer=True)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    same_tensors(loaded, model)


def test_half_precision_weights_are_widened_without_loss(tmp_path, checkpoints):
    source = write(SPEECH["hubert-large"](), tmp_path).half()
    source.save_pretrained(tmp_path)
    model = SpeechImageRetrievalModel.from_backbones(str(tmp_path), str(checkpoints["vit"][0]), **_SMALL)
    assert model.speech_backbone.dtype == torch.float32
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.speech_backbone.state_dict()[name], tensor.float()), name


def test_changes_reach_the_backbones_configuration(checkpoints):
    model = build(checkpoints, speech_config={"mask_time_prob": 0.0, "layerdrop": 0.5}, speech_layers=[1])
    assert model.speech_backbone.config.layerdrop == 0.5 and model.speech_layer_weights.shape == (1,)


def test_short_speech_costs_whisper_no_thirty_seconds(checkpoints):
    model = build(checkpoints, speech="whisper")
    seen = []
    model.speech_backbone.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        model.get_speech_features(input_features=torch.randn(1, 8, 12))
    assert seen == [6]


def test_other_picture_sizes_interpolate_positions(checkpoints):
    pixels = torch.randn(1, 3, IMAGE_SIZE + 8, IMAGE_SIZE + 8)
    for name in VISION:
        model = build(checkpoints, vision=name)
        with torch.no_grad():
            assert torch.isfinite(model.get_image_features(pixels).pooler_output).all(), name


def _edit_weights(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (
            lambda t: t.pop("encoder.layers.1.final_layer_norm.weight"),
            "lacks encoder.layers.1.final_layer_norm.weight",
        ),
        (
            lambda t: t.update({"encoder.layers.2.final_layer_norm.weight": torch.ones(WIDTH)}),
            "no place for encoder.layers.2.final_layer_norm.weight",
        ),
        (
            lambda t: t.update({"encoder.layers.1.final_layer_norm.weight": torch.ones(3)}),
            "other shapes of encoder.layers.1.final_layer_norm.weight",
        ),
    ],
    ids=["missing", "left over", "other shape"],
)
def test_weights_that_do_not_fit_are_named(tmp_path, checkpoints, edit, problem):
    write(SPEECH["hubert-large"](), tmp_path)
    _edit_weights(tmp_path, edit)
    with pytest.raises(ValueError, match=re.escape(problem)) as error:
        SpeechImageRetrievalModel.from_backbones(str(tmp_path), str(checkpoints["vit"][0]), **_SMALL)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_not_read(tmp_path, checkpoints):
    model = write(SPEECH["hubert-large"](), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"^\S+ has no safetensors weights, .* save_pretrained, then name that folder\.$"
    ):
        SpeechImageRetrievalModel.from_backbones(str(tmp_path), str(checkpoints["vit"][0]), **_SMALL)


def test_what_is_no_encoder_of_the_kind_is_refused(tmp_path, checkpoints):
    text = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": WIDTH}
    BertModel(BertConfig(**text, vocab_size=8)).save_pretrained(tmp_path / "bert")
    CLIPTextModel(CLIPTextConfig(**text, vocab_size=8)).save_pretrained(tmp_path / "text")
    hubert, vit = (str(checkpoints[name][0]) for name in ("hubert-large", "vit"))
    for speech, vision, problem in (
        (str(tmp_path / "bert"), vit, "bert model, not a supported speech encoder"),
        (vit, vit, "vit model, not a supported speech encoder"),
        (hubert, hubert, "hubert model, not a supported image encoder"),
        (hubert, str(tmp_path / "bert"), "bert model, not a supported image encoder"),
        (hubert, str(tmp_path / "text"), "not a supported image encoder"),
        (str(tmp_path / "nothing"), vit, "cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=problem) as error:
            SpeechImageRetrievalModel.from_backbones(speech, vision, **_SMALL)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="without a Q-Former"):
        build(checkpoints, qformer=True)


def test_a_blip2_folder_without_its_vision_weights_is_refused(tmp_path, checkpoints):
    write(VISION["blip2"](), tmp_path)
    _edit_weights(tmp_path, lambda t: [t.pop(name) for name in list(t) if name.startswith("vision_model.")])
    with pytest.raises(ValueError, match=r"lacks embeddings\.class_embedding"):
        SpeechImageRetrievalModel.from_backbones(str(checkpoints["hubert-large"][0]), str(tmp_path), **_SMALL)


def test_configuration_and_weights_of_other_widths_are_refused(tmp_path, checkpoints):
    write(SPEECH["hubert-large"](), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 2 * WIDTH}))
    with pytest.raises(ValueError, match="other shapes of"):
        SpeechImageRetrievalModel.from_backbones(str(tmp_path), str(checkpoints["vit"][0]), **_SMALL)


@pytest.mark.parametrize("name", VISION)
def test_a_lower_layer_of_the_vision_backbone_can_be_taken(checkpoints, name):
    model = build(checkpoints, vision=name, vision_feature_layer=1)
    source = checkpoints[name][1]
    tower = getattr(source, "vision_model", source)
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states[1]
        seen = model.get_image_backbone_features(pixels)
        last = build(checkpoints, vision=name).get_image_backbone_features(pixels)
    torch.testing.assert_close(seen, nn.functional.layer_norm(states, (WIDTH,)))
    assert seen.shape == last.shape and not torch.allclose(seen, last, atol=1e-2)


def test_a_vision_layer_that_is_not_there_is_refused(checkpoints):
    with pytest.raises(ValueError, match="hidden states 0 to 2"):
        build(checkpoints, vision_feature_layer=3)
    with pytest.raises(ValueError, match="without a Q-Former"):
        build(checkpoints, vision="blip2", qformer=True, vision_feature_layer=1)


def test_every_supported_encoder_is_tested(checkpoints):
    speech = {build(checkpoints, speech=name).config.speech_config.model_type for name in SPEECH}
    vision = {build(checkpoints, vision=name).config.vision_config.model_type for name in (*VISION, *NETWORKS)}
    assert speech == SPEECH_MODEL_TYPES and vision == VISION_MODEL_TYPES


@pytest.mark.parametrize("name", [*VISION, *NETWORKS])
def test_a_picture_has_one_embedding_alone_and_in_a_batch(checkpoints, name):
    model, pixels = build(checkpoints, vision=name), torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        once, again = (model.get_image_features(pixels).pooler_output for _ in range(2))
        alone = model.get_image_features(pixels[1:]).pooler_output
    assert torch.equal(once, again)
    torch.testing.assert_close(alone, once[1:])


@pytest.mark.parametrize("size", [0, 1000], ids=["empty", "truncated"])
def test_damaged_weights_are_named_in_one_line(tmp_path, checkpoints, size):
    write(SPEECH["hubert-large"](), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(
        ValueError, match=r"^The weights of \S+ are damaged \([^\n]*\): download or copy them again\.$"
    ):
        SpeechImageRetrievalModel.from_backbones(str(tmp_path), str(checkpoints["vit"][0]), **_SMALL)


def test_a_wrong_type_in_a_configuration_is_named_in_one_line(tmp_path, checkpoints):
    write(SPEECH["hubert-large"](), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    vit = str(checkpoints["vit"][0])
    with pytest.raises(ValueError, match=r"^The speech backbone .*config.json is wrong[^\n]*'hidden_size'[^\n]*$"):
        SpeechImageRetrievalModel.from_backbones(str(tmp_path), vit, **_SMALL)
    with pytest.raises(ValueError, match=r"^[^\n]*'hidden_size'[^\n]*$"):
        build(checkpoints, speech_config={"hidden_size": "wide"})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"projection_dims": 16},
            "SpeechImageRetrievalConfig has no field 'projection_dims'. Did you mean 'projection_d",
        ),
        ({"speech_config": {"layer_drop": 0.1}}, "speech_config has no field 'layer_drop'. Did you mean 'layerdrop'"),
        ({"vision_config": {"image_sise": 8}}, "vision_config has no field 'image_sise'. Did you mean 'image_size'"),
        (
            {"multimodal_config": {"hidden_sise": 8}},
            "multimodal_config has no field 'hidden_sise'. Did you mean 'hidden",
        ),
        ({"speech_hub_options": {"use_safetensors": False}}, "speech_hub_options cannot hold 'use_safetensors'"),
    ],
)
def test_a_misspelt_field_is_refused(checkpoints, change, problem):
    with pytest.raises(ValueError, match=re.escape(problem)) as error:
        build(checkpoints, **change)
    assert "\n" not in str(error.value)


def test_an_adapter_is_refused_before_weights_are_loaded_and_can_be_left_out(tmp_path, checkpoints):
    source = write(Wav2Vec2Model(Wav2Vec2Config(**_WAVEFORM, add_adapter=True, output_hidden_size=WIDTH)), tmp_path)
    vit = str(checkpoints["vit"][0])
    with pytest.raises(ValueError, match="wav2vec2 with add_adapter=True is not supported: set add_adapter=False"):
        SpeechImageRetrievalModel.from_backbones(str(tmp_path), vit, **_SMALL)
    model = SpeechImageRetrievalModel.from_backbones(
        str(tmp_path), vit, speech_config={"add_adapter": False}, **_SMALL
    )
    same_tensors(model.speech_backbone, source)


def test_a_checkpoint_out_of_reach_is_explained(checkpoints, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"^The speech backbone no/where cannot be loaded: .* folder .*HF_HUB_OFFLINE"
    ):
        SpeechImageRetrievalModel.from_backbones("no/where", str(checkpoints["vit"][0]), **_SMALL)
