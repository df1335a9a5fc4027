"""Export: a folder that AutoModel, AutoProcessor and SentenceTransformer load without this package."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.dynamic_module_utils import custom_object_save

from ..modeling.configuration_speech_image_retrieval import SpeechImageRetrievalConfig
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..modeling.pipeline_speech_image_retrieval import TASK, SpeechImageRetrievalPipeline
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from ..processing.uploads import UploadLimits
from .sentence_transformers_files import write_sentence_transformers_files

# As `transformers.pipeline` finds a pipeline whose code lies beside the model.
_CUSTOM_PIPELINES = {
    TASK: {
        "impl": f"pipeline_speech_image_retrieval.{SpeechImageRetrievalPipeline.__name__}",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}


def export_model(model: SpeechImageRetrievalModel, processor: SpeechImageRetrievalProcessor, directory: Path) -> None:
    """Write weights (safetensors), configuration, processor, and the code of all three, of the pipeline and of what
    checks uploads for it; no training state.

    LoRA's matrices are added to the weights, so that the model loads without PEFT, and are written beside it as well:
    `speech_adapter/` and `vision_adapter/` load onto the backbones that training began with.

    The folder is replaced as a whole, so an interrupted export leaves the old one.
    """
    # The registration makes every save_pretrained of the process copy code, but only exports should matter.
    SpeechImageRetrievalConfig.register_for_auto_class()
    SpeechImageRetrievalModel.register_for_auto_class("AutoModel")
    SpeechImageRetrievalProcessor.register_for_auto_class("AutoProcessor")
    partial = directory.with_name(f".partial-{directory.name}")
    shutil.rmtree(partial, ignore_errors=True)
    model.config.custom_pipelines = _CUSTOM_PIPELINES
    model.save_pretrained(partial, state_dict=merged_state_dict(model))
    for backbone, name in ((model.speech_backbone, "speech_adapter"), (model.vision_backbone, "vision_adapter")):
        if hasattr(backbone, "peft_config"):
            _save_adapter(backbone, partial / name)
    processor.save_pretrained(partial)
    for served in (SpeechImageRetrievalPipeline, UploadLimits):
        custom_object_save(served, partial)
    write_sentence_transformers_files(partial, "SentenceTransformer")
    old = directory.with_name(f".old-{directory.name}")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


@torch.no_grad()
def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state with LoRA's matrices added to the weights they stand beside, under the names without LoRA.

    Only weights that change are copied, one layer after another.
    """
    state = dict(model.state_dict())
    for name, layer in model.named_modules():
        if hasattr(layer, "base_layer"):
            for key in layer.state_dict():
                del state[f"{name}.{key}"]
            merged = copy.deepcopy(layer)
            merged.merge()
            state |= {f"{name}.{key}": part for key, part in merged.get_base_layer().state_dict().items()}
    return state


def _save_adapter(backbone: nn.Module, directory: Path) -> None:
    """Write LoRA's matrices and configuration as PEFT's own models do."""
    from peft import get_peft_model_state_dict

    directory.mkdir()
    # Names as if the backbone were inside a PeftModel, which is what both loaders expect.
    # Embeddings are not asked for: PEFT would look on the Hub whether they were resized.
    matrices = get_peft_model_state_dict(backbone, save_embedding_layers=False)
    matrices = {f"base_model.model.{name}": part.contiguous() for name, part in matrices.items()}
    save_file(matrices, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(backbone.peft_config["default"])
    if Path(config.base_model_name_or_path or "").exists():  # a folder of this machine says nothing elsewhere
        config.base_model_name_or_path = None
    config.save_pretrained(directory)


__all__ = ["export_model", "merged_state_dict"]
