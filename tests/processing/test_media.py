from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from speech_image_retrieval.processing.media import MediaError, load_image, load_speech

RATE = 16_000


def sine(rate: int, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate).astype(np.float32)


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def noise_picture(width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_duration_and_frequency(rate):
    samples = load_speech(sine(rate), rate, RATE)
    assert samples.dtype == np.float32 and abs(len(samples) - RATE) <= 1
    spectrum = np.abs(np.fft.rfft(samples[:RATE]))
    assert spectrum.argmax() == 440
    assert spectrum[440] ** 2 > 0.99 * (spectrum**2).sum()


def test_resampling_does_not_alias():
    samples = load_speech(sine(48_000, frequency=12_000), 48_000, RATE)
    assert np.abs(samples[1000:-1000]).max() < 1e-3


def test_every_container_gives_the_same_samples(tone, wav, tmp_path):
    path = tmp_path / "tone.wav"
    path.write_bytes(wav)
    pcm = (tone * 32768).astype(np.int16)
    flac, stereo_wav = io.BytesIO(), io.BytesIO()
    soundfile.write(flac, tone, RATE, format="FLAC")
    soundfile.write(stereo_wav, np.stack([tone, tone], axis=1), RATE, format="WAV")
    forms = [
        tone,
        tone.astype(np.float64),
        tone.tolist(),
        torch.from_numpy(tone),
        pcm,
        pcm.astype(np.int32) * 65536,
        np.stack([tone, tone]),
        np.stack([tone, tone], axis=1),
        np.stack([2 * tone, np.zeros_like(tone)]),
        tone[None],
        str(path),
        path,
        wav,
        flac.getvalue(),
        stereo_wav.getvalue(),
        {"array": tone, "sampling_rate": RATE, "path": None},
        {"bytes": wav, "path": "tone.wav"},
        {"bytes": None, "path": str(path)},
    ]
    for form in forms:
        np.testing.assert_allclose(load_speech(form, RATE, RATE), tone, atol=1e-6)


def test_unsigned_bytes_are_centred():
    np.testing.assert_allclose(load_speech(np.array([0, 128, 255], np.uint8), RATE, RATE), [-1, 0, 127 / 128])


def test_files_and_mappings_know_their_own_rate():
    stream = io.BytesIO()
    soundfile.write(stream, sine(8_000), 8_000, format="WAV")
    assert len(load_speech(stream.getvalue(), 44_100, RATE)) == RATE
    assert len(load_speech({"array": sine(8_000), "sampling_rate": 8_000}, 44_100, RATE)) == RATE


@pytest.mark.parametrize(
    ("speech", "rate", "complaint"),
    [
        (np.zeros(100, np.float32), None, "no sampling rate"),
        ({"array": np.zeros(100)}, None, "no sampling rate"),
        (np.zeros(100, np.float32), 0, "sampling rate of 0 Hz"),
        (np.zeros(0, np.float32), RATE, "no samples"),
        (np.zeros((2, 0), np.float32), RATE, "no samples"),
        (np.array([0.0, np.nan]), RATE, "NaN or infinite"),
        (np.array([0.0, np.inf]), RATE, "NaN or infinite"),
        (np.zeros((50, 100), np.float32), RATE, r"\(50, 100\)"),
        (np.zeros((2, 3, 4), np.float32), RATE, r"\(2, 3, 4\)"),
        (np.array(["speech"]), RATE, "must hold numbers"),
        (None, RATE, "must hold numbers"),
        (b"RIFF, but not really", None, "20 bytes.*cannot be decoded"),
        (b"", None, "cannot be decoded"),
        ("no/such/file.wav", None, "no/such/file.wav does not exist"),
        (Path("no/such/file.wav"), None, "does not exist"),
        ({"bytes": None, "path": None}, None, "neither"),
        ({}, None, "neither"),
    ],
)
def test_unusable_speech_is_refused_in_words(speech, rate, complaint):
    with pytest.raises(MediaError, match=complaint):
        load_speech(speech, rate, RATE)


def test_a_recording_without_samples_is_refused():
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(0, np.float32), RATE, format="WAV")
    with pytest.raises(MediaError, match="no samples"):
        load_speech(stream.getvalue(), None, RATE)


def test_every_form_gives_the_same_picture(tmp_path):
    picture = noise_picture()
    path = tmp_path / "picture.png"
    picture.save(path)
    data = path.read_bytes()
    forms = [
        picture, np.asarray(picture), str(path), path, data,
        {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}, Image.open(path),
    ]  # fmt: skip
    for form in forms:
        loaded = load_image(form)
        assert loaded.mode == "RGB"
        assert np.array_equal(np.asarray(loaded), np.asarray(picture))


def test_the_caller_keeps_an_untouched_picture():
    picture = noise_picture()
    load_image(picture).paste("white", (0, 0, 24, 16))
    assert np.array_equal(np.asarray(picture), np.asarray(noise_picture()))


def test_transparency_turns_white():
    picture = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    for form in (picture, encoded(picture), encoded(picture.convert("RGBA"), "WEBP", lossless=True)):
        pixels = np.asarray(load_image(form))[0]
        assert pixels[0].tolist() == [255, 0, 0] and pixels[1].tolist() == [255, 255, 255]
        assert pixels[2].tolist() == pytest.approx([127, 127, 127], abs=1)


def test_palettes_keep_colours_and_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 10, 200, 30])
    palette.putpixel((1, 0), 1)
    assert np.asarray(load_image(encoded(palette)))[0].tolist() == [[0, 0, 255], [10, 200, 30]]
    transparent = encoded(palette, transparency=0)
    assert np.asarray(load_image(transparent))[0].tolist() == [[255, 255, 255], [10, 200, 30]]


def test_transparent_colour_of_an_rgb_picture_turns_white():
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (200, 0, 0))
    data = encoded(picture, transparency=(1, 2, 3))
    assert np.asarray(load_image(data))[0].tolist() == [[255, 255, 255], [200, 0, 0]]


def test_sixteen_bit_grey_keeps_its_range():
    levels = np.array([[0, 256 * 64, 256 * 128, 65535]], np.uint16)
    for form in (encoded(Image.fromarray(levels)), encoded(Image.fromarray(levels), "TIFF"), Image.fromarray(levels)):
        pixels = np.asarray(load_image(form))
        assert pixels[0, :, 0].tolist() == [0, 64, 128, 255]
        assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr", "HSV", "P"])
def test_every_mode_becomes_rgb(mode):
    loaded = load_image(Image.new("RGB", (5, 4), "white").convert("L" if mode == "LA" else "RGB").convert(mode))
    assert loaded.mode == "RGB" and loaded.size == (5, 4)
    assert np.asarray(loaded).min() >= 254


def test_exif_rotation_stands_pictures_upright():
    picture = Image.new("RGB", (32, 16), "black")
    picture.paste("white", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    upright = load_image(encoded(picture, "JPEG", exif=exif, quality=95))
    assert upright.size == (16, 32)
    pixels = np.asarray(upright)
    assert pixels[:12].min() > 200 and pixels[20:].max() < 50


def test_a_picture_of_one_pixel_is_a_picture():
    assert load_image(encoded(Image.new("RGB", (1, 1), "red"))).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "AVIF"])
@given(share=st.floats(0, 0.9))
def test_truncated_pictures_are_refused(image_format, share):
    data = encoded(noise_picture(), image_format)
    with pytest.raises(MediaError, match="cannot be decoded"):
        load_image(data[: int(share * len(data))])


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_damaged_byte_gives_a_picture_or_a_refusal(image_format, place, value):
    data = bytearray(encoded(noise_picture(), image_format))
    data[int(place * len(data))] = value
    with contextlib.suppress(MediaError):
        assert load_image(bytes(data)).mode == "RGB"


@given(st.binary(max_size=64), st.sampled_from([b"", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"fLaC", b"OggS"]))
def test_noise_for_a_file_is_refused_or_decoded(data, magic):
    with contextlib.suppress(MediaError):
        assert load_speech(magic + data, None, RATE).dtype == np.float32


def png_header(width: int, height: int) -> bytes:
    """A PNG that only claims its size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0"))]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(12_000, 10_001), (50_000, 50_000)])
def test_decompression_bombs_are_refused_before_they_are_decoded(width, height):
    with pytest.raises(MediaError, match="pixels"):
        load_image(png_header(width, height))


def test_a_bomb_inside_an_icon_is_refused():
    bomb = png_header(50_000, 50_000)
    icon = b"icns" + struct.pack(">I", 16 + len(bomb)) + b"ic07" + struct.pack(">I", 8 + len(bomb)) + bomb
    with pytest.raises(MediaError, match=r"cannot be decoded.*pixels"):
        load_image(icon)


def test_an_error_of_decoding_names_a_file_once(tmp_path):
    for load, name in ((load_image, "letter.png"), (lambda path: load_speech(path, None, 16_000), "letter.wav")):
        path = tmp_path / name
        path.write_text("dear", encoding="utf-8")
        with pytest.raises(MediaError, match="cannot be decoded") as refusal:
            load(path)
        assert str(refusal.value).count(name) == 1


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (b"not a picture", "13 bytes.*cannot be decoded"),
        (b"", "cannot be decoded"),
        ("no/such/picture.png", "no/such/picture.png does not exist"),
        ({"bytes": None, "path": None}, "neither"),
        (np.zeros((4, 4, 3), np.float32), "uint8.*float32"),
        (np.zeros((3, 4, 4), np.uint8)[..., :2], "uint8"),
        (np.zeros((0, 4, 3), np.uint8), "uint8"),
        (np.zeros(4, np.uint8), "uint8"),
        (None, "uint8"),
    ],
)
def test_unusable_pictures_are_refused_in_words(image, complaint):
    with pytest.raises(MediaError, match=complaint):
        load_image(image)


def test_a_picture_that_was_opened_but_is_truncated_is_refused(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(noise_picture(), "JPEG")[:-200])
    with pytest.raises(MediaError, match="cannot be decoded"):
        load_image(Image.open(path))
