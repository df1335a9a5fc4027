"""A folder that serves a model by ONNX Runtime: three graphs, the configuration, and the processor with its code."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch.export import Dim
from transformers.exporters import (
    ExportedComponent,
    ExportedModel,
    ExportFormat,
    OnnxConfig,
    OnnxExporter,
    OnnxRuntimeDynamicConfig,
    OnnxRuntimeQuantizer,
)

from ..modeling.configuration_speech_image_retrieval import SpeechImageRetrievalConfig
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from .graphs import Graph, serving_graphs

# Convolutions stay in float32, which is faster on a CPU. Weights take 7 of the 8 bits, for on processors without VNNI
# the sums of products of 8 bits saturate.
_INT8 = OnnxRuntimeDynamicConfig(op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True)


def export_onnx(
    model: SpeechImageRetrievalModel,
    processor: SpeechImageRetrievalProcessor,
    out: Path,
    *,
    int8: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Write `speech_encoder.onnx`, `image_encoder.onnx` and `matching.onnx` with their weights beside them, and what
    is needed to feed them. `temperature` of the written configuration is the learned one.

    Args:
        model: is moved to the CPU, in float32.
        out: the folder to make.
        int8: weights of linear layers in int8, activations quantised as they come.
        say: is told which graph is being traced.

    Raises:
        ValueError: `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists already. Name another folder, or remove it.")
    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    components = {}
    for name, graph in serving_graphs(model.eval().to("cpu", torch.float32), processor).items():
        say(name)
        components[name] = _component(graph, int8)
    # The code of both goes along: no package but transformers is needed to read the folder.
    SpeechImageRetrievalConfig.register_for_auto_class()
    SpeechImageRetrievalProcessor.register_for_auto_class("AutoProcessor")
    ExportedModel(components, ExportFormat.ONNX, _served_config(model)).save_pretrained(partial)
    processor.save_pretrained(partial)
    partial.rename(out)


def _component(graph: Graph, int8: bool) -> ExportedComponent:
    axes = {name: dict.fromkeys(varying, Dim.DYNAMIC) for name, varying in graph.dynamic_axes.items()}
    config = OnnxConfig(dynamic_shapes=axes, quantizer=OnnxRuntimeQuantizer(_INT8) if int8 else None)
    with _quiet():
        component = OnnxExporter().export(graph.module.eval(), graph.inputs, config).components["model"]
    ClearMetadataAndDocStringPass()(component.program)  # lines of code of every node, with paths of this machine
    return component


def _served_config(model: SpeechImageRetrievalModel) -> SpeechImageRetrievalConfig:
    config = copy.deepcopy(model.config)
    config.temperature, config.rerank_temperature = model.temperature.item(), model.rerank_temperature
    for name in ("auto_map", "custom_pipelines"):  # name code that loads weights, of which there are none
        vars(config).pop(name, None)
    return config


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and transformers say of their own insides while they trace."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "transformers.exporters", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(action="ignore", category=FutureWarning),
        ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


__all__ = ["export_onnx"]
