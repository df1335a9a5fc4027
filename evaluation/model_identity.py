"""Which model it is that made an embedding or reached a figure: vectors of two models must never be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from .digest import weights_digest

# What configurations say of a checkpoint's files and not of what the model computes.
_NOT_COMPUTED = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "custom_pipelines",
    "dtype",
    "processor_class",
    "transformers_version",
}


def model_identity(model: nn.Module, processor: Callable) -> str:
    """Hexadecimal digest of weights, configuration and preprocessing.

    The same checkpoint in float32 and in bfloat16 are two models: their embeddings differ.
    """
    parts = {
        "weights": weights_digest(model.state_dict().items()),
        "config": _computed(model.config.to_dict()),
        "preprocessing": _computed(processor.to_dict()),
    }
    encoded = json.dumps(parts, sort_keys=True, default=str).encode()
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def model_name(model: nn.Module) -> str:
    """The Hub id, or the absolute folder, that the model was loaded from."""
    name = model.config._name_or_path or type(model).__name__
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _computed(config: Any) -> Any:
    if isinstance(config, dict):
        return {str(name): _computed(value) for name, value in config.items() if name not in _NOT_COMPUTED}
    return config
