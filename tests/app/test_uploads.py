from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageFile
from speech_image_retrieval.processing.media import MediaError, load_speech
from speech_image_retrieval.processing.uploads import UploadLimits, UploadRefused, read_picture, read_recording

from .hostile_files import RATE, bomb_png, long_silence, lying_mp3, recording

LIMITS = UploadLimits()


def refused(read, upload: Path | bytes, limits: UploadLimits = LIMITS) -> str:
    with pytest.raises(UploadRefused) as refusal:
        read(upload, limits)
    return str(refusal.value)


@pytest.fixture
def nothing_is_decoded(monkeypatch):
    def decoding(*_, **__):
        raise AssertionError("decoded before it was checked")

    monkeypatch.setattr(soundfile.SoundFile, "read", decoding)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoding)


@pytest.mark.parametrize("file_format", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_recordings_of_all_usual_formats_are_read(file_format: str):
    clip = read_recording(recording(0.5, file_format), LIMITS)
    assert clip["sampling_rate"] == RATE and clip["array"].dtype == np.float32
    assert len(clip["array"]) == pytest.approx(RATE / 2, rel=0.1)


def test_channels_are_mixed(tmp_path: Path):
    stereo = np.tile(np.array([[0.5, -0.1]], np.float32), (RATE, 1))
    soundfile.write(tmp_path / "stereo.wav", stereo, RATE)
    np.testing.assert_allclose(read_recording(tmp_path / "stereo.wav", LIMITS)["array"], 0.2, atol=1e-3)


@pytest.mark.parametrize(("file_format", "seconds"), [("FLAC", 7200), ("OGG", 180)])
def test_long_silence_in_a_small_file_is_refused_undecoded(file_format: str, seconds: int, nothing_is_decoded):
    silence = long_silence(seconds, file_format)
    assert len(silence) < LIMITS.max_bytes
    assert refused(read_recording, silence) == (
        f"This recording lasts {seconds // 60} minutes; at most 30 s are taken. Say it in one or two sentences."
    )


def test_the_limit_itself_is_taken():
    assert len(read_recording(recording(30, "FLAC"), LIMITS)["array"]) == 30 * RATE
    assert "lasts 31 s" in refused(read_recording, recording(31, "FLAC"))


def test_a_flac_that_does_not_say_how_long_it_is_is_refused_in_words():
    streamed = bytearray(recording(2, "FLAC"))
    streamed[21] &= 0xF0  # the low 36 bits of these eight bytes are the number of samples
    streamed[22:26] = bytes(4)
    assert "does not say how long it is" in refused(read_recording, bytes(streamed))
    with pytest.raises(MediaError, match="does not say how long it is"):
        load_speech(bytes(streamed), None, RATE)


def test_a_header_that_says_less_than_follows_decodes_no_more():
    assert len(read_recording(lying_mp3(seconds=60, frames_said=10), LIMITS)["array"]) < RATE


def test_what_is_no_recording_is_refused(tmp_path: Path, nothing_is_decoded):
    text = tmp_path / "letter.wav"
    text.write_text("dear")
    raw = tmp_path / "noise.raw"  # soundfile would ask for its rate by a TypeError
    raw.write_bytes(b"\1" * 1000)
    for upload in (text, raw, bomb_png()):
        assert "cannot be read as a recording" in refused(read_recording, upload)
    stream = io.BytesIO()
    soundfile.write(stream, np.ones(100), RATE, format="MAT5")
    assert "of the format MAT5 are not taken" in refused(read_recording, stream.getvalue())


def test_empty_silent_and_damaged_recordings_are_refused():
    assert refused(read_recording, b"") == "This file is empty."
    assert refused(read_recording, recording(0)) == "This recording is empty."
    for silence in (long_silence(1), recording(1, loudness=1e-4)):
        assert "There is no sound" in refused(read_recording, silence)
    assert "too short" in refused(read_recording, recording(0.04))
    stream = io.BytesIO()
    soundfile.write(stream, np.full(100, np.nan, np.float32), RATE, format="WAV", subtype="FLOAT")
    assert "no numbers" in refused(read_recording, stream.getvalue())


def test_rates_and_channels_that_multiply_memory_are_refused():
    for samples, rate in ((np.ones((100, 9)), RATE), (np.ones(100), 400_000)):
        stream = io.BytesIO()
        soundfile.write(stream, samples, rate, format="WAV")
        assert "at most 8 channels at 192000 Hz" in refused(read_recording, stream.getvalue())


def test_large_and_vanished_files_are_refused_unread(tmp_path: Path):
    large = tmp_path / "large.wav"
    with large.open("wb") as file:
        file.truncate(11_000_000)
    for read in (read_recording, read_picture):
        assert refused(read, large) == "This file has 11.0 MB; at most 10 MB are taken."
        assert "Please send it again" in refused(read, tmp_path / "gone.wav")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_undecoded(nothing_is_decoded):
    assert len(bomb_png()) < 100_000
    assert refused(read_picture, bomb_png()) == (
        "This picture has 12000 x 12000 pixels; at most 40 megapixels are taken. Make it smaller."
    )
    assert "too many pixels" in refused(read_picture, bomb_png(40_000, 8000))  # Pillow's own limit comes first


def test_pictures_are_read_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.new("RGB", (30, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg", LIMITS).size == (20, 30)


def test_what_is_no_picture_is_refused(tmp_path: Path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)).save(whole, "PNG")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"  # Pillow would start Ghostscript
    for upload in (b"<svg/>", postscript, whole.getvalue()[:2000]):
        assert "cannot be read as a picture" in refused(read_picture, upload)
    assert refused(read_picture, b"") == "This file is empty."
