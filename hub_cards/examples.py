"""The recording and the picture that a published model is shown and tried with."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import soundfile
from PIL import Image

from ..processing.uploads import UploadLimits, UploadRefused, read_picture, read_recording
from .refusal import PublishError

_FOLDER = "examples"
_READERS: dict[str, Callable[[bytes, UploadLimits], Any]] = {"recording": read_recording, "picture": read_picture}
# Formats that are known by the name of another, of which they are a kind.
_SUFFIXES = {"MPO": ".jpg", "WAVEX": ".wav", "RF64": ".wav"}


def write_example(row: Mapping[str, Any], folder: Path) -> None:
    """Make the recording and the picture of a row of a corpus the examples of a staged folder.

    Raises:
        PublishError: an endpoint would not take them.
    """
    media = {"recording": _encoded(row["audio"]), "picture": _encoded(row["image"])}
    for kind, content in media.items():
        _check(kind, content, f"The {kind} of the row {row.get('caption_id')!r}, the first of the test split,")
    examples = folder / _FOLDER
    shutil.rmtree(examples, ignore_errors=True)
    examples.mkdir()
    with Image.open(io.BytesIO(media["picture"])) as picture:
        formats = {"recording": soundfile.info(io.BytesIO(media["recording"])).format, "picture": picture.format}
    for kind, content in media.items():
        suffix = _SUFFIXES.get(formats[kind], f".{formats[kind].lower()}")
        (examples / f"{kind}{suffix}").write_bytes(content)


def check_examples(model: Path) -> None:
    """Refuse a model whose folder has no examples, or such as an endpoint would not take.

    Raises:
        PublishError: that; the message says what is expected.
    """
    if not (model / _FOLDER).is_dir():
        raise PublishError(
            f"There is no recording and no picture to show and try {model} with. Give a corpus that has them: "
            "--examples CORPUS"
        )
    for kind in _READERS:
        path = find_example(model, kind)
        _check(kind, path.read_bytes(), f"{path}")


def find_example(model: Path, kind: str) -> Path:
    """The `recording` or the `picture` among the examples of a model's folder.

    Raises:
        PublishError: there is none, or there are several.
    """
    found = list((model / _FOLDER).glob(f"{kind}.*"))
    if len(found) != 1:
        raise PublishError(
            f"{model / _FOLDER} has {len(found) or 'no'} files {kind}.*, and needs one: it holds a recording, such as "
            "recording.wav, and a picture, such as picture.jpg. Rename them, or give a corpus: --examples CORPUS"
        )
    return found[0]


def _check(kind: str, content: bytes, what: str) -> None:
    try:
        _READERS[kind](content, UploadLimits())
    except UploadRefused as error:
        raise PublishError(
            f"{what} cannot be an example, for an endpoint would not take it: {error} Put others into the folder "
            f"{_FOLDER} of the model, recording.* and picture.*, or give another corpus: --examples CORPUS"
        ) from error


def _encoded(media: Mapping[str, Any]) -> bytes:
    return media["bytes"] if media["bytes"] is not None else Path(media["path"]).read_bytes()
