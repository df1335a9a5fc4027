from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from speech_image_retrieval import SpeechImageRetrievalConfig, SpeechImageRetrievalModel
from speech_image_retrieval.modeling.backbones import encode_speech_frames
from torch import Tensor, nn
from transformers import AutoModel, Trainer, TrainingArguments

from .tiny import tiny_batch, tiny_config, tiny_model, whisper

HUBERT = "hubert-blip2"


def speech_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "pixel_values"}


def perturb(model: nn.Module) -> None:
    """Give every float tensor, running statistics included, a value that no initialisation gives."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.01)
            elif tensor.dim() == 0:
                tensor.add_(7)


def states_and_buffers(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_buffers()), **model.state_dict()}


def gradients(model: SpeechImageRetrievalModel, batch: dict[str, Tensor]) -> dict[str, Tensor | None]:
    model.zero_grad()
    torch.manual_seed(2)
    model(**batch, return_loss=True).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_saved_model_loads_as_it_was(model, batch, tmp_path):
    perturb(model)
    model.save_pretrained(tmp_path)
    loaded, info = SpeechImageRetrievalModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    kept, restored = states_and_buffers(model), states_and_buffers(loaded)
    assert kept.keys() == restored.keys()
    for name in kept.keys() & model.state_dict().keys():
        assert torch.equal(kept[name], restored[name]), name
    with torch.no_grad():
        assert torch.equal(model(**batch).logits_per_speech, loaded(**batch).logits_per_speech)


def test_buffers_that_are_not_saved_are_rebuilt_by_a_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    restored = dict(AutoModel.from_pretrained(tmp_path).named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, restored[name]), name


def test_tensors_that_a_checkpoint_lacks_are_initialised(tmp_path):
    model = tiny_model("whisper-resnet", temperature=0.2)
    model.save_pretrained(tmp_path)
    own = ("logit_scale", "speech_cls", "image_cls", "speech_layer_weights")
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name not in own}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = SpeechImageRetrievalModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(own)
    assert loaded.temperature.item() == pytest.approx(0.2)
    assert torch.equal(loaded.speech_layer_weights, torch.zeros(3))
    for token in (loaded.speech_cls, loaded.image_cls):
        assert 0.02 < token.std() < 0.5  # initializer_range 0.1, 16 draws


def test_the_temperature_of_reranking_is_that_of_the_configuration_or_else_the_learned_one(tmp_path):
    model = tiny_model("whisper-resnet", temperature=0.2)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    assert model.rerank_temperature == pytest.approx(math.exp(-3))
    model.config.rerank_temperature = 0.01
    model.save_pretrained(tmp_path)
    assert SpeechImageRetrievalModel.from_pretrained(tmp_path).rerank_temperature == 0.01


def test_sub_configurations_survive_a_save(kind, tmp_path):
    config = tiny_config(kind, speech_pooling=3)
    config.save_pretrained(tmp_path)
    loaded = SpeechImageRetrievalConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    for part in ("speech_config", "vision_config", "multimodal_config"):
        assert type(getattr(loaded, part)) is type(getattr(config, part))
    assert json.loads((tmp_path / "config.json").read_text())["speech_config"]["model_type"]


def test_eager_and_sdpa_attention_agree(model, batch):
    answers = []
    for implementation in ("eager", "sdpa"):
        parts = ["", "speech_config", "multimodal_config", "vision_config"]
        if "hidden_sizes" in model.config.vision_config.to_dict():
            parts.remove("vision_config")  # a convolutional network has no attention to choose
        model.set_attn_implementation(dict.fromkeys(parts, implementation))
        for stack in (model.speech_backbone, model.speech_transformer, model.multimodal_encoder):
            assert stack.config._attn_implementation == implementation
        with torch.no_grad():
            speech = model.get_speech_features(**speech_of(batch))
            image = model.get_image_features(batch["pixel_values"])
            scores = model.match(speech.last_hidden_state, speech.attention_mask, image.last_hidden_state)
        answers.append((speech.pooler_output, image.pooler_output, scores))
    for eager, sdpa in zip(*answers, strict=True):
        torch.testing.assert_close(eager, sdpa, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", [1, 3])
def test_a_clip_alone_gives_what_it_gives_padded_in_a_batch(kind, pooling):
    model, batch = tiny_model(kind, speech_pooling=pooling), tiny_batch(kind)
    speech, mask = next(iter(batch.values())), batch["attention_mask"]
    name = next(iter(batch))
    with torch.no_grad():
        together = model.get_speech_features(**speech_of(batch))
        for row, length in enumerate(mask.sum(1)):
            clip = speech[row : row + 1]
            clip = clip[:, :, :length] if name == "input_features" and clip.shape[1] == 8 else clip[:, :length]
            alone = model.get_speech_features(**{name: clip})
            tokens = together.attention_mask[row].sum()
            assert alone.last_hidden_state.shape[1] == tokens
            torch.testing.assert_close(together.pooler_output[row], alone.pooler_output[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(
                together.last_hidden_state[row, :tokens], alone.last_hidden_state[0], atol=1e-4, rtol=0
            )


def test_what_stands_in_whispers_padding_does_not_matter():
    model, batch = tiny_model("whisper-resnet"), speech_of(tiny_batch("whisper-resnet"))
    noisy = batch["input_features"] + 5 * (batch["attention_mask"][:, None] == 0)
    with torch.no_grad():
        clean = model.get_speech_features(**batch).pooler_output
        noisy = model.get_speech_features(noisy, attention_mask=batch["attention_mask"]).pooler_output
    torch.testing.assert_close(clean, noisy, atol=1e-5, rtol=0)


def test_whisper_on_a_full_window_is_whisper():
    model = tiny_model("whisper-resnet")
    features = tiny_batch("whisper-resnet", (16, 16))["input_features"]
    assert features.shape[-1] == 2 * whisper().max_source_positions
    with torch.no_grad():
        expected = model.speech_backbone(features, output_hidden_states=True).hidden_states
        seen = encode_speech_frames(model.speech_backbone, features, None).hidden_states
    assert len(seen) == len(expected)
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_and_scores_are_float32_and_embeddings_of_unit_length(kind, dtype):
    model, batch = tiny_model(kind).to(dtype), tiny_batch(kind)
    batch = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
    with torch.no_grad():
        output = model(**batch, return_loss=True)
        speech = model.get_speech_features(**speech_of(batch))
        image = model.get_image_features(batch["pixel_values"])
        scores = model.match(speech.last_hidden_state, speech.attention_mask, image.last_hidden_state)
    assert speech.last_hidden_state.dtype == image.last_hidden_state.dtype == dtype
    for embeds in (output.speech_embeds, output.image_embeds):
        assert embeds.dtype == torch.float32
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3))
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all() and torch.isfinite(output.loss)


def test_bfloat16_stays_near_float32(tmp_path):
    model, batch = tiny_model(HUBERT), tiny_batch(HUBERT)
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        exact = model.get_speech_features(**speech_of(batch)).pooler_output
        rough = half.get_speech_features(
            batch["input_values"].bfloat16(), attention_mask=batch["attention_mask"]
        ).pooler_output
    assert nn.functional.cosine_similarity(exact, rough).min() > 0.9
    assert half.temperature.item() == pytest.approx(model.temperature.item(), rel=0.02)


def test_tuples_hold_what_the_outputs_hold():
    model, batch = tiny_model(HUBERT), tiny_batch(HUBERT)
    with torch.no_grad():
        torch.manual_seed(3)
        named = model(**batch, return_loss=True)
        torch.manual_seed(3)
        plain = model(**batch, return_loss=True, return_dict=False)
        states, embeds, mask = model.get_speech_features(**speech_of(batch), return_dict=False)
        image_states, image_embeds = model.get_image_features(batch["pixel_values"], return_dict=False)
    assert len(plain) == len(named) == 7
    assert all(torch.equal(one, other) for one, other in zip(plain, named.to_tuple(), strict=True))
    assert torch.equal(plain[0], named.contrastive_loss + named.matching_loss)
    assert torch.equal(embeds, named.speech_embeds) and torch.equal(image_embeds, named.image_embeds)
    assert states.shape[:2] == mask.shape and image_states.shape == (3, 5, 16)


def test_logits_are_cosine_similarities_over_the_temperature(model, batch):
    with torch.no_grad():
        output = model(**batch)
    cosine = nn.functional.cosine_similarity(output.speech_embeds[:, None], output.image_embeds[None], dim=-1)
    torch.testing.assert_close(output.logits_per_speech, cosine / 0.1, atol=1e-4, rtol=1e-4)
    assert torch.equal(output.logits_per_image, output.logits_per_speech.T)
    assert output.loss is None


def test_activation_checkpointing_leaves_gradients_as_they_are(kind):
    model, batch = tiny_model(kind), tiny_batch(kind)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        config.attention_dropout = 0.0
    model.train()
    for module in model.modules():  # batch statistics would move between the two runs' forward passes
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for module in model.speech_backbone.modules():
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    stored = gradients(model, batch)
    model.activation_checkpointing_enable()
    recomputed = gradients(model, batch)
    for name, gradient in stored.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, recomputed[name], atol=1e-6, rtol=1e-4, msg=name)


def test_a_gradient_reaches_every_trainable_parameter(model, batch):
    model.train()
    silent = [name for name, gradient in gradients(model, batch).items() if gradient is None]
    assert not silent
    # A key's bias moves all logits of a query alike, so its gradient is only rounding.
    dead = [name for name, gradient in gradients(model, batch).items() if not gradient.any()]
    assert not [name for name in dead if "k_proj.bias" not in name]


def encoded_pairs(kind: str) -> tuple[SpeechImageRetrievalModel, Tensor, Tensor, Tensor]:
    model, batch = tiny_model(kind), tiny_batch(kind)
    with torch.no_grad():
        speech = model.get_speech_features(**speech_of(batch))
        image = model.get_image_features(batch["pixel_values"])
    return model, speech.last_hidden_state, speech.attention_mask, image.last_hidden_state


def test_match_does_not_see_padding(kind):
    model, speech, mask, image = encoded_pairs(kind)
    with torch.no_grad():
        scores = model.match(speech, mask, image)
        padded = nn.functional.pad(speech, (0, 0, 0, 4), value=9.0)
        noisy = padded.masked_fill(~nn.functional.pad(mask, (0, 4))[..., None], 9.0)
        torch.testing.assert_close(
            model.match(noisy, nn.functional.pad(mask, (0, 4)), image), scores, atol=1e-5, rtol=0
        )
        torch.testing.assert_close(model.match(speech, mask.long(), image), scores, atol=1e-6, rtol=0)


def test_match_scores_each_pair_by_itself_and_both_sides_count(kind):
    model, speech, mask, image = encoded_pairs(kind)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        scores = model.match(speech, mask, image)
        torch.testing.assert_close(model.match(speech[order], mask[order], image[order]), scores[order])
        torch.testing.assert_close(model.match(speech, mask, image, order), model.match(speech, mask, image[order]))
        assert (model.match(speech, mask, image[order]) - scores).abs().min() > 1e-6
        assert (model.match(speech[order], mask[order], image) - scores).abs().min() > 1e-6


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_only_the_first_token_needs_gives_what_all_tokens_give(kind, attention):
    model = tiny_model(kind)
    batch = tiny_batch(kind)
    stacks = [model.speech_transformer, model.multimodal_encoder, getattr(model, "image_transformer", None)]
    for stack in filter(None, stacks):
        stack.set_attn_implementation(attention)
    with torch.no_grad():
        speech, pooled_speech = (
            model.get_speech_features(**speech_of(batch), pooled_only=only) for only in (False, True)
        )
        image, pooled_image = (
            model.get_image_features(batch["pixel_values"], pooled_only=only) for only in (False, True)
        )
        states = speech.last_hidden_state, speech.attention_mask, image.last_hidden_state
        all_states, _ = model.multimodal_encoder(*states[:2], model.project_images(states[2]))
        scores = model.matching_head(all_states[:, 0]).squeeze(-1)
        torch.testing.assert_close(model.match(*states), scores, atol=1e-5, rtol=0)
    assert pooled_speech.last_hidden_state is pooled_image.last_hidden_state is None
    torch.testing.assert_close(pooled_speech.pooler_output, speech.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled_image.pooler_output, image.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_pairs_that_share_speech_or_image_score_as_if_they_did_not(layers, attention):
    model = tiny_model(HUBERT)
    model.multimodal_encoder.layers = model.multimodal_encoder.layers[:layers]
    model.multimodal_encoder.set_attn_implementation(attention)
    batch = tiny_batch(HUBERT)
    speech_rows, image_rows = torch.tensor([0, 2, 2, 1, 0, 1]), torch.tensor([1, 1, 0, 2, 0, 0])
    with torch.no_grad():
        speech = model.get_speech_features(**speech_of(batch))
        image = model.get_image_features(batch["pixel_values"]).last_hidden_state
        states, mask = speech.last_hidden_state, speech.attention_mask
        assert not mask.all()
        scores = model.match(states[speech_rows], mask[speech_rows], image[image_rows])
        shared = model.match(states, mask, image, image_rows, speech_rows)
        projected = model.match(states, mask, model.project_images(image), image_rows, speech_rows)
        torch.testing.assert_close(
            model.match(states, mask, model.project_images(image)), model.match(states, mask, image)
        )
    torch.testing.assert_close(shared, scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(projected, scores, atol=1e-5, rtol=0)
    assert scores.unique().numel() == len(scores)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, count: int):
        self.batch = tiny_batch(HUBERT, (4,) * count)

    def __len__(self) -> int:
        return len(self.batch["pixel_values"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self.batch.items()}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor | bool]:
    return {**torch.utils.data.default_collate(rows), "return_loss": True}


def test_the_trainer_of_transformers_trains_it(tmp_path: Path):
    model = tiny_model(HUBERT)
    before = model.matching_head.weight.detach().clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Pairs(8), data_collator=collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # ln 2 for the contrast of two pairs and ln 2 for matching; twice that if accumulated losses were summed.
    assert len(losses) == 2 and all(0.3 < loss < 2.2 for loss in losses)
    assert not torch.equal(before, model.matching_head.weight)


@pytest.mark.parametrize("image_ids", [[0], [5, 5, 5]], ids=["one pair", "one image"])
def test_without_any_negative_the_loss_is_finite(image_ids):
    model = tiny_model(HUBERT).train()
    batch = {**tiny_batch(HUBERT, (4,) * len(image_ids)), "image_ids": torch.tensor(image_ids)}
    output = model(**batch, return_loss=True)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_training_overfits_eight_pairs():
    model, batch = tiny_model(HUBERT), tiny_batch(HUBERT, (4,) * 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        output = model(**batch, return_loss=True)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.contrastive_loss.item())
    assert min(losses[-5:]) < 0.7 * losses[0]


def test_training_keeps_the_temperature_in_range():
    model = tiny_model(HUBERT).train()
    for temperature, kept in ((5.0, 0.5), (1e-6, 0.001)):
        with torch.no_grad():
            model.logit_scale.fill_(-torch.tensor(temperature).log())
        model(**tiny_batch(HUBERT, (4, 4)), return_loss=True)
        assert model.temperature.item() == pytest.approx(kept)


@pytest.mark.parametrize("pooling", [1, 2, 4])
def test_pooling_shortens_the_speech(pooling):
    model, batch = tiny_model("whisper-resnet", speech_pooling=pooling), speech_of(tiny_batch("whisper-resnet"))
    with torch.no_grad():
        mask = model.get_speech_features(**batch).attention_mask
    assert mask.sum(1).tolist() == [1 + -(-frames // pooling) for frames in (20, 14, 8)]


def test_missing_inputs_are_named():
    model, batch = tiny_model(HUBERT), tiny_batch(HUBERT, (4, 4))
    with pytest.raises(ValueError, match="input_values or input_features"):
        model(pixel_values=batch["pixel_values"])
    with pytest.raises(ValueError, match="pixel_values"):
        model(**speech_of(batch))
    with pytest.raises(ValueError, match="2 speeches and 1 images"):
        model(**speech_of(batch), pixel_values=batch["pixel_values"][:1], return_loss=True)


def test_a_convolutional_backbone_needs_image_layers():
    config = tiny_config("whisper-resnet")
    config.multimodal_config.num_image_layers = 0
    with pytest.raises(ValueError, match="num_image_layers"):
        SpeechImageRetrievalModel(config)


def test_more_mel_frames_than_positions_are_refused():
    with pytest.raises(ValueError, match="68 mel frames exceed the 64"):
        tiny_model("whisper-resnet").get_speech_features(torch.zeros(1, 8, 68))


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"rerank_temperature": -1.0}, {"projection_dim": 0}, {"speech_pooling": 0}]
)
def test_numbers_that_cannot_be_trained_are_refused(wrong):
    with pytest.raises(Exception, match=next(iter(wrong))):
        SpeechImageRetrievalConfig(**wrong)


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(Exception, match="hidden_size 30"):
        SpeechImageRetrievalConfig(multimodal_config={"hidden_size": 30, "num_attention_heads": 4})


def test_chunks_of_a_clip_are_one_speech_of_forward():
    model, batch = tiny_model(HUBERT), tiny_batch(HUBERT, (8, 8, 5))
    batch["pixel_values"], clips = batch["pixel_values"][:2], torch.tensor([0, 0, 1])
    with torch.no_grad():
        output = model(**batch, chunk_clips=clips, return_loss=True)
        speech = model.get_speech_features(**speech_of(batch), chunk_clips=clips)
    assert torch.equal(output.speech_embeds, speech.pooler_output)
    assert output.logits_per_speech.shape == (2, 2) and torch.isfinite(output.loss)


@pytest.mark.parametrize(
    ("part", "config", "problem"),
    [
        ("speech_config", {"model_type": "wav2vec2-conformer"}, "wav2vec2-conformer model, not a supported speech"),
        ("speech_config", {"model_type": "sew"}, "sew model, not a supported speech encoder: choose one of data2vec"),
        ("speech_config", {"model_type": "audio-spectrogram-transformer"}, "not a supported speech encoder"),
        ("speech_config", {"model_type": "speech_to_text"}, "not a supported speech encoder"),
        (
            "vision_config",
            {"model_type": "vit_mae"},
            "vit_mae model, not a supported image encoder: choose one of bli",
        ),
        ("vision_config", {"model_type": "swin"}, "not a supported image encoder"),
        ("vision_config", {"model_type": "swinv2"}, "not a supported image encoder"),
        ("vision_config", {"model_type": "ijepa"}, "not a supported image encoder"),
        ("vision_config", {"model_type": "siglip2_vision_model"}, "not a supported image encoder"),
        ("speech_config", {"model_type": "wav2vec2", "add_adapter": True}, "add_adapter=False"),
    ],
)
def test_backbones_that_do_not_work_are_refused(part, config, problem):
    with pytest.raises(ValueError, match=problem) as error:
        SpeechImageRetrievalModel(SpeechImageRetrievalConfig(**{part: config}))
    assert "\n" not in str(error.value)
