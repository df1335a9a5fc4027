from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from speech_image_retrieval.corpora import media_facts
from speech_image_retrieval.corpora.media_facts import (
    BROKEN_OFF,
    NO_SAMPLES,
    NOT_FINITE,
    TOO_LARGE,
    UNREADABLE,
    UnusableMedia,
    audio_problem,
    inspect_picture,
    inspect_recording,
)

from .spoken_rows import RATE, at, embedded, encoded_samples, file, picture, recording

FORMS = [
    {"format": "WAV"},
    {"format": "WAV", "subtype": "ULAW"},
    {"format": "FLAC"},
    {"format": "OGG", "subtype": "VORBIS"},
    {"format": "OGG", "subtype": "OPUS"},
    {"format": "MP3"},
]


def problem(media, decode=True, inspect=inspect_recording) -> UnusableMedia:
    with pytest.raises(UnusableMedia) as caught:
        inspect(media, decode)
    return caught.value


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.get("subtype", form["format"]))
@pytest.mark.parametrize("kept", [0.4, 0.7, 0.9])
def test_a_recording_that_breaks_off_is_found_by_decoding(form, kept, tmp_path):
    whole = recording(1, seconds=3.0, **form)
    assert inspect_recording(embedded(whole), decode=True).seconds == pytest.approx(3.0, abs=0.1)
    part = whole[: int(kept * len(whole))]
    for media in (embedded(part), file(tmp_path / "part", part)):
        assert problem(media).kind in (BROKEN_OFF, UNREADABLE, NO_SAMPLES)


def test_it_says_how_much_is_there():
    whole = recording(1, seconds=2.0)
    assert "states 2.00 s, 1.00 s are there" in str(problem(embedded(whole[: len(whole) // 2 + 22])))


@pytest.mark.parametrize("stated", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_file_from_a_pipe_is_whole(stated):
    whole = recording(1, seconds=1.0)
    piped = whole[:40] + stated.to_bytes(4, "little") + whole[44:]
    assert inspect_recording(embedded(piped), decode=True).seconds == 1.0


def test_a_header_that_is_off_by_its_own_length_loses_nothing():
    whole = recording(1, seconds=1.0)
    assert inspect_recording(embedded(whole[:40] + len(whole).to_bytes(4, "little") + whole[44:]), decode=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_unusable(value):
    samples = np.zeros(3 * 65536, np.float32)
    samples[100] = value
    media = embedded(encoded_samples(samples, subtype="FLOAT"))
    assert problem(media).kind == NOT_FINITE
    assert inspect_recording(media).sampling_rate == RATE


def test_loudness_is_that_of_all_channels_and_blocks():
    samples = np.zeros((200_000, 2))
    samples[150_000, 1] = -0.5
    samples[:1000, 0] = 1.0
    facts = inspect_recording(embedded(encoded_samples(samples)), decode=True)
    assert facts.peak == pytest.approx(1.0, abs=1e-3)
    assert facts.clipped == pytest.approx(1000 / 400_000)
    assert inspect_recording(embedded(encoded_samples(samples[1000:])), decode=True).peak == 0.5


def test_a_recording_without_samples_is_unusable():
    assert problem(embedded(encoded_samples(np.zeros(0)))).kind == NO_SAMPLES


def test_messages_are_the_same_every_time():
    for inspect in (inspect_picture, inspect_recording):
        assert " at 0x" not in str(problem(embedded(b"nothing" * 9), inspect=inspect))


@pytest.mark.parametrize("encoding", ["PNG", "JPEG"])
def test_a_picture_that_breaks_off_is_found_by_decoding(encoding):
    part = picture(1, size=(300, 200), encoding=encoding)[:2000]
    assert inspect_picture(embedded(part)) == (300, 200)
    assert problem(embedded(part), inspect=inspect_picture).kind == UNREADABLE


def test_whatever_a_decoder_raises_is_a_finding(monkeypatch):
    def crash(self):
        raise IndexError("list index out of range")

    media = embedded(picture(1))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", crash)
    found = problem(media, inspect=inspect_picture)
    assert found.kind == UNREADABLE and "list index" in str(found)


@pytest.mark.parametrize("decode", [True, False])
def test_a_picture_with_more_pixels_than_the_processor_takes_is_unusable(decode, monkeypatch):
    monkeypatch.setattr(media_facts, "MAX_PIXELS", 100)
    found = problem(embedded(picture(1, size=(20, 30))), decode, inspect_picture)
    assert found.kind == TOO_LARGE and "20 x 30" in str(found)
    assert inspect_picture(embedded(picture(1, size=(10, 10))), decode) == (10, 10)


def test_audio_problem_is_the_message_or_nothing(tmp_path):
    assert audio_problem(embedded(recording(1))) is None
    assert audio_problem(at(tmp_path / "none.wav")) == f"{tmp_path / 'none.wav'}: no such file"


def test_transparent_and_palette_pictures_are_fine():
    for mode in ("P", "LA", "1", "I;16"):
        encoded = io.BytesIO()
        Image.new(mode, (40, 40)).save(encoded, "PNG")
        assert inspect_picture(embedded(encoded.getvalue()), decode=True) == (40, 40)
