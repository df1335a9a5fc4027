from __future__ import annotations

import copy
import sys

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from speech_image_retrieval.training.arguments import ArgumentError
from speech_image_retrieval.training.export import export_model, merged_state_dict
from speech_image_retrieval.training.optimizers import build_optimizers
from speech_image_retrieval.training.policies import keep_frozen_in_evaluation
from speech_image_retrieval.training.setup import build_model, build_objective, build_processor
from torch import nn

from ..fresh_process import run_script

CPU = torch.device("cpu")
SPEECH_LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.2}
VISION_LORA = {"r": 3, "target_modules": ["qkv", "fc1"], "use_rslora": True}
SPEECH = {
    "whisper": {
        "model_type": "whisper", "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16, "num_mel_bins": 8, "max_source_positions": 60,
    },
    "wavlm": {
        "model_type": "wavlm", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "conv_dim": [4, 4],
        "conv_kernel": [10, 4], "conv_stride": [8, 4],
    },
}  # fmt: skip
VISION = {
    "dinov2": {
        "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    },
}  # fmt: skip


@pytest.fixture
def make_model(make_arguments, tmp_path):
    """A model with LoRA in both backbones, the frozen weights of the seed."""

    def make(speech: str | None = None, vision: str | None = None, **changes):
        torch.manual_seed(0)
        targets = {"target_modules": ["q_proj", "v_proj"]} if vision else {}
        values = {"speech_lora": SPEECH_LORA, "vision_lora": {**VISION_LORA, **targets}, **changes}
        arguments = make_arguments(tmp_path / "run", **values)
        if speech:
            arguments.model = {**arguments.model, "speech_config": SPEECH[speech]}
        if vision:
            arguments.model = {**arguments.model, "vision_config": VISION[vision]}
        return arguments, build_model(arguments, CPU)

    return make


def move_what_trains(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))


def inputs(speech: str | None = None, size: int = 32) -> tuple[dict, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, size, size, generator=generator)
    if speech == "whisper":
        return {"input_features": torch.randn(2, 8, 100, generator=generator)}, images
    return {"input_values": torch.randn(2, 4000, generator=generator)}, images


@torch.no_grad()
def embeddings(model: nn.Module, speech: dict, images: torch.Tensor) -> list[torch.Tensor]:
    model.eval()
    return [model.get_speech_features(**speech).pooler_output, model.get_image_features(images).pooler_output]


def test_only_the_matrices_of_lora_train_in_a_backbone(make_model):
    _, model = make_model()
    for backbone, matrices in ((model.speech_backbone, 8), (model.vision_backbone, 8)):
        names = {name for name, part in backbone.named_parameters() if part.requires_grad}
        assert len(names) == matrices and all("lora_" in name for name in names)
    assert all(part.requires_grad for part in model.speech_transformer.parameters())


def test_top_layers_train_beside_lora_only_if_asked_for(make_model):
    _, model = make_model(trainable_speech_layers=1)
    names = {name for name, part in model.speech_backbone.named_parameters() if part.requires_grad}
    assert {name for name in names if ".layers.0." in name} == {
        name for name in names if ".layers.0." in name and "lora_" in name
    }
    assert "encoder.layers.1.attention.q_proj.base_layer.weight" in names
    assert "encoder.layer_norm.weight" in names
    _, model = make_model(trainable_speech_layers=0)
    assert all("lora_" in n for n, part in model.speech_backbone.named_parameters() if part.requires_grad)


def test_the_dropout_of_lora_is_live_in_training_and_the_frozen_front_end_is_not(make_model):
    _, model = make_model()
    model.train()
    keep_frozen_in_evaluation(model)
    adapted = model.speech_backbone.encoder.layers[0].attention.q_proj
    assert adapted.lora_dropout["default"].training
    assert not adapted.base_layer.training
    assert not model.speech_backbone.feature_extractor.training
    nn.init.normal_(adapted.lora_B["default"].weight)
    states = torch.randn(2, 5, 16)
    assert not torch.equal(adapted(states), adapted(states))


@pytest.mark.parametrize(("speech", "vision"), [(None, None), ("whisper", "dinov2")])
def test_a_step_reaches_every_matrix_and_leaves_the_frozen_weights(speech, vision, make_model):
    arguments, model = make_model(speech, vision)
    before = {name: part.clone() for name, part in model.named_parameters()}
    optimizers = build_optimizers(arguments, model)
    move_what_trains(model)  # B starts at zero, and with it the gradient of A
    wave, images = inputs(speech, 28 if vision else 32)
    model.train()
    output = model(**wave, pixel_values=images, return_loss=True)
    output.loss.backward()
    matrices = {name: part for name, part in model.named_parameters() if "lora_" in name}
    assert len(matrices) == 16 and all(part.grad is not None and part.grad.any() for part in matrices.values())
    for optimizer in optimizers:
        optimizer.step()
    for name, part in model.named_parameters():
        assert part.requires_grad or torch.equal(part, before[name]), name


@pytest.mark.parametrize(("speech", "vision"), [(None, None), ("whisper", "dinov2")])
def test_merged_weights_give_the_embeddings_of_the_trained_model_in_a_model_without_lora(speech, vision, make_model):
    _, model = make_model(speech, vision)
    move_what_trains(model)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    merged = merged_state_dict(model)
    _, plain = make_model(speech, vision, speech_lora=None, vision_lora=None)
    different = embeddings(plain, *inputs(speech, 28 if vision else 32))
    plain.load_state_dict(merged)
    for ours, theirs, other in zip(
        embeddings(plain, *inputs(speech, 28 if vision else 32)),
        embeddings(model, *inputs(speech, 28 if vision else 32)),
        different,
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert (other - theirs).abs().max() > 1e-2, "the matrices must matter here"
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items()), "it trains on"
    unchanged = (
        merged["speech_backbone.encoder.layers.0.feed_forward.intermediate_dense.weight"] if not speech else None
    )
    if unchanged is not None:
        own = model.speech_backbone.encoder.layers[0].feed_forward.intermediate_dense.weight
        assert unchanged.data_ptr() == own.data_ptr(), "no second copy"


@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize(("speech", "vision"), [(None, None), ("whisper", "dinov2")])
def test_the_adapters_of_an_export_fit_the_backbones_that_training_began_with(
    speech, vision, bias, make_model, tmp_path
):
    lora = {} if vision else {"vision_lora": {**VISION_LORA, "bias": bias}}
    arguments, model = make_model(speech, vision, speech_lora={**SPEECH_LORA, "bias": bias}, **lora)
    move_what_trains(model)
    export_model(model, build_processor(arguments), tmp_path / "model")
    _, plain = make_model(speech, vision, speech_lora=None, vision_lora=None)
    wave, images = inputs(speech, 28 if vision else 32)
    for side, batch in (("speech", next(iter(wave.values()))), ("vision", images)):
        folder = tmp_path / "model" / f"{side}_adapter"
        assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        assert str(tmp_path) not in (folder / "adapter_config.json").read_text()
        trained, original = getattr(model, f"{side}_backbone").eval(), getattr(plain, f"{side}_backbone")
        by_transformers, by_peft = copy.deepcopy(original), copy.deepcopy(original)
        by_transformers.load_adapter(str(folder))
        by_peft = PeftModel.from_pretrained(by_peft, str(folder))
        batch = torch.nn.functional.pad(batch, (0, 20)) if speech and side == "speech" else batch
        with torch.no_grad():
            expected = trained(batch).last_hidden_state
            assert (original.eval()(batch).last_hidden_state - expected).abs().max() > 1e-2
            for backbone in (by_transformers.eval(), by_peft.eval()):
                torch.testing.assert_close(backbone(batch).last_hidden_state, expected, atol=1e-5, rtol=0)


WITHOUT_PEFT = """
import sys
sys.modules["peft"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
given = load_file(sys.argv[2])
with torch.no_grad():
    speech = model.get_speech_features(given["input_values"]).pooler_output
    image = model.get_image_features(given["images"]).pooler_output
save_file({"speech": speech, "image": image}, sys.argv[3])
"""


def test_an_export_loads_without_peft_into_the_embeddings_of_the_trained_model(make_model, tmp_path):
    arguments, model = make_model()
    move_what_trains(model)
    export_model(model, build_processor(arguments), tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as weights:
        assert not any("lora" in name or "base_layer" in name for name in weights.keys())  # noqa: SIM118
    wave, images = inputs()
    save_file({**wave, "images": images}, tmp_path / "inputs.safetensors")
    done = run_script(
        WITHOUT_PEFT, *(tmp_path / name for name in ("model", "inputs.safetensors", "outputs.safetensors"))
    )
    assert done.returncode == 0, done.stderr
    theirs = load_file(tmp_path / "outputs.safetensors")
    for name, ours in zip(("speech", "image"), embeddings(model, wave, images), strict=True):
        torch.testing.assert_close(theirs[name], ours, atol=1e-4, rtol=0)


def test_a_folder_of_this_machine_is_not_named_in_the_adapter(make_model, tmp_path):
    arguments, model = make_model()
    model.speech_backbone.peft_config["default"].base_model_name_or_path = str(tmp_path)
    model.vision_backbone.peft_config["default"].base_model_name_or_path = "someone/some-model"
    export_model(model, build_processor(arguments), tmp_path / "model")
    speech, vision = (
        (tmp_path / "model" / f"{side}_adapter/adapter_config.json").read_text() for side in ("speech", "vision")
    )
    assert str(tmp_path) not in speech and "someone/some-model" in vision
    assert model.speech_backbone.peft_config["default"].base_model_name_or_path == str(tmp_path)


def test_a_teacher_of_a_model_with_lora_shares_all_but_the_matrices_and_follows_them(make_model):
    arguments, model = make_model(momentum=0.5)
    move_what_trains(model)
    objective = build_objective(arguments, model, train_rows=4)
    theirs = dict(model.named_parameters())
    for name, part in objective.teacher.model.named_parameters():
        assert (part is theirs[name]) == (not theirs[name].requires_grad), name
    speech, images = inputs()
    embeds = objective.teacher.embed(speech, {"pixel_values": images})
    for ours, other in zip(embeds, embeddings(model, speech, images), strict=True):
        torch.testing.assert_close(ours, other, atol=1e-6, rtol=0)
    matrix = "speech_backbone.encoder.layers.0.attention.q_proj.lora_B.default.weight"
    old = theirs[matrix].detach().clone()
    move_what_trains(model)
    objective.teacher.update(model, 1)
    expected = (old + theirs[matrix]) / 2
    torch.testing.assert_close(objective.teacher.model.get_parameter(matrix), expected)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ["q_prj"]}, r"speech_lora: no module is named 'q_prj'.*HubertModel are .*q_proj"),
        ({"target_modules": ["q_proj", "v_prj"]}, "no module is named 'v_prj'"),
        ({"target_modules": "nothing"}, "linear modules of HubertModel are"),
        ({}, "linear modules of HubertModel are"),
        ({"target_modules": ["q_proj"], "lora_alfa": 3}, "no field 'lora_alfa'. Did you mean 'lora_alpha'"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["k_proj"]}, "no field 'modules_to_save'"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "no field 'use_dora'"),
        ({"target_modules": ["q_proj"], "r": 0}, "speech_lora: .*positive"),
        ({"target_modules": ["q_proj"], "r": "8"}, "speech_lora: "),
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "init_lora_weights must be one of"),
        ({"target_modules": ["dropout"]}, "speech_lora: .*not supported"),
    ],
    ids=str,
)
def test_impossible_lora_is_explained_in_one_line(lora, message, make_model):
    with pytest.raises(ArgumentError, match=message) as caught:
        make_model(speech_lora=lora)
    assert "\n" not in str(caught.value)


def test_without_peft_the_command_that_installs_it_is_named(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ArgumentError, match="pip install peft"):
        make_model()


def test_lora_that_would_do_nothing_is_refused(make_model):
    # Its attention reads the weights of its projections, and so never calls the matrices beside them.
    with pytest.raises(ArgumentError, match="WavLM's attention cannot have LoRA"):
        make_model("wavlm")
    lora = {"target_modules": ["intermediate_dense", "output_dense"]}
    _, model = make_model("wavlm", speech_lora=lora)
    move_what_trains(model)
    wave, _ = inputs()
    model.get_speech_features(**wave).pooler_output.sum().backward()
    matrices = {n: p for n, p in model.speech_backbone.named_parameters() if "lora_" in n}
    assert matrices and all(part.grad is not None for part in matrices.values())
