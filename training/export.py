"""Export: a folder that AutoModel and AutoProcessor load without this package."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..modeling.configuration_speech_image_retrieval import SpeechImageRetrievalConfig
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor


def export_model(model: SpeechImageRetrievalModel, processor: SpeechImageRetrievalProcessor, directory: Path) -> None:
    """Write weights (safetensors), configuration, processor and the code that runs them; no training state.

    The folder is replaced as a whole, so an interrupted export leaves the old one.
    """
    # The registration makes every save_pretrained of the process copy code, but only exports should matter.
    SpeechImageRetrievalConfig.register_for_auto_class()
    SpeechImageRetrievalModel.register_for_auto_class("AutoModel")
    SpeechImageRetrievalProcessor.register_for_auto_class("AutoProcessor")
    partial = directory.with_name(f".partial-{directory.name}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    old = directory.with_name(f".old-{directory.name}")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


__all__ = ["export_model"]
