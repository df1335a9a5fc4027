"""An example is what endpoints take, under a name by which it is known."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from speech_image_retrieval.hub_cards.content import check_content
from speech_image_retrieval.hub_cards.examples import check_examples, find_example, write_example
from speech_image_retrieval.hub_cards.refusal import PublishError

from ...corpora.spoken_rows import picture, recording


def row(audio: bytes, image: bytes) -> dict[str, Any]:
    return {
        "audio": {"bytes": audio, "path": None},
        "image": {"bytes": image, "path": None},
        "caption_id": "caption 0",
    }


def stereo_picture() -> bytes:
    """An MPO, as cameras write it: a JPEG with another behind it."""
    encoded = io.BytesIO()
    first, second = (Image.open(io.BytesIO(picture(number))) for number in range(2))
    first.save(encoded, "MPO", save_all=True, append_images=[second])
    return encoded.getvalue()


def wide_picture() -> bytes:
    encoded = io.BytesIO()
    Image.new("1", (8000, 6000)).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.mark.parametrize(
    ("form", "suffix"),
    [({"format": "WAVEX"}, ".wav"), ({"format": "CAF"}, ".caf"), ({"format": "OGG", "subtype": "OPUS"}, ".ogg")],
)
def test_what_endpoints_take_is_published_under_a_known_name(tmp_path: Path, form: dict[str, str], suffix: str):
    audio, image = recording(0, **form), stereo_picture()
    write_example(row(audio, image), tmp_path)
    assert (tmp_path / "examples" / f"recording{suffix}").read_bytes() == audio
    assert (tmp_path / "examples" / "picture.jpg").read_bytes() == image
    check_examples(tmp_path)
    check_content(tmp_path)


@pytest.mark.parametrize(
    ("audio", "image", "words"),
    [
        (recording(0, seconds=31), picture(0), "The recording of the row 'caption 0', .* lasts 31 s; at most 30 s"),
        (bytes(10_000_001), picture(0), "at most 10 MB"),
        (recording(0, format="VOC"), picture(0), "Recordings of the format VOC are not taken"),
        (recording(0), b"dear", "The picture of the row 'caption 0', .* cannot be read as a picture"),
        (recording(0), wide_picture(), "at most 40 megapixels"),
    ],
)
def test_what_endpoints_do_not_take_is_refused_before_anything_is_tried(
    tmp_path: Path, audio: bytes, image: bytes, words: str
):
    with pytest.raises(PublishError, match=f"{words}.*recording.* and picture.*--examples CORPUS"):
        write_example(row(audio, image), tmp_path)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "recording.wav").write_bytes(audio)
    (tmp_path / "examples" / "picture.png").write_bytes(image)
    with pytest.raises(PublishError, match=words.split(".*")[-1]):
        check_examples(tmp_path)


def test_other_files_are_told_what_is_expected(tmp_path: Path):
    write_example(row(recording(0), picture(0)), tmp_path)
    (tmp_path / "examples" / "notes.txt").write_text("what they say")
    check_examples(tmp_path)
    wav = find_example(tmp_path, "recording")
    shutil.copyfile(wav, wav.with_suffix(".flac"))
    with pytest.raises(PublishError, match=r"has 2 files recording\.\*, and needs one: .*recording\.wav"):
        check_examples(tmp_path)
    for path in wav.parent.glob("recording.*"):
        path.rename(path.with_stem("voice"))
    with pytest.raises(PublishError, match=r"examples has no files recording\.\*.*picture\.jpg"):
        check_examples(tmp_path)
