from __future__ import annotations

import pytest
import torch
from speech_image_retrieval.corpora.schema import CorpusError, load_corpus
from speech_image_retrieval.training.examples import Collator, SpokenCaptions
from speech_image_retrieval.training.setup import build_processor

SPECTROGRAM = {"type": "WhisperFeatureExtractor", "feature_size": 8, "hop_length": 160, "n_fft": 400}


@pytest.fixture(scope="module")
def split(tones):
    return load_corpus(tones)["train"]


@pytest.fixture(params=["waveform", "spectrogram"])
def processor(request, make_arguments, tmp_path):
    arguments = make_arguments(tmp_path)
    if request.param == "spectrogram":
        arguments.processor = {**arguments.processor, "feature_extractor": SPECTROGRAM}
    return build_processor(arguments)


def test_rows_of_one_image_share_their_number_and_others_do_not(split, processor):
    examples = SpokenCaptions(split, processor)
    names = split["image_id"]
    for first in range(len(examples)):
        for second in range(len(examples)):
            assert (examples.image_ids[first] == examples.image_ids[second]) == (names[first] == names[second])


def test_a_batch_is_what_the_processor_makes_of_its_rows(split, processor):
    examples = SpokenCaptions(split, processor)
    rows = [5, 0, 3]
    batch = Collator(processor.time_axis)([examples[row] for row in rows])
    assert batch.rows.tolist() == rows
    assert batch.image_ids.tolist() == examples.image_ids[rows].tolist()
    assert len(set(batch.speech["attention_mask"].sum(1).tolist())) > 1
    for place, row in enumerate(rows):
        alone = processor(audio=[split[row]["audio"]], images=[split[row]["image"]])
        torch.testing.assert_close(batch.pixel_values[place], alone.pop("pixel_values")[0])
        mask = alone["attention_mask"][0]
        assert batch.speech["attention_mask"][place].sum() == mask.sum()
        (name,) = set(batch.speech) - {"attention_mask"}
        own, padded = alone[name][0], batch.speech[name][place]
        length = own.shape[processor.time_axis]
        torch.testing.assert_close(padded.narrow(processor.time_axis, 0, length), own)
        assert not padded.narrow(processor.time_axis, length, padded.shape[processor.time_axis] - length).any()


def test_cached_examples_are_the_same_the_second_time_and_decoded_once(split, processor, monkeypatch):
    examples = SpokenCaptions(split, processor, cache=True)
    calls = []
    original = SpokenCaptions._process
    monkeypatch.setattr(SpokenCaptions, "_process", lambda self, row: calls.append(row) or original(self, row))
    first, second = examples[2], examples[2]
    assert calls == [2]
    assert all(torch.equal(part, second["speech"][name]) for name, part in first["speech"].items())
    fresh = SpokenCaptions(split, processor)[2]
    for name, part in fresh["speech"].items():
        torch.testing.assert_close(first["speech"][name].to(part.dtype), part, atol=2e-3, rtol=2e-3)
    batch = Collator(processor.time_axis)([first])
    assert batch.pixel_values.dtype == torch.float32
    torch.testing.assert_close(batch.pixel_values[0], fresh["pixel_values"], atol=2e-3, rtol=2e-3)


def test_the_cache_keeps_every_rows_own_speech(split, processor):
    cached, plain = SpokenCaptions(split, processor, cache=True), SpokenCaptions(split, processor)
    for row in (0, 1, 0, 1):  # two captions of one picture
        assert cached[row]["speech"]["attention_mask"].shape == plain[row]["speech"]["attention_mask"].shape
        for name, part in plain[row]["speech"].items():
            torch.testing.assert_close(cached[row]["speech"][name].to(part.dtype), part, atol=2e-3, rtol=2e-3)


def test_speech_bytes_order_rows_by_duration_wherever_the_speech_is(split, processor, tmp_path):
    sizes = SpokenCaptions(split, processor).speech_bytes()
    assert sizes.tolist() == [len(row["audio"]["bytes"]) for row in split]

    def to_file(row, number):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(row["audio"]["bytes"])
        return {"audio": {"bytes": None, "path": str(path)}}

    features = split.features
    files = split.map(to_file, with_indices=True, features=features)
    assert SpokenCaptions(files, processor).speech_bytes().tolist() == sizes.tolist()


def test_unusable_speech_names_its_caption(split, make_arguments, tmp_path):
    arguments = make_arguments(tmp_path)
    arguments.processor = {**arguments.processor, "max_seconds": 0.1}
    with pytest.raises(CorpusError, match=r"Caption 'train-0-1': .*the limit is 0.1 s"):
        SpokenCaptions(split, build_processor(arguments))[1]
