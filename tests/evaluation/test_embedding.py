from __future__ import annotations

import traceback

import pytest
import torch
from speech_image_retrieval.evaluation.embedding import (
    distinct_images,
    encode_images,
    encode_speech,
    encoded_size,
    inference,
)


def clips(*digits: str) -> list[dict]:
    return [{"bytes": text.encode(), "path": None} for text in digits]


AUDIO = clips("12", "3141592", "2", "27182", "161", "99999999")


def alone(model, processor, clip):
    output = model.get_speech_features(**processor(audio=[clip]))
    return output.pooler_output[0], output.last_hidden_state[0]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_speech_comes_back_in_the_given_order_as_if_encoded_alone(model, processor, batch_size, num_workers):
    encoded = encode_speech(model, processor, AUDIO, batch_size=batch_size, num_workers=num_workers)
    assert len(encoded.embeddings) == len(encoded.states) == len(AUDIO)
    for index, clip in enumerate(AUDIO):
        embedding, states = alone(model, processor, clip)
        assert encoded.embeddings[index].equal(embedding)
        assert encoded.states.padded(torch.tensor([index]))[0][0].equal(states)


def test_similar_lengths_share_a_batch_and_the_longest_come_first(model, processor):
    encode_speech(model, processor, AUDIO, batch_size=2)
    assert [batch["attention_mask"].sum(dim=1).tolist() for batch in model.batches] == [[8, 7], [5, 3], [2, 1]]


def test_given_lengths_replace_the_encoded_size(model, processor):
    encode_speech(model, processor, AUDIO, batch_size=3, lengths=[6, 1, 5, 2, 4, 3])
    assert [batch["attention_mask"].sum(dim=1).tolist() for batch in model.batches] == [[2, 1, 3], [8, 5, 7]]
    with pytest.raises(ValueError, match="5 lengths were given for 6 clips"):
        encode_speech(model, processor, AUDIO, lengths=[1] * 5)


def test_images_keep_their_order(model, processor):
    images = clips("0123", "4567", "8901")
    encoded = encode_images(model, processor, images, batch_size=2)
    expected = model.get_image_features(processor(images=images)["pixel_values"])
    assert encoded.embeddings.equal(expected.pooler_output)
    assert encoded.states.equal(expected.last_hidden_state)


def test_states_are_kept_in_the_type_asked_for_or_not_at_all(model, processor):
    images = clips("0123")
    for dtype in (torch.float16, torch.bfloat16):
        assert encode_speech(model, processor, AUDIO, states_dtype=dtype).states.tokens.dtype == dtype
        assert encode_images(model, processor, images, states_dtype=dtype).states.dtype == dtype
    assert encode_speech(model, processor, AUDIO).states.tokens.dtype == torch.float32
    assert encode_speech(model, processor, AUDIO, keep_states=False).states is None
    assert encode_images(model, processor, images, keep_states=False).states is None


def test_inputs_take_the_models_type_and_masks_stay_whole_numbers(model, processor):
    model.dtype = torch.bfloat16
    encoded = encode_speech(model, processor, AUDIO)
    assert model.batches[0]["input_values"].dtype == torch.bfloat16
    assert model.batches[0]["attention_mask"].dtype == torch.int64
    assert encoded.embeddings.dtype == torch.float32


def test_features_can_be_modified_afterwards(model, processor):
    encoded = encode_speech(model, processor, AUDIO)
    encoded.embeddings.mul_(2)
    encoded.states.tokens.add_(1)


@pytest.mark.parametrize("encode", [encode_speech, encode_images])
def test_nothing_to_encode_is_refused(model, processor, encode):
    with pytest.raises(ValueError, match="nothing to encode"):
        encode(model, processor, [])


def test_clip_without_a_valid_frame_is_named(model, processor):
    with pytest.raises(ValueError, match="audio 1 has no valid frame"):
        encode_speech(model, processor, clips("12", "", "345"))
    with pytest.raises(ValueError, match="audio 'b' has no valid frame"):
        encode_speech(model, processor, clips("12", "", "345"), names=["a", "b", "c"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_item_that_cannot_be_read_is_named_wherever_its_batch_put_it(model, processor, num_workers):
    broken = clips("1234", "4567", "1x23", "8901")  # the digits cannot be read as numbers
    for encode, modality in ((encode_speech, "audio"), (encode_images, "images")):
        for names, said in ((None, "2"), (["a", "b", "c", "d"], "'c'")):
            with pytest.raises(ValueError, match=f"{modality} {said}: could not convert") as caught:
                encode(model, processor, broken, names=names, num_workers=num_workers)
            traceback.clear_frames(caught.tb)  # ends the workers; the garbage collector would wait 5 s for each


def test_every_submodule_returns_to_its_own_mode_even_after_an_error(model):
    model.train()
    model.frozen.eval()
    with pytest.raises(RuntimeError, match="out of memory"), inference(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
        raise RuntimeError("out of memory")
    assert (model.training, model.trained.training, model.frozen.training) == (True, True, False)
    assert not torch.is_inference_mode_enabled()


def test_encoding_leaves_the_random_numbers_of_training_alone(model, processor):
    before = torch.get_rng_state()
    encode_speech(model, processor, AUDIO)
    assert torch.get_rng_state().equal(before)


def test_distinct_images_in_order_of_first_appearance():
    rows, image_of_caption = distinct_images(["b", "a", "b", "c", "a"])
    assert rows == [0, 1, 3]
    assert image_of_caption.tolist() == [0, 1, 0, 2, 1]


def test_encoded_size_of_bytes_files_and_samples(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(b"1234567")
    encoded = {"bytes": b"123", "path": "elsewhere.wav"}
    clips = [encoded, {"bytes": None, "path": str(path)}, path, torch.zeros(5)]
    assert [encoded_size(clip) for clip in clips] == [3, 7, 7, 5]
    with pytest.raises(ValueError, match="none of them is set"):
        encoded_size({"bytes": None, "path": None})
