"""A gallery that lies beside a model: pictures or recordings, encoded, in files that anything can read.

A folder of three parts: `gallery.safetensors` holds `embeddings` (items, projection) float32 and, if the items can be
re-ranked, `states` (all tokens, width) float16 and `lengths` (items,) int64; `gallery.json` names the items; `media/`
holds what is shown of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .token_states import PackedStates

Modality = Literal["image", "speech"]

GALLERY_FORMAT = 1
GALLERY_FOLDERS: dict[str, str] = {"image": "gallery/images", "speech": "gallery/speech"}
"""Where a model keeps its gallery of each modality."""

ITEMS_FILE, TENSORS_FILE, MEDIA_FOLDER = "gallery.json", "gallery.safetensors", "media"
PLURAL: dict[str, str] = {"image": "pictures", "speech": "recordings"}


@dataclass(frozen=True)
class Gallery:
    """Encoded pictures or recordings, on the CPU.

    Attributes:
        embeddings: (items, projection) float32, unit length.
        states: token states, which re-ranking needs: (pictures, tokens, width), or those of recordings packed; None if
            they were not kept.
        ids, labels: of each item; a label is its caption or its name.
        files: what is shown of each item, None if there is nothing.
        score_rule: what orders re-ranked items if the caller does not say.
        model: fingerprint of the model that encoded a shipped gallery; None if it is not stated.
    """

    modality: Modality
    embeddings: Tensor
    states: Tensor | PackedStates | None
    ids: Sequence[Any]
    labels: Sequence[str]
    files: Sequence[Path | None]
    score_rule: str = "sim"
    model: str | None = None

    def __len__(self) -> int:
        return len(self.embeddings)


def find_gallery(model: str, modality: Modality, **hub_options: Any) -> Gallery:
    """The gallery of a model's folder, or of its repository on the Hub, of which nothing else is downloaded.

    Args:
        model: a folder or a Hub id.
        hub_options: of `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ValueError: it has none, or a damaged one.
    """
    wanted = GALLERY_FOLDERS[modality]
    if model and not Path(model).is_dir():
        folder = Path(snapshot_download(model, allow_patterns=f"{wanted}/*", **hub_options))
    else:
        folder = Path(model)
    if not model or not Path(folder, wanted).is_dir():
        offline = constants.is_offline_mode() or hub_options.get("local_files_only")
        place = " that is in the cache, and offline nothing else is looked for" if model and offline else ""
        raise ValueError(
            f"{model or 'This model'} ships no gallery of {PLURAL[modality]}{place}. Pass candidates=[...], the "
            f"{PLURAL[modality]} to choose from."
        )
    return read_gallery(folder / wanted)


def read_gallery(folder: str | Path) -> Gallery:
    """
    Raises:
        ValueError: files of another format, that are damaged or missing, or that do not belong together.
    """
    try:
        return _read(Path(folder))
    except (OSError, LookupError, TypeError, AttributeError, RuntimeError, JSONDecodeError, SafetensorError) as error:
        said = f"{type(error).__name__}, {error}"
        raise ValueError(f"The gallery {folder} is damaged or lacks a part: {said}. Write it again.") from error


def _read(folder: Path) -> Gallery:
    stated = json.loads((folder / ITEMS_FILE).read_text(encoding="utf-8"))
    if stated.get("format") != GALLERY_FORMAT:
        raise ValueError(
            f"{folder} is a gallery of format {stated.get('format')}; this code reads format {GALLERY_FORMAT}. Take "
            "code and gallery of one revision."
        )
    items, tensors = stated["items"], load_file(folder / TENSORS_FILE)
    states = None
    if "states" in tensors:
        lengths = tensors["lengths"]
        if len(lengths) != len(items) or int(lengths.sum()) != len(tensors["states"]):
            raise ValueError(f"{folder}: the token states do not belong to the items. Write the gallery again.")
        states = PackedStates.from_tokens(tensors["states"], lengths)
        if stated["modality"] == "image":  # pictures have equally many tokens each
            states = states.tokens.view(len(items), int(lengths[0]), -1)
    if len(tensors["embeddings"]) != len(items):
        raise ValueError(
            f"{folder} names {len(items)} items and has {len(tensors['embeddings'])} embeddings. Write it again."
        )
    return Gallery(
        modality=stated["modality"],
        embeddings=tensors["embeddings"],
        states=states,
        ids=[item["id"] for item in items],
        labels=[item["label"] for item in items],
        files=[_inside(folder, item["file"]) for item in items],
        score_rule=stated["score_rule"],
        model=stated.get("model"),
    )


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise ValueError(f"{folder} names the file {name!r}, which is not in its folder {MEDIA_FOLDER}.")
    return folder / MEDIA_FOLDER / name
