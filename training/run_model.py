"""The model that a run leaves: measured while it learns and at the end, exported, published."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from rich.console import Console

from ..evaluation import evaluate_retrieval, format_report
from ..evaluation.calibration import fit_rerank_temperature
from ..evaluation.model_identity import model_identity
from ..evaluation.protocol import measure, report_of
from ..evaluation.ranking import coarse_scores, match_gallery, ranked_gallery
from ..evaluation.sharing import shared_between_processes
from ..evaluation.split import encode_split
from ..evaluation.standard_pools import corpus_name
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from .arguments import TrainingArguments
from .export import export_model
from .frozen_features import FeatureProcessor, FeatureRows
from .log import draw_curves

Publish = Callable[[Path, Mapping[str, Any]], Any]
Score = tuple[bool, float]
"""Whether the multimodal encoder was trained, and the validation mean R@1. A model whose was is better than any whose
was not, whatever the coarse recall."""


class Validation(NamedTuple):
    """A model as it is while it learns, measured on the validation split.

    Attributes:
        rerank_temperature: fitted on the split, and what its report re-ranks with; None if nothing was re-ranked.
    """

    report: dict[str, Any]
    score: Score
    rerank_temperature: float | None


class RunModel:
    """`model/` under a run's folder, the best by validation recall. All processes measure it together; whatever is
    written is written by the first.

    Args:
        publish: publishes a folder, with a row of the test split for an example.
    """

    def __init__(
        self,
        arguments: TrainingArguments,
        processor: SpeechImageRetrievalProcessor,
        corpus: DatasetDict,
        console: Console,
        publish: Publish | None,
    ):
        self._arguments = arguments
        self._processor = processor
        self._corpus = corpus
        self._console = console
        self._publish = publish
        self._output_dir = Path(arguments.output_dir)
        self.folder = self._output_dir / "model"

    def validate(self, model: SpeechImageRetrievalModel, rows: Dataset | FeatureRows, matching: bool) -> Validation:
        """Measure the validation split, and fit on it what "sim+sic" divides similarities by. For all processes.

        Args:
            matching: whether the multimodal encoder was trained, and re-ranks.
        """
        arguments, corpus = self._arguments, corpus_name(self._arguments.corpus)
        top_k = arguments.validation_rerank_top_k if matching else 0
        matched, temperature = None, None
        with shared_between_processes():
            encoded = encode_split(
                model,
                FeatureProcessor(self._processor),
                rows,
                name=f"{corpus}, split 'validation'",
                keep_states=top_k > 0,
                batch_size=arguments.evaluation_batch_size,
            )
            if top_k:
                matched = match_gallery(model, encoded.speech, encoded.images, top_k)
                temperature = fit_rerank_temperature(matched, encoded.image_of_caption, model.temperature.item())
        ranked = ranked_gallery(
            coarse_scores(encoded.speech, encoded.images),
            encoded.image_of_caption,
            matched,
            arguments.score_rule,
            temperature if arguments.score_rule == "sim+sic" else None,
        )
        report = report_of([measure(ranked)], corpus=corpus, split="validation", score_rule=arguments.score_rule)
        stage = "reranked" if matched else "coarse"
        return Validation(report, (stage == "reranked", report["mean_r1"][stage]), temperature)

    def export(self, model: SpeechImageRetrievalModel, validation: Validation, record: dict[str, Any]) -> None:
        """Replace the folder by this model, with its figures until the test splits are measured, and what is known of
        its training."""
        model.config.rerank_temperature = validation.rerank_temperature
        export_model(model, self._processor, self.folder)
        exported = SpeechImageRetrievalModel.from_pretrained(self.folder)  # without LoRA, as whoever loads it has it
        validation.report["protocol"]["checkpoint"] = self._checkpoint(exported)
        _write_json(validation.report, self.folder / "evaluation.json")
        _write_json(record, self.folder / "training.json")

    def publish_so_far(self, step: int) -> None:
        """Publish the best model of the unfinished run. Whatever goes wrong with that, training goes on."""
        if self._publish is None:
            return
        try:
            self._publish(self.folder, self._corpus["test"][0])
        except Exception as error:
            self._console.print(
                f"WARNING: step {step} was not published, and training goes on. {type(error).__name__}: {error}",
                style="bold red",
                markup=False,
            )

    def finish(self, device: torch.device, matching: bool) -> dict[str, Any]:
        """Measure the folder on the test splits, leave the reports, and publish it; returns that of `test`. For all
        processes."""
        model = SpeechImageRetrievalModel.from_pretrained(self.folder).to(device)
        top_k = self._arguments.rerank_top_k if matching else 0
        reports = {
            split: self._evaluate(model, split, rows, top_k)
            for split, rows in self._corpus.items()
            if split.startswith("test")
        }
        if PartialState().is_main_process:
            self._leave(reports, self._checkpoint(model))
        return reports["test"]

    def _leave(self, reports: Mapping[str, dict[str, Any]], checkpoint: dict[str, str]) -> None:
        for split, report in reports.items():
            report["protocol"]["checkpoint"] = checkpoint
            name = f"evaluation{split.removeprefix('test')}.json"
            for place in (self._output_dir, self.folder):
                _write_json(report, place / name)
            self._console.print(format_report(report))
        draw_curves(self._output_dir / "log.csv", self._output_dir / "curves.png")
        self._console.print(f"Model: {self.folder}  Figures: {self._output_dir / 'evaluation.json'}")
        if self._publish is not None:
            self._publish(self.folder, self._corpus["test"][0])

    def _checkpoint(self, model: SpeechImageRetrievalModel) -> dict[str, str]:
        """How reports say which model they are about. Not where the run's folder is: the same run leaves the same
        report."""
        processor = SpeechImageRetrievalProcessor.from_pretrained(self.folder)
        return {"name": self.folder.name, "fingerprint": model_identity(model, processor)}

    def _evaluate(
        self, model: SpeechImageRetrievalModel, split: str, rows: Dataset, rerank_top_k: int
    ) -> dict[str, Any]:
        with shared_between_processes():
            return evaluate_retrieval(  # in full precision, as `sir evaluate` measures it
                model,
                FeatureProcessor(self._processor),
                rows,
                corpus=corpus_name(self._arguments.corpus),
                split=split,
                rerank_top_k=rerank_top_k,
                score_rule=self._arguments.score_rule,
                batch_size=self._arguments.evaluation_batch_size,
            )


def _write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


__all__ = ["Publish", "RunModel", "Score", "Validation"]
