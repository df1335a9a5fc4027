from __future__ import annotations

import numpy as np
import pytest
import torch
from speech_image_retrieval.corpora.schema import CorpusError, load_corpus
from speech_image_retrieval.processing import processing_speech_image_retrieval as processing
from speech_image_retrieval.training.examples import Collator, ExampleReader, SpokenCaptions
from speech_image_retrieval.training.setup import build_processor

SPECTROGRAM = {"type": "WhisperFeatureExtractor", "feature_size": 8, "hop_length": 160, "n_fft": 400}


@pytest.fixture(scope="module")
def split(tones):
    return load_corpus(tones)["train"]


@pytest.fixture(params=["waveform", "spectrogram"])
def processor(request, make_arguments, tmp_path):
    arguments = make_arguments(tmp_path)
    # The corpus has clips of 0.12 to 0.2 s; here they keep their lengths.
    arguments.processor = {**arguments.processor, "min_seconds": 0.05}
    if request.param == "spectrogram":
        arguments.processor = {**arguments.processor, "feature_extractor": SPECTROGRAM}
    return build_processor(arguments)


def test_rows_of_one_image_share_their_number_and_others_do_not(split, processor):
    examples = SpokenCaptions(split, ExampleReader(processor))
    names = split["image_id"]
    for first in range(len(examples)):
        for second in range(len(examples)):
            assert (examples.image_ids[first] == examples.image_ids[second]) == (names[first] == names[second])


def test_a_batch_is_what_the_processor_makes_of_its_rows(split, processor):
    examples = SpokenCaptions(split, ExampleReader(processor))
    rows = [5, 0, 3]
    batch = Collator(processor.time_axis)([examples[row] for row in rows])
    assert batch.rows.tolist() == rows
    assert batch.image_ids.tolist() == examples.image_ids[rows].tolist()
    assert len(set(batch.speech["attention_mask"].sum(1).tolist())) > 1
    for place, row in enumerate(rows):
        alone = processor(audio=[split[row]["audio"]], images=[split[row]["image"]])
        torch.testing.assert_close(batch.image["pixel_values"][place], alone.pop("pixel_values")[0])
        mask = alone["attention_mask"][0]
        assert batch.speech["attention_mask"][place].sum() == mask.sum()
        (name,) = set(batch.speech) - {"attention_mask"}
        own, padded = alone[name][0], batch.speech[name][place]
        length = own.shape[processor.time_axis]
        torch.testing.assert_close(padded.narrow(processor.time_axis, 0, length), own)
        assert not padded.narrow(processor.time_axis, length, padded.shape[processor.time_axis] - length).any()


def test_cached_examples_are_the_same_the_second_time_and_decoded_once(split, processor, monkeypatch):
    examples = SpokenCaptions(split, ExampleReader(processor), cache=True)
    calls = []
    for name in ("load_speech", "load_image"):
        original = getattr(processing, name)

        def counted(*args, name=name, original=original):
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(processing, name, counted)
    first, second = examples[2], examples[2]
    assert calls == ["load_speech", "load_image"]
    examples[3]  # another caption of the same picture
    assert calls == ["load_speech", "load_image", "load_speech"]
    assert all(torch.equal(part, second["speech"][name]) for name, part in first["speech"].items())
    fresh = SpokenCaptions(split, ExampleReader(processor))[2]
    for name, part in fresh["speech"].items():
        torch.testing.assert_close(first["speech"][name].to(part.dtype), part, atol=2e-3, rtol=2e-3)
    batch = Collator(processor.time_axis)([first])
    assert batch.image["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(batch.image["pixel_values"][0], fresh["image"]["pixel_values"], atol=2e-3, rtol=2e-3)


def test_the_cache_keeps_every_rows_own_speech(split, processor):
    cached, plain = (
        SpokenCaptions(split, ExampleReader(processor), cache=True),
        SpokenCaptions(split, ExampleReader(processor)),
    )
    for row in (0, 1, 0, 1):  # two captions of one picture
        assert cached[row]["speech"]["attention_mask"].shape == plain[row]["speech"]["attention_mask"].shape
        for name, part in plain[row]["speech"].items():
            torch.testing.assert_close(cached[row]["speech"][name].to(part.dtype), part, atol=2e-3, rtol=2e-3)


def test_speech_sizes_order_rows_by_duration_wherever_the_speech_is(split, processor, tmp_path):
    sizes = SpokenCaptions(split, ExampleReader(processor)).speech_sizes()
    assert sizes.tolist() == [len(row["audio"]["bytes"]) for row in split]

    def to_file(row, number):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(row["audio"]["bytes"])
        return {"audio": {"bytes": None, "path": str(path)}}

    features = split.features
    files = split.map(to_file, with_indices=True, features=features)
    assert SpokenCaptions(files, ExampleReader(processor)).speech_sizes().tolist() == sizes.tolist()


def test_unusable_speech_names_its_caption(split, processor):
    broken = split.map(
        lambda row, number: {"audio": {"bytes": b"noise", "path": None} if number == 1 else row["audio"]},
        with_indices=True,
        features=split.features,
    )
    for crop_seed in (None, 0):
        examples = SpokenCaptions(broken, ExampleReader(processor, crop_seed=crop_seed))
        assert examples[0]["row"] == 0
        with pytest.raises(CorpusError, match=r"Caption 'train-0-1': .*5 bytes.*cannot be decoded"):
            examples[1]


@pytest.fixture
def chunking(processor):
    """The processor, splitting clips of more than 0.15 s: some of the corpus' clips, but not all."""
    processor.max_seconds = 0.15
    return processor


def test_a_batch_with_split_clips_is_what_the_processor_makes_of_its_rows(split, chunking):
    rows = [0, 5, 3, 1, 2]
    examples = SpokenCaptions(split, ExampleReader(chunking))
    batch = Collator(chunking.time_axis)([examples[row] for row in rows])
    audio = [split[row]["audio"] for row in rows]
    expected = chunking(audio=audio)
    assert len(expected["chunk_clips"]) > len(rows) > 1
    assert set(batch.speech) == set(expected)
    for name, part in expected.items():
        torch.testing.assert_close(batch.speech[name], part)
    assert len(batch.image["pixel_values"]) == len(batch.image_ids) == len(rows)
    whole = [row for row in rows if "chunk_clips" not in examples[row]["speech"]]
    assert whole and "chunk_clips" not in Collator(chunking.time_axis)([examples[row] for row in whole]).speech


def test_cached_chunks_are_those_of_the_first_time(split, chunking):
    cached, plain = (
        SpokenCaptions(split, ExampleReader(chunking), cache=True),
        SpokenCaptions(split, ExampleReader(chunking)),
    )
    collate = Collator(chunking.time_axis)
    sizes = plain.speech_sizes()
    rows = [int(sizes.argmax()), int(sizes.argmin())]
    cached[rows[0]]
    first, second = (collate([examples[row] for row in rows]).speech for examples in (cached, plain))
    assert "chunk_clips" in first and first.keys() == second.keys()
    for name, part in first.items():
        assert part.dtype == second[name].dtype
        torch.testing.assert_close(part, second[name], atol=2e-3, rtol=2e-3)


def test_training_hears_another_crop_of_long_speech_every_epoch(split, chunking):
    longest = int(SpokenCaptions(split, ExampleReader(chunking)).speech_sizes().argmax())
    name = chunking.feature_extractor.model_input_names[0]

    def crops(seed: int, row: int = longest) -> list[torch.Tensor]:
        examples = SpokenCaptions(split, ExampleReader(chunking, crop_seed=seed), cache=True)
        heard = []
        for epoch in range(4):
            examples.start_epoch(epoch)
            speech = examples[row]["speech"]
            assert "chunk_clips" not in speech and len(speech[name]) == 1
            heard.append(speech[name])
        return heard

    first, again, other = crops(0), crops(0), crops(1)
    full = chunking(audio=[{"array": np.ones(2_400), "sampling_rate": 16_000}])[name]
    assert all(crop.shape == full.shape and crop.dtype == torch.float32 for crop in first)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(first[0], crop) for crop in first[1:])
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_a_crop_is_a_part_of_its_clip(split, make_arguments, tmp_path):
    arguments = make_arguments(tmp_path)
    extractor = {**arguments.processor["feature_extractor"], "do_normalize": False}
    arguments.processor = {**arguments.processor, "feature_extractor": extractor, "min_seconds": 0.05}
    processor = build_processor(arguments)
    row = int(SpokenCaptions(split, ExampleReader(processor)).speech_sizes().argmax())
    whole = SpokenCaptions(split, ExampleReader(processor))[row]["speech"]["input_values"][0]
    processor.max_seconds = 0.15
    crop = SpokenCaptions(split, ExampleReader(processor, crop_seed=3))[row]["speech"]["input_values"][0]
    assert any(torch.equal(window, crop) for window in whole.unfold(0, len(crop), 1))


def test_speech_that_fits_is_not_cropped(split, processor):
    plain, cropping = (
        SpokenCaptions(split, ExampleReader(processor)),
        SpokenCaptions(split, ExampleReader(processor, crop_seed=0), cache=True),
    )
    for row in (0, 1):
        for name, part in plain[row]["speech"].items():
            torch.testing.assert_close(cropping[row]["speech"][name].to(part.dtype), part, atol=2e-3, rtol=2e-3)
    assert cropping[0]["speech"] is cropping[0]["speech"]  # and is kept in the cache


def test_a_batch_may_mix_cached_and_cropped_speech(split, chunking):
    examples = SpokenCaptions(split, ExampleReader(chunking, crop_seed=0), cache=True)
    sizes = examples.speech_sizes()
    rows = [int(sizes.argmin()), int(sizes.argmax())]
    for order in (rows, rows[::-1]):
        speech = Collator(chunking.time_axis)([examples[row] for row in order]).speech
        assert "chunk_clips" not in speech
        assert {part.dtype for part in speech.values()} == {torch.float32, torch.int64}
