"""What a pipeline is given: a recording or a picture, one or several."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .shipped_gallery import Modality

_PICTURE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


def modality_of(item: Any) -> Modality:
    """Whether something is a picture or a recording: by its type, or by how its bytes begin.

    Raises:
        ValueError: the path of no file, or an address.
    """
    if isinstance(item, Mapping):
        if item.get("array") is not None or item.get("raw") is not None:
            return "speech"
        item = item["bytes"] if item.get("bytes") is not None else item.get("path")
    if isinstance(item, Image.Image):
        return "image"
    if isinstance(item, (str, Path, bytes)):
        return "image" if _begins_as_a_picture(item) else "speech"
    array = np.asarray(item)
    return "image" if array.dtype == np.uint8 and array.ndim > 1 else "speech"


def _begins_as_a_picture(source: str | Path | bytes) -> bool:
    if not isinstance(source, bytes):
        if str(source).startswith(("http://", "https://")):
            raise ValueError(f"Addresses are not fetched. Download {source} first, and pass the file or its bytes.")
        if Path(source).is_dir():
            raise ValueError(f"{source} is a folder. Give the files in it, as a list.")
        if not Path(source).is_file():
            raise ValueError(f"There is no file {source}.")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_PICTURE_FORMATS):
            return True
    except Image.DecompressionBombError:
        return True  # the processor says how many pixels are too many
    except (OSError, ValueError, SyntaxError, RuntimeError, EOFError, struct.error):
        return False


def is_one(inputs: Any) -> bool:
    several = isinstance(inputs, Iterable) and not hasattr(inputs, "__array__")
    return not several or isinstance(inputs, (str, Path, bytes, Mapping, Image.Image))


def common_modality(items: Sequence[Any], what: str) -> Modality:
    if not items:
        raise ValueError(f"There are no {what}.")
    modalities = set()
    for place, item in enumerate(items):
        try:
            modalities.add(modality_of(item))
        except ValueError as error:
            raise ValueError(f"{what}[{place}]: {error}") from error
    if len(modalities) > 1:
        raise ValueError(f"The {what} are pictures and recordings. Give those of one kind in one call.")
    return modalities.pop()


def as_processor_reads(item: Any) -> Any:
    if isinstance(item, Mapping) and item.get("raw") is not None:
        return {"array": item["raw"], "sampling_rate": item.get("sampling_rate")}
    return item


def name_of(item: Any, place: int) -> str:
    path = item.get("path") if isinstance(item, Mapping) else item
    return Path(path).name if isinstance(path, (str, Path)) else str(place)
