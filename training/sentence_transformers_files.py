"""What makes an exported folder one of sentence-transformers: two small JSON files and the module that they name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

from ..modeling import configuration_speech_image_retrieval

Kind = Literal["SentenceTransformer", "CrossEncoder"]

_MODULE = "modules_speech_image_retrieval"
_CLASSES = {"SentenceTransformer": "SpeechImageEmbedder", "CrossEncoder": "SpeechImagePairScorer"}
# The scores of a CrossEncoder are logits, so that they order pairs where a sigmoid would round them to 1.
_SETTINGS = {
    "SentenceTransformer": {"similarity_fn_name": "cosine"},
    "CrossEncoder": {"activation_fn": "torch.nn.modules.linear.Identity"},
}


def write_sentence_transformers_files(folder: Path, kind: Kind) -> None:
    """Let `SentenceTransformer` or `CrossEncoder` load an exported folder: a folder is one or the other."""
    module = Path(configuration_speech_image_retrieval.__file__).with_name(f"{_MODULE}.py")
    shutil.copyfile(module, folder / module.name)
    _write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": f"{_MODULE}.{_CLASSES[kind]}"}])
    settings = {"model_type": kind, "requirements": {"sentence-transformers": ">=6.2"}, **_SETTINGS[kind]}
    _write_json(folder / "config_sentence_transformers.json", settings)


def export_cross_encoder(folder: Path, out: Path) -> None:
    """Copy an exported folder to one that `CrossEncoder` loads.

    Raises:
        FileExistsError: `out` is there already.
    """
    shutil.copytree(folder, out)
    write_sentence_transformers_files(out, "CrossEncoder")


def _write_json(path: Path, content: list | dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


__all__ = ["export_cross_encoder", "write_sentence_transformers_files"]
