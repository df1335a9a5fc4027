"""Which files may go to the Hub: weights, settings, code, text, and media, each of which is what its name says.

Names prove nothing, so every file is opened. Whatever a loader could unpickle is refused.
"""

from __future__ import annotations

import ast
import json
import pickletools
import re
from pathlib import Path

import soundfile
from PIL import Image
from safetensors import SafetensorError, safe_open

from ..processing.media import PICTURE_SUFFIXES, RECORDING_SUFFIXES
from .refusal import PublishError

_TRAINING_STATE = re.compile(
    r"optimizers?\b.*|objective\.safetensors|random(_states.*)?\b.*|scheduler\b.*|scaler\b.*|trainer_state\.json|"
    r"training_args\..*|checkpoints?(-\d+)?|\.partial-.*|\.old-.*|tensorboard|events\.out\..*"
)
_PICKLED_SUFFIXES = frozenset(
    (".bin", ".ckpt", ".dill", ".h5", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".tar", ".zip")
)
CLONE = (".git", ".gitattributes", ".cache")
"""What a folder has that was cloned or downloaded from the Hub, and is not published from it again."""

_RECORDINGS = RECORDING_SUFFIXES | {".caf"}  # which endpoints take, too
_UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, EOFError)


def check_content(folder: Path) -> None:
    """Refuse a folder that holds anything but what a published model consists of.

    Raises:
        PublishError: training state, a pickle, a link out of the folder, a file that is not what its name says, or
            one of an unknown kind; it is named.
    """
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in CLONE:
            continue
        if not path.resolve().is_relative_to(root):
            raise PublishError(
                f"{name} in {folder} is a link to {path.resolve()}, outside of the folder. Put the file itself there, "
                f"or copy the folder with what it links to: cp -rL {folder} COPY"
            )
        if _TRAINING_STATE.fullmatch(path.name):
            raise PublishError(
                f"{name} in {folder} is training state, which nobody needs to use the model. Publish the folder "
                "`model` of a run, not the run, and remove what is not of the model."
            )
        if path.is_file():
            _check_file(path, f"{name} in {folder}")


def _check_file(path: Path, name: str) -> None:
    suffix = path.suffix.lower()
    # First, so that a pickle is called one. The first bytes of safetensors are a length, which may be any.
    if suffix in _PICKLED_SUFFIXES or (suffix != ".safetensors" and is_pickle(path)):
        raise PublishError(
            f"{name} is, or may hold, a pickle: opening one runs whatever code it names. Weights are published as "
            "safetensors only. Remove it, or save the model again with save_pretrained."
        )
    try:
        known = _open(path, suffix)
    except (*_UNREADABLE, SafetensorError) as error:
        raise PublishError(
            f"{name} is no {suffix} file: {str(error).rstrip('.')}. Write it again, or remove it."
        ) from error
    if not known:
        raise PublishError(
            f"{name} is of a kind that no published model holds. Remove it. Kinds: .safetensors, .json, .py, .md, "
            ".txt, .cff, pictures and recordings."
        )


def _open(path: Path, suffix: str) -> bool:
    """Open a file as what it is called, and say whether there is such a kind."""
    if suffix == ".safetensors":
        with safe_open(path, "pt"):  # which checks that the tensors fill the file
            return True
    if suffix in PICTURE_SUFFIXES:
        with Image.open(path) as picture:
            picture.verify()
        return True
    if suffix in _RECORDINGS:
        soundfile.info(path)
        return True
    if suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif suffix == ".py":
        ast.parse(path.read_text(encoding="utf-8"))
    elif suffix in (".md", ".txt", ".cff") or path.name == "LICENSE":
        path.read_text(encoding="utf-8")
    else:
        return False
    return True


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle of any protocol, or an archive as torch.save and joblib write them."""
    with path.open("rb") as file:
        if file.read(4).startswith((b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zX", b"(\xb5/\xfd")):
            return True
        file.seek(0)
        if file.read(2)[:1] == b"\x80":  # protocol 2 and later
            return True
        file.seek(0)
        try:  # protocols 0 and 1 are opcodes from the first byte to the last
            for _ in pickletools.genops(file):
                pass
        except Exception:  # whatever bytes that are no opcodes make of it
            return False
        return not file.read(1)
