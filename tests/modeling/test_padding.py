"""Speech has the same states alone and in a batch, whatever the backbone's norms and convolutions."""

from __future__ import annotations

import pytest
import torch
from speech_image_retrieval import SpeechImageRetrievalModel
from speech_image_retrieval.modeling.padding import leave_out_padding
from torch import nn

from .checkpoints import SPEECH, VISION, write
from .test_pretrained_backbones import _SMALL
from .tiny import WIDTH


@pytest.fixture(scope="module", params=SPEECH)
def model(request, tmp_path_factory) -> SpeechImageRetrievalModel:
    torch.manual_seed(0)
    speech, vision = tmp_path_factory.mktemp("speech"), tmp_path_factory.mktemp("vision")
    write(SPEECH[request.param](), speech)
    write(VISION["vit"](), vision)
    return SpeechImageRetrievalModel.from_backbones(str(speech), str(vision), speech_pooling=2, **_SMALL)


def clip(model: SpeechImageRetrievalModel, units: int, seed: int) -> torch.Tensor:
    """(time, ...) of units of 400 samples or 4 frames."""
    generator = torch.Generator().manual_seed(seed)
    kind = model.config.speech_config.model_type
    shape = (4 * units, 8) if kind in ("whisper", "wav2vec2-bert") else (400 * units,)
    return torch.randn(*shape, generator=generator) + 0.5


def batch(model: SpeechImageRetrievalModel, clips: list[torch.Tensor], filler: float = 0.0) -> dict[str, torch.Tensor]:
    padded = nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=filler)
    lengths = torch.tensor([len(one) for one in clips])
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    if padded.dim() == 2:
        return {"input_values": padded, "attention_mask": mask}
    padded = padded.transpose(1, 2) if model.config.speech_config.model_type == "whisper" else padded
    return {"input_features": padded, "attention_mask": mask}


@pytest.mark.parametrize("filler", [0.0, 3.0])
def test_an_embedding_does_not_depend_on_what_it_is_padded_with(model, filler):
    clips = [clip(model, units, seed) for seed, units in enumerate((12, 5, 9))]
    with torch.no_grad():
        together = model.get_speech_features(**batch(model, clips, filler))
        for row, one in enumerate(clips):
            alone = model.get_speech_features(**batch(model, [one]))
            torch.testing.assert_close(together.pooler_output[row], alone.pooler_output[0], atol=1e-4, rtol=0)
            tokens = alone.last_hidden_state.shape[1]
            assert int(together.attention_mask[row].sum()) == tokens
            torch.testing.assert_close(
                together.last_hidden_state[row, :tokens], alone.last_hidden_state[0], atol=1e-4, rtol=0
            )


def test_alone_the_states_are_those_of_transformers(model):
    if model.config.speech_config.model_type == "whisper":
        pytest.skip("Whisper insists on 30 s; tests/modeling/test_modeling.py compares a full window")
    inputs = batch(model, [clip(model, 8, 0)])
    with torch.no_grad():
        theirs = model.speech_backbone(**inputs, output_hidden_states=True).hidden_states
        features, mask = model.get_speech_backbone_features(**inputs)
    assert mask.all() and features.shape[2] == len(theirs) == len(model.speech_layers)
    first = nn.functional.layer_norm(theirs[0], (WIDTH,))
    pairs = first[:, : first.shape[1] // 2 * 2].unflatten(1, (-1, 2)).mean(2)
    torch.testing.assert_close(features[:, : pairs.shape[1], 0], pairs, atol=1e-5, rtol=0)


def test_chunks_are_joined_in_order(model):
    long, short = clip(model, 18, 1), clip(model, 4, 2)
    half = len(long) // 2
    chunked = batch(model, [long[:half], long[half:], short])
    chunked["chunk_clips"] = torch.tensor([0, 0, 1])
    with torch.no_grad():
        features, mask = model.get_speech_backbone_features(**chunked)
        halves = [
            model.get_speech_backbone_features(**batch(model, [part]))[0][0] for part in (long[:half], long[half:])
        ]
        alone = model.get_speech_features(**batch(model, [short])).pooler_output[0]
        embeds = model.get_speech_features(**chunked).pooler_output
    assert len(features) == len(embeds) == 2
    whole_pairs = halves[0].shape[0] - 1  # the last pair may straddle the seam
    torch.testing.assert_close(features[0, :whole_pairs], halves[0][:whole_pairs], atol=1e-4, rtol=0)
    assert abs(int(mask[0].sum()) - sum(len(part) for part in halves)) <= 1
    torch.testing.assert_close(embeds[1], alone, atol=1e-4, rtol=0)


def test_features_of_the_backbone_serve_instead_of_speech(model):
    inputs = batch(model, [clip(model, units, units) for units in (9, 5)])
    with torch.no_grad():
        features, mask = model.get_speech_backbone_features(**inputs)
        one = model.get_speech_features(**inputs)
        other = model.get_speech_features(backbone_features=features, attention_mask=mask)
    torch.testing.assert_close(one.pooler_output, other.pooler_output)
    torch.testing.assert_close(one.last_hidden_state, other.last_hidden_state)


def test_checkpointed_gradients_of_the_front_end_leave_padding_out_too(model):
    front_end = getattr(model.speech_backbone, "feature_extractor", None)
    if front_end is None:
        pytest.skip("no front end of convolutions with norms")
    inputs = batch(model, [clip(model, units, units) for units in (9, 5)])

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        front_end.train()  # where nothing is random
        model.get_speech_features(**inputs).pooler_output[:, 0].sum().backward()
        front_end.eval()
        return [parameter.grad.clone() for parameter in front_end.parameters()]

    plain = gradients()
    model.activation_checkpointing_enable()
    checkpointed = gradients()
    model.activation_checkpointing_disable()
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other)


def test_a_backbone_is_changed_once(model):
    def hooks() -> int:
        return sum(len(part._forward_hooks) for part in model.speech_backbone.modules())

    before = hooks()
    leave_out_padding(model.speech_backbone)
    assert hooks() == before
