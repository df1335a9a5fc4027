from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from speech_image_retrieval.training.arguments import ArgumentError, arguments_from_dict, load_arguments
from speech_image_retrieval.training.checkpoint import save_checkpoint
from speech_image_retrieval.training.dry_run import dry_run, measure, print_dry_run
from speech_image_retrieval.training.export import export_model
from speech_image_retrieval.training.objective import Batch
from speech_image_retrieval.training.optimizers import build_optimizers
from speech_image_retrieval.training.setup import build_model, build_objective, build_processor
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import Blip2Config, Data2VecAudioConfig, Dinov2Config, HubertConfig, Wav2Vec2Config, WavLMConfig

from ..fresh_process import run_script

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
WIDE = {"hidden_size": 64, "intermediate_size": 256}  # so that activations outweigh the odd scalar


@pytest.fixture(scope="module")
def paper_backbones(tmp_path_factory) -> list[str]:
    """Overrides that name folders with the config.json alone of HuBERT large and of BLIP-2 with ViT-g."""
    return backbones(tmp_path_factory.mktemp("backbones"), hubert_layers=24)  # BLIP-2's defaults are ViT-g's


@pytest.fixture(scope="module")
def shallow_model(tmp_path_factory) -> list[str]:
    """The same of two layers each, which are counted sooner."""
    layers, folder = {"num_hidden_layers": 2}, tmp_path_factory.mktemp("shallow")
    overrides = ["model.multimodal_config.num_hidden_layers=2", "trainable_speech_layers=0"]
    return [*overrides, *backbones(folder, hubert_layers=2, vision_config=layers, qformer_config=layers)]


def backbones(folder: Path, hubert_layers: int, **blip2) -> list[str]:
    HubertConfig(
        hidden_size=1024,
        num_hidden_layers=hubert_layers,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        feat_proj_layer_norm=True,
    ).save_pretrained(folder / "hubert")
    Blip2Config(**blip2).save_pretrained(folder / "blip2")
    return [f"speech_backbone={folder / 'hubert'}", f"vision_backbone={folder / 'blip2'}"]


def wide(make_arguments, tmp_path, attention: str = "sdpa", **changes):
    """A small run whose every part has something to keep."""
    # On a CPU dropout of attention weights rules fused attention out.
    shape = {**WIDE, "attention_dropout": 0.1 if attention == "eager" else 0.0}
    model = make_arguments(tmp_path).model
    parts = {name: {**model[name], **shape} for name in ("speech_config", "vision_config", "multimodal_config")}
    defaults = {"batch_size": 8, "queue_size": 64, "gradient_accumulation_steps": 1}
    return make_arguments(tmp_path, **{**defaults, "model": {**model, **parts}, "attention": attention, **changes})


def real_objective(arguments):
    """With a full queue, and norms in float32 as on a GPU."""
    objective = build_objective(arguments, build_model(arguments, CPU), train_rows=64)
    embeds, ids = nn.functional.normalize(torch.randn(64, 8), dim=1), torch.arange(64)
    objective.queue.enqueue(embeds, embeds, ids, ids)
    for part in objective.modules():
        if isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
            part.register_forward_pre_hook(lambda _, args: tuple(arg.float() for arg in args))
    return objective


def real_batch(arguments) -> Batch:
    processor, size = build_processor(arguments), arguments.batch_size
    samples = round(processor.max_seconds * processor.sampling_rate)
    mask = torch.ones(size, samples, dtype=torch.long)
    mask[0, -400:] = 0  # a batch without padding has no masks of attention
    speech = {"input_values": torch.randn(size, samples), "attention_mask": mask}
    return Batch(speech, {"pixel_values": torch.randn(size, 3, 32, 32)}, torch.arange(size), torch.arange(size))


CASES = {
    "all trains": {},
    "eager": {"attention": "eager"},
    "bf16": {"mixed_precision": "bf16"},
    "bf16, eager": {"attention": "eager", "mixed_precision": "bf16"},
    "frozen": {"trainable_speech_layers": 1, "trainable_vision_layers": 0},
    "cached": {"trainable_speech_layers": 0, "trainable_vision_layers": 0, "feature_cache": True},
    "lora": {"speech_lora": LORA, "vision_lora": {"r": 2, "target_modules": ["qkv"]}},
    "checkpointing": {"activation_checkpointing": True},
    "accumulated": {"gradient_accumulation_steps": 2},
    "no teacher": {"momentum": None, "alpha": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_fake_tensors_need_what_real_ones_do(case, make_arguments, tmp_path):
    arguments = wide(make_arguments, tmp_path, **CASES[case])
    fake = dry_run(arguments)
    objective = real_objective(arguments)
    real = measure(arguments, objective, real_batch(arguments))
    for name, size in real.memory.items():
        assert fake.memory[name] == pytest.approx(size, rel=0.05), name
    constant = sum(size for name, size in fake.memory.items() if name not in {*real.memory, "gradients"})
    assert fake.highest - constant == pytest.approx(real.highest, rel=0.05)
    assert fake.tokens == real.tokens
    gradients = sum(part.grad.nbytes for part in objective.model.parameters() if part.grad is not None)
    assert fake.memory["gradients"] == pytest.approx(gradients, rel=0.01)


def test_the_peak_is_that_of_the_allocator(make_arguments, tmp_path):
    arguments = wide(make_arguments, tmp_path)
    batch = real_batch(arguments)
    objective = real_objective(arguments).train()

    def step() -> None:
        objective(batch, alpha=arguments.alpha).total.backward()

    step()  # what is allocated once and for all
    objective.zero_grad(set_to_none=True)
    objective._to_enqueue = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    live = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    measured = measure(arguments, real_objective(arguments), batch)
    assert measured.highest - measured.memory["micro-batch"] == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("family", [Data2VecAudioConfig, WavLMConfig, Wav2Vec2Config])
def test_masking_and_dropped_layers_do_not_ask_for_values(family, tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    speech = family(**shape, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, layerdrop=0.5)
    speech.save_pretrained(tmp_path / "speech")
    Dinov2Config(**shape, image_size=28, patch_size=14).save_pretrained(tmp_path / "vision")
    values = {
        "corpus": "none",
        "output_dir": "none",
        "speech_backbone": str(tmp_path / "speech"),
        "vision_backbone": str(tmp_path / "vision"),
        "processor": {"max_seconds": 1.0},
        "model": {"multimodal_config": {**shape, "num_speech_layers": 1}},
        "batch_size": 2,
        "queue_size": 8,
    }
    run = dry_run(arguments_from_dict(values))
    assert run.tokens == (50, 5)
    assert run.memory["activations: speech backbone"] > 0


def test_disk_and_states_are_what_a_run_writes(make_arguments, tmp_path):
    arguments = wide(
        make_arguments, tmp_path, trainable_speech_layers=1, vision_lora={"r": 2, "target_modules": ["qkv"]}
    )
    run = dry_run(arguments)
    objective = real_objective(arguments)
    optimizers = build_optimizers(arguments, objective.model)
    for parameter in objective.model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    for optimizer in optimizers:
        optimizer.step()
    states = sum(p.nbytes for o in optimizers for s in o.state.values() for p in s.values() if p.dim())
    assert run.memory["optimizer states"] == pytest.approx(states, rel=1e-3)
    checkpoint = save_checkpoint(tmp_path / "checkpoints", objective, optimizers, {"step": 1}, {})
    written = sum((checkpoint / f"{name}.safetensors").stat().st_size for name in ("objective", "optimizers"))
    assert run.disk["checkpoint"] == pytest.approx(written, rel=0.1)  # names weigh something in so small a model
    export_model(objective.model, build_processor(arguments), tmp_path / "model")
    written = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*.safetensors"))
    assert run.disk["exported model"] == pytest.approx(written, rel=0.1)
    own = {id(part) for part in objective.model.parameters()}
    assert run.memory["teacher"] == pytest.approx(
        sum(part.nbytes for part in objective.teacher.parameters() if id(part) not in own), rel=0.01
    )


def test_the_papers_setting_has_the_published_sizes(paper_backbones):
    coco, flickr = (
        load_arguments(ROOT / "configs" / f"{name}.yaml", paper_backbones)
        for name in ("spoken_coco", "flickr8k_audio")
    )
    same = ("model", "processor", "trainable_speech_layers", "trainable_vision_layers", "qformer", "batch_size")
    assert all(asdict(coco)[name] == asdict(flickr)[name] for name in same)
    run = dry_run(coco)
    assert run.parameters["speech backbone"] == pytest.approx(316e6, rel=0.01)
    assert run.parameters["vision backbone"] == pytest.approx(1.0e9, rel=0.02)
    assert run.trained["vision backbone"] == 0 == run.memory["activations: vision backbone"]
    assert run.memory["weights"] == pytest.approx(4 * run.parameters["all"], rel=1e-3)
    assert run.tokens == (189, 257)  # 749 frames of 20 ms in 15 s, in fours, and [CLS]; 16 x 16 patches and [CLS]
    assert run.highest < 80e9  # what the largest GPUs in wide use have


def test_the_q_former_leaves_few_tokens_and_activations(shallow_model):
    config = ROOT / "configs" / "spoken_coco.yaml"
    overrides = [*shallow_model, "activation_checkpointing=false", "batch_size=8"]
    plain = dry_run(load_arguments(config, overrides))
    queries = dry_run(load_arguments(config, [*overrides, "qformer=true"]))
    assert queries.tokens[1] == 33  # and a [CLS], which the Q-Former has not
    assert queries.memory["activations: multimodal encoder"] < plain.memory["activations: multimodal encoder"]


def test_only_configurations_are_read_and_nothing_is_written(shallow_model, tmp_path):
    script = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    options = [ROOT / "configs" / "spoken_coco.yaml", "--dry-run", "batch_size=4", *shallow_model]
    result = run_script(script, ROOT / "train.py", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "speech backbone" in result.stdout and "most at once" in result.stdout
    assert "There is no corpus outputs/spoken_coco/corpus yet" in result.stdout
    assert not list(tmp_path.iterdir())


def test_a_backbone_without_a_configuration_is_named(tmp_path):
    overrides = [f"speech_backbone={tmp_path / 'nothing'}", f"vision_backbone={tmp_path / 'nothing'}"]
    arguments = load_arguments(ROOT / "configs" / "spoken_coco.yaml", overrides)
    with pytest.raises(
        ArgumentError, match=r"speech backbone .*nothing cannot be loaded: .*a folder with its config\.json"
    ):
        dry_run(arguments)


def test_a_run_from_scratch_prints_as_well(capsys):
    print_dry_run(load_arguments(ROOT / "configs" / "spoken_shapes.yaml", []))
    assert "activations: speech backbone" in capsys.readouterr().out
