from __future__ import annotations

import pytest
import torch
from speech_image_retrieval import SpeechImageRetrievalModel
from speech_image_retrieval.retrieval import match_relevance
from speech_image_retrieval.retrieval.match_relevance import MatchedPair

from ..modeling.tiny import KINDS, tiny_batch, tiny_config, tiny_model


def pairs_of(model: SpeechImageRetrievalModel, kind: str) -> list[MatchedPair]:
    """Pairs of a padded batch, each cut to its own tokens."""
    batch = tiny_batch(kind)
    with torch.inference_mode():  # as an index computes them
        image = model.get_image_backbone_features(batch.pop("pixel_values"))
        speech, mask = model.get_speech_backbone_features(**batch)
    placeless = 0 if image.dim() == 4 else 1
    return [MatchedPair(model, speech[i : i + 1, mask[i]], image[i : i + 1], placeless) for i in range(len(mask))]


@pytest.fixture(params=KINDS)
def pair(request) -> MatchedPair:
    return pairs_of(tiny_model(request.param, num_query_tokens=1), request.param)[0]


def test_the_score_is_that_of_the_model(pair: MatchedPair):
    model = pair.model
    with torch.inference_mode():
        mask = torch.ones(pair.speech.shape[:2], dtype=torch.bool)
        speech = model.get_speech_features(backbone_features=pair.speech, attention_mask=mask)
        image = model.get_image_features(backbone_features=pair.image)
        expected = model.match(speech.last_hidden_state, speech.attention_mask, image.last_hidden_state)
    assert pair.matching_score() == pytest.approx(expected.item(), abs=1e-6)


def test_relevance_adds_up_to_what_the_logit_gains_over_the_mean(pair: MatchedPair, monkeypatch):
    monkeypatch.setattr(match_relevance, "STEPS", 200)
    score = pair.matching_score()
    of_mean_speech = pair.without(0, pair.speech.shape[1])
    assert pair.speech_relevance().sum().item() == pytest.approx(score - of_mean_speech.matching_score(), abs=1e-4)
    image = pair.image.clone()
    if image.dim() == 4:
        image[:] = image.mean((2, 3), keepdim=True)
    else:
        image[:, 1:] = image[:, 1:].mean(1, keepdim=True)
    of_mean_image = MatchedPair(pair.model, pair.speech, image)
    assert pair.image_relevance().sum().item() == pytest.approx(score - of_mean_image.matching_score(), abs=1e-4)


def test_steps_are_close_to_the_integral(pair: MatchedPair, monkeypatch):
    few = pair.speech_relevance(), pair.image_relevance()
    monkeypatch.setattr(match_relevance, "STEPS", 200)
    for coarse, fine in zip(few, (pair.speech_relevance(), pair.image_relevance()), strict=True):
        torch.testing.assert_close(coarse, fine, atol=0.05 * float(fine.abs().max()), rtol=0.05)


class OneTokenEach(torch.nn.Module):
    """A model whose logit is the product of the first feature of one speech token and of one image token."""

    def __init__(self, speech_token: int, image_token: int):
        super().__init__()
        self.places = speech_token, image_token
        self.multimodal_encoder = torch.nn.Module()
        self.multimodal_encoder.layers = [None]

    def get_speech_features(self, backbone_features, attention_mask):
        return type("Output", (), {"last_hidden_state": backbone_features[:, :, 0], "attention_mask": attention_mask})

    def get_image_features(self, backbone_features):
        tokens = backbone_features.flatten(2).transpose(1, 2) if backbone_features.dim() == 4 else backbone_features
        return type("Output", (), {"last_hidden_state": tokens})

    def match(self, speech, mask, image, image_rows, speech_rows):
        return speech[speech_rows][:, self.places[0], 0] * image[image_rows][:, self.places[1], 0]


@pytest.mark.parametrize("shape", [(1, 4, 2, 3), (1, 7, 4)], ids=["feature map", "tokens"])
def test_only_what_the_logit_depends_on_is_relevant(shape: tuple[int, ...]):
    torch.manual_seed(0)
    placeless = 0 if len(shape) == 4 else 1
    pair = MatchedPair(OneTokenEach(3, 2 + placeless), torch.randn(1, 5, 2, 4), torch.randn(shape), placeless)
    speech, image = pair.speech_relevance(), pair.image_relevance()
    assert speech.shape == (5,) and image.shape == (6,)
    assert speech.nonzero().tolist() == [[3]] and image.nonzero().tolist() == [[2]]
    # Linear in either, so the integral is exact.
    assert speech[3].item() == pytest.approx(pair.matching_score() - pair.without(0, 5).matching_score(), abs=1e-6)
    because_of = image - pair.without(3, 4).image_relevance()
    assert because_of.nonzero().tolist() == [[2]]
    for first, end in ((0, 3), (4, 5)):
        torch.testing.assert_close(pair.without(first, end).image_relevance(), image)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_implementations_agree(kind: str):
    explained = []
    for implementation in ("eager", "sdpa"):
        model = tiny_model(kind)
        for part in (model.speech_transformer, model.multimodal_encoder):
            part.set_attn_implementation(implementation)
        pair = pairs_of(model, kind)[0]
        explained.append((pair.speech_relevance(), pair.image_relevance()))
    torch.testing.assert_close(*explained, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_in_the_batch_changes_nothing(kind: str):
    model, batch = tiny_model(kind), tiny_batch(kind)
    padded = pairs_of(model, kind)[2]
    name = next(name for name in batch if name.startswith("input"))
    length = int(batch["attention_mask"][2].sum())
    speech = batch[name][2:, ..., :length] if kind != "wav2vec2bert-vit" else batch[name][2:, :length]
    with torch.inference_mode():
        alone, _ = model.get_speech_backbone_features(**{name: speech})
        image = model.get_image_backbone_features(batch["pixel_values"][2:])
    unpadded = MatchedPair(model, alone, image, padded.placeless)
    torch.testing.assert_close(padded.speech_relevance(), unpadded.speech_relevance(), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(padded.image_relevance(), unpadded.image_relevance(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_model_is_left_as_it_was(around):
    model = tiny_model("whisper-resnet", speech_layers=[0, 1])
    (pair, *_) = pairs_of(model, "whisper-resnet")
    expected = pair.speech_relevance()
    model.train()
    model.vision_backbone.eval()
    modes = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with around():
        grad_mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        torch.testing.assert_close(pair.speech_relevance(), expected)
        pair.image_relevance()
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == grad_mode
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_modes_come_back_after_an_error():
    model = tiny_model("whisper-resnet").train()
    (pair, *_) = pairs_of(model, "whisper-resnet")
    with pytest.raises(RuntimeError):
        MatchedPair(model, pair.speech[..., :-1], pair.image).speech_relevance()
    assert all(module.training for module in model.modules())


def test_a_diverged_model_is_refused():
    model = tiny_model("whisper-resnet")
    (pair, *_) = pairs_of(model, "whisper-resnet")
    torch.nn.init.constant_(model.matching_head.weight, float("nan"))
    with pytest.raises(ValueError, match="diverged checkpoint"):
        pair.speech_relevance()


def test_a_model_that_looks_at_no_picture_is_refused():
    multimodal = {**tiny_config("hubert-blip2").multimodal_config.to_dict(), "num_hidden_layers": 0}
    model = tiny_model("hubert-blip2", multimodal_config=multimodal)
    with pytest.raises(ValueError, match="no multimodal layer"):
        pairs_of(model, "hubert-blip2")
