from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from speech_image_retrieval import SpeechImageRetrievalProcessor
from speech_image_retrieval.processing.media import MediaError
from transformers import (
    AutoProcessor,
    BlipImageProcessor,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

RATE = 16_000


def speech_name(processor: SpeechImageRetrievalProcessor) -> str:
    return processor.feature_extractor.model_input_names[0]


def clips(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [0.1 * generator.standard_normal(length).astype(np.float32) + 0.05 for length in lengths]


def test_speech_and_pictures_become_one_batch(processor):
    pictures = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    batch = processor(audio=clips(8_000, 6_000), images=pictures, sampling_rate=RATE)
    assert set(batch) == set(processor.model_input_names)
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["pixel_values"].dtype == batch[speech_name(processor)].dtype == torch.float32
    assert len(batch["attention_mask"]) == 2


def test_one_item_is_a_batch_of_one(processor, wav):
    one = clips(8_000)[0]
    for form in (one, one.tolist(), torch.from_numpy(one), wav, {"array": one, "sampling_rate": RATE}):
        assert len(processor(audio=form, sampling_rate=RATE)["attention_mask"]) == 1
    assert processor(images=Image.new("RGB", (9, 9)))["pixel_values"].shape == (1, 3, 16, 16)


def test_a_clip_alone_gives_what_it_gives_in_a_batch(processor):
    name = speech_name(processor)
    speech = clips(8_123, 24_000, 1_600, 15_999, 400 + 50 * 160)
    together = processor(audio=speech, sampling_rate=RATE)
    for row, clip in enumerate(speech):
        alone = processor(audio=clip, sampling_rate=RATE)
        mask, alone_mask = together["attention_mask"][row].bool(), alone["attention_mask"][0].bool()
        assert mask.sum() == alone_mask.sum() > 0
        time_last = processor.time_axis == 1
        values = [batch.T if time_last else batch for batch in (together[name][row], alone[name][0])]
        torch.testing.assert_close(values[0][mask], values[1][alone_mask], atol=1e-4, rtol=1e-4)


def test_the_mask_marks_speech_and_nothing_else(waveform_processor):
    batch = waveform_processor(audio=clips(5_000, 8_000), sampling_rate=RATE)
    assert batch["attention_mask"].sum(1).tolist() == [5_000, 8_000]
    assert batch["attention_mask"][0, :5_000].all()
    assert not batch["input_values"][0, 5_000:].any()
    for row, length in enumerate((5_000, 8_000)):
        values = batch["input_values"][row, :length]
        assert values.mean().abs() < 1e-4 and abs(values.std() - 1) < 1e-2


@pytest.mark.parametrize(("samples", "frames"), [(4_000, 25), (4_001, 26), (16_000, 100)])
def test_the_mask_of_a_spectrogram_counts_every_started_frame(whisper_processor, samples, frames):
    batch = whisper_processor(audio=clips(samples, 32_000), sampling_rate=RATE)
    assert batch["attention_mask"].sum(1).tolist() == [frames, 200]
    assert batch["input_features"].shape == (2, 16, 200)


def test_whisper_hears_thirty_seconds_in_its_three_thousand_frames(whisper_processor):
    batch = whisper_processor(audio=clips(30 * RATE), sampling_rate=RATE)
    assert batch["input_features"].shape == (1, 16, 3_000)
    assert batch["attention_mask"].shape == (1, 3_000) and batch["attention_mask"].all()


def test_whispers_features_are_whispers_away_from_the_end(whisper_processor):
    clip = clips(16_000)[0]
    ours = whisper_processor(audio=clip, sampling_rate=RATE)["input_features"]
    theirs = whisper_processor.feature_extractor(clip, sampling_rate=RATE, return_tensors="pt")["input_features"]
    torch.testing.assert_close(ours[..., :100], theirs[..., :100], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("samples", [1, 399, 3_999])
def test_speech_below_the_minimum_is_padded(waveform_processor, samples):
    batch = waveform_processor(audio=clips(samples), sampling_rate=RATE)
    assert batch["input_values"].shape == (1, 4_000) and batch["attention_mask"].all()


def test_a_short_clip_survives_every_feature_extractor(processor):
    batch = processor(audio=clips(10, 8_000), sampling_rate=RATE)
    assert torch.isfinite(batch[speech_name(processor)]).all() and batch["attention_mask"][0].any()


def test_arrays_of_other_rates_are_resampled(processor):
    batch = processor(audio=clips(44_100), sampling_rate=44_100)
    same = processor(audio=clips(16_000), sampling_rate=RATE)
    assert batch["attention_mask"].sum() == same["attention_mask"].sum()


def test_normalised_features_forget_loudness_and_the_colour_of_the_channel():
    processor = SpeechImageRetrievalProcessor(
        WhisperFeatureExtractor(feature_size=16), BlipImageProcessor(), per_feature_normalization=True
    )
    loud, long = clips(16_000, 32_000)
    # Away from the floor that Whisper cuts at, a channel's gain is an offset of every log-mel bin.
    channel = np.convolve(loud, [1.0, -0.6])[: len(loud)].astype(np.float32)
    batch = processor(audio=[loud, 0.1 * channel, long], sampling_rate=RATE)
    features, mask = batch["input_features"], batch["attention_mask"].bool()
    for row in range(3):
        speech = features[row, :, mask[row]]
        assert speech.mean(1).abs().max() < 1e-4
        assert (speech.std(1, correction=0) - 1).abs().max() < 0.2
        assert not features[row, :, ~mask[row]].any()
    assert (features[0] - features[1])[:, mask[0]][:, 2:-2].abs().max() < 0.5
    plain = SpeechImageRetrievalProcessor(WhisperFeatureExtractor(feature_size=16), BlipImageProcessor())
    before = plain(audio=[loud, 0.1 * channel], sampling_rate=RATE)["input_features"]
    assert (before[0] - before[1]).abs().max() > 0.5


def test_a_waveform_cannot_be_normalised_per_feature():
    with pytest.raises(ValueError, match="per_feature_normalization needs a log-mel spectrogram"):
        SpeechImageRetrievalProcessor(Wav2Vec2FeatureExtractor(), BlipImageProcessor(), per_feature_normalization=True)


def whole_and_chunked(processor, samples: int, max_seconds: float):
    """One clip's valid features unsplit, and the batch of its chunks; time first."""
    clip = clips(samples)[0]
    name = speech_name(processor)
    processor.max_seconds = 2 * samples / RATE
    whole = processor(audio=clip, sampling_rate=RATE)
    processor.max_seconds = max_seconds
    batch = processor(audio=clip, sampling_rate=RATE)
    rows = zip(time_first(batch[name], processor), batch["attention_mask"], strict=True)
    chunks = [chunk[mask.bool()] for chunk, mask in rows]
    return time_first(whole[name], processor)[0], chunks, batch


def time_first(features: torch.Tensor, processor) -> torch.Tensor:
    return features.mT if processor.time_axis == 1 else features


@pytest.mark.parametrize(("samples", "chunks"), [(8_000, 1), (8_001, 2), (16_000, 2), (16_001, 3), (63_999, 8)])
def test_long_speech_is_split_into_the_fewest_nearly_equal_chunks(processor, samples, chunks):
    whole, parts, batch = whole_and_chunked(processor, samples, 0.5)
    assert len(parts) == len(batch["attention_mask"]) == chunks
    torch.testing.assert_close(torch.cat(parts), whole)
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    longest = processor(audio=clips(8_000), sampling_rate=RATE)["attention_mask"].sum()
    assert max(lengths) <= longest + 1  # an odd SeamlessM4T frame falls away at the end of a clip, not of a chunk
    assert ("chunk_clips" in batch) == (chunks > 1)


def test_thirty_seconds_and_one_sample_fit_whispers_positions(whisper_processor):
    batch = whisper_processor(audio=clips(30 * RATE + 1), sampling_rate=RATE)
    assert batch["attention_mask"].sum(1).tolist() == [1_501, 1_500]


def test_chunks_of_a_batch_know_their_clips(processor):
    processor.max_seconds = 0.5
    speech = clips(4_000, 20_000, 8_000, 8_001)
    batch = processor(audio=speech, sampling_rate=RATE)
    assert batch["chunk_clips"].dtype == torch.int64
    assert batch["chunk_clips"].tolist() == [0, 1, 1, 1, 2, 3, 3]
    assert len(batch["attention_mask"]) == len(batch[speech_name(processor)]) == 7
    features = time_first(batch[speech_name(processor)], processor)
    assert not features[~batch["attention_mask"].bool()].any()
    for index, clip in enumerate(speech):
        rows = (batch["chunk_clips"] == index).nonzero().flatten().tolist()
        alone = processor(audio=clip, sampling_rate=RATE)
        assert torch.equal(alone["attention_mask"].sum(1), batch["attention_mask"][rows].sum(1))
        alone_features = time_first(alone[speech_name(processor)], processor)
        for place, row in enumerate(rows):
            frames = int(batch["attention_mask"][row].sum())
            assert torch.equal(features[row, :frames], alone_features[place, :frames])
    assert "chunk_clips" not in processor(audio=speech[::2], sampling_rate=RATE)


def test_a_split_clip_is_normalised_as_a_whole(waveform_processor):
    waveform_processor.max_seconds = 0.5
    speech = np.concatenate([0.01 * clips(8_000)[0], clips(8_000)[0]])
    values = waveform_processor(audio=speech, sampling_rate=RATE)["input_values"]
    assert values[1].std() > 50 * values[0].std()
    assert values.mean().abs() < 1e-4 and abs(values.std() - 1) < 1e-2


def test_more_than_64_chunks_are_refused(waveform_processor):
    waveform_processor.max_seconds = 0.5
    assert len(waveform_processor(audio=clips(512_000), sampling_rate=RATE)["chunk_clips"]) == 64
    with pytest.raises(MediaError, match=r"audio\[1\] lasts 32\.5 s; the limit is 32 s .*shorter"):
        waveform_processor(audio=clips(8_000, 520_000), sampling_rate=RATE)


def test_the_longest_recording_of_flickr8k_audio_is_heard(waveform_processor):
    waveform_processor.max_seconds = 15.0  # of configs/flickr8k_audio.yaml
    assert len(waveform_processor(audio=clips(int(323.5 * RATE)), sampling_rate=RATE)["chunk_clips"]) == 22


def test_chunks_may_not_be_shorter_than_the_minimum():
    with pytest.raises(ValueError, match=r"max_seconds=0\.4 must be at least twice min_seconds=0\.25"):
        SpeechImageRetrievalProcessor(Wav2Vec2FeatureExtractor(), BlipImageProcessor(), max_seconds=0.4)


def test_speech_of_the_minimum_can_be_masked_in_training(waveform_processor):
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
    )
    model = HubertModel(config).train()
    assert model(**waveform_processor(audio=clips(10), sampling_rate=RATE)).last_hidden_state.shape[1] >= 10


def test_an_odd_frame_is_no_speech_to_seamless(seamless_processor):
    # 24 frames of 25 ms every 10 ms, and 25: the extractor's own batch keeps half of the last pair, masked.
    lengths = (400 + 23 * 160, 400 + 24 * 160)
    batch = seamless_processor(audio=clips(*lengths), sampling_rate=RATE)
    assert batch["attention_mask"].sum(1).tolist() == [12, 12]
    assert batch["input_features"].shape == (2, 12, 32)
    theirs = seamless_processor.feature_extractor(clips(*lengths), sampling_rate=RATE, return_tensors="pt")
    assert theirs["attention_mask"].tolist()[1][-1] == 0 and theirs["input_features"][1, -1].any()
    torch.testing.assert_close(batch["input_features"], theirs["input_features"][:, :12])


@pytest.mark.parametrize(
    "bad",
    [np.zeros(0, np.float32), np.array([np.nan, 0.0]), b"noise", "missing.wav", {"path": None}, np.array("text")],
)
def test_unusable_speech_is_named_by_its_place(waveform_processor, bad):
    with pytest.raises(MediaError, match=r"audio\[2\]: "):
        waveform_processor(audio=[*clips(8_000, 8_000), bad], sampling_rate=RATE)


def test_an_undeclared_rate_is_named_by_its_place(processor, wav):
    with pytest.raises(MediaError, match=r"audio\[1\]: .*sampling_rate"):
        processor(audio=[wav, *clips(8_000)])


@pytest.mark.parametrize("bad", [b"noise", "missing.png", {"path": None}, np.zeros((4, 4, 3))])
def test_unusable_pictures_are_named_by_their_place(waveform_processor, bad):
    with pytest.raises(MediaError, match=r"images\[1\]: "):
        waveform_processor(images=[Image.new("RGB", (4, 4)), bad])


def test_nothing_to_process_is_refused(waveform_processor):
    with pytest.raises(ValueError, match=r"audio=.*images="):
        waveform_processor()
    for empty in ({"audio": []}, {"images": []}):
        with pytest.raises(ValueError, match="empty"):
            waveform_processor(**empty)


def test_one_file_holds_the_processor_and_auto_processor_loads_it(processor, tmp_path):
    processor.min_seconds, processor.max_seconds = 0.2, 7.0
    processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.json")] == ["processor_config.json"]
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "SpeechImageRetrievalProcessor"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "speech_image_retrieval"}))
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SpeechImageRetrievalProcessor
    assert (loaded.min_seconds, loaded.max_seconds) == (0.2, 7.0)
    assert same_batches(processor, loaded)


def test_workers_can_receive_it(processor):
    assert same_batches(processor, pickle.loads(pickle.dumps(processor)))


def same_batches(one: SpeechImageRetrievalProcessor, other: SpeechImageRetrievalProcessor) -> bool:
    inputs = {"audio": clips(8_000, 5_000), "images": [Image.new("RGB", (20, 10), "red")] * 2, "sampling_rate": RATE}
    batches = one(**inputs), other(**inputs)
    return all(torch.equal(batches[0][name], batches[1][name]) for name in one.model_input_names)


@pytest.mark.parametrize("return_tensors", ["np", None])
def test_other_tensor_types_hold_the_same_values(processor, return_tensors):
    speech, picture = clips(8_000, 5_000), [Image.new("RGB", (20, 10), "red")] * 2
    expected = processor(audio=speech, images=picture, sampling_rate=RATE)
    batch = processor(audio=speech, images=picture, sampling_rate=RATE, return_tensors=return_tensors)
    assert set(batch) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(np.asarray(batch[name]), values.numpy(), rtol=1e-5, atol=1e-6)
