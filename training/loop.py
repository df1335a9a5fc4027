"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from ..corpora.hub import load_hub_corpus, stream_training_rows
from ..corpora.progress import counted_progress
from ..corpora.schema import load_corpus
from ..evaluation import evaluate_retrieval, format_report
from ..evaluation.model_identity import model_identity
from ..evaluation.standard_pools import corpus_name
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from .arguments import ArgumentError, TrainingArguments, changed_fields, save_arguments
from .augmentation import build_augmentations
from .checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from .examples import Collator, ExampleReader, SpokenCaptions, to_device
from .export import export_model
from .frozen_features import FeatureProcessor, FeatureRows, cached_rows
from .hard_batches import grouped_batches, length_bucketed_batches, shuffled_batches
from .log import TrainingLog, draw_curves
from .objective import CoarseToFineObjective, Losses
from .optimizers import build_optimizers, learning_rate_factor
from .policies import keep_frozen_in_evaluation
from .precision import resolve_precision
from .record import training_record
from .setup import (
    build_model,
    build_objective,
    build_processor,
    initialize_from_speech_transformer,
)
from .streaming import StreamedCaptions


class Trainer:
    """One training run, resumable at any checkpoint.

    The run's folder holds `model/` (the best exported model), `checkpoints/`, `arguments.yaml`, `log.csv`,
    `tensorboard/`, `curves.png` and `evaluation.json`.

    Args:
        objective: from the arguments, the model and the number of training rows to what a batch costs; for
            experiments with other losses.
        publish: publishes the folder of the model, with a row of the test split for an example. Called at the end, and
            with every n-th checkpoint if the arguments say so.
    """

    def __init__(
        self,
        arguments: TrainingArguments,
        objective: Callable[
            [TrainingArguments, SpeechImageRetrievalModel, int], CoarseToFineObjective
        ] = build_objective,
        publish: Callable[[Path, Mapping[str, Any]], Any] | None = None,
    ):
        self.arguments = arguments
        self.publish = publish
        self.output_dir = Path(arguments.output_dir)
        self.console = Console(stderr=True)
        self.precision = resolve_precision(arguments.mixed_precision, PartialState().device)
        self.accelerator = Accelerator(mixed_precision=self.precision)
        if self.accelerator.num_processes > 1:
            raise ArgumentError(
                f"Training runs in one process, not in {self.accelerator.num_processes}: negatives are not gathered."
            )
        set_seed(arguments.seed)
        self.corpus: DatasetDict = self._open_corpus()
        self.processor = build_processor(arguments)
        augmentations = build_augmentations(arguments, self.processor)
        if arguments.cache_examples and any(augmentations):
            self.console.print("cache_examples does not keep what is augmented: it is decoded anew in every epoch.")
        model = build_model(arguments, self.accelerator.device).to(self.accelerator.device)
        self.validation = self._rows("validation", model)
        reader = ExampleReader(self.processor, arguments.seed, *augmentations)
        self.examples = self._training_examples(reader, model)
        self.objective, *self.optimizers = self.accelerator.prepare(
            objective(arguments, model, len(self.examples)), *build_optimizers(arguments, model)
        )
        self.batches_per_epoch = max(1, len(self.examples) // self._step_batch)
        planned = arguments.num_epochs * self.batches_per_epoch
        self.total_steps = min(planned, arguments.max_steps or planned)
        self.step = 0
        self.epoch = 0
        self.best: tuple[bool, float] | None = None  # (multimodal encoder trained, validation mean R@1)
        self.order = torch.empty(0, dtype=torch.long)
        self.saved = 0  # checkpoints of this session
        self.started = time.perf_counter()  # as if all sessions had been one

    def _open_corpus(self) -> DatasetDict:
        """The corpus, of a streamed one all splits but the training split."""
        if self.arguments.stream:
            return load_hub_corpus(self.arguments.corpus, without_train=True)
        return load_corpus(self.arguments.corpus)

    def _training_examples(
        self, reader: ExampleReader, model: SpeechImageRetrievalModel
    ) -> SpokenCaptions | StreamedCaptions:
        if self.arguments.stream:
            return StreamedCaptions(*stream_training_rows(self.arguments.corpus), reader, self.arguments.seed)
        return SpokenCaptions(self._rows("train", model), reader, self.arguments.cache_examples)

    def _rows(self, split: str, model: SpeechImageRetrievalModel) -> Dataset | FeatureRows:
        """A split, with what frozen backbones make of its media if that is cached."""
        if not self.arguments.feature_cache:
            return self.corpus[split]
        return cached_rows(
            model,
            self.processor,
            self.corpus[split],
            split,
            self.arguments.corpus,
            precision=self.precision,
            autocast=self.accelerator.autocast,
        )

    @property
    def _step_batch(self) -> int:
        """Rows per optimizer step."""
        return self.arguments.batch_size * self.arguments.gradient_accumulation_steps

    def run(self) -> dict[str, Any]:
        """Train to the end, from the newest checkpoint if there is one; returns the report on the test split."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._resume()
        save_arguments(self.arguments, self.output_dir / "arguments.yaml")
        self.log = TrainingLog(self.output_dir, first_step=self.step + 1)
        with counted_progress("training") as progress:
            self.bar = progress.add_task("steps", total=self.total_steps, completed=self.step, status="")
            self.progress = progress
            while self.step < self.total_steps:
                self._train_epoch()
        self.log.close()
        return self._finish()

    def _resume(self) -> None:
        checkpoint = latest_checkpoint(self.output_dir / "checkpoints")
        if checkpoint is None:
            return
        state, extra = load_checkpoint(checkpoint, self.objective, self.optimizers)
        self.step, self.epoch, self.best = state["step"], state["epoch"], state["best"]
        self.order = extra["order"]
        self.started -= state.get("seconds", 0.0)
        changed = changed_fields(self.arguments, self.output_dir / "arguments.yaml")
        if changed and self.step >= self.total_steps:
            raise ArgumentError(
                f"The run in {self.output_dir} has ended, with other values of {', '.join(changed)}. Choose another "
                "output_dir, or remove it."
            )
        if changed:
            self.console.print(f"Continuing with other values of {', '.join(changed)} than before.")
        self.console.print(f"Resuming from {checkpoint} (step {self.step} of {self.total_steps})")

    def _train_epoch(self) -> None:
        """The rest of the current epoch, or a new one, and what is due at its end."""
        if len(self.order) == 0:
            self.order = self._compose_epoch()
        started, pairs = time.perf_counter(), 0
        for micro_batches in self._steps():
            losses, norm = self._optimize(micro_batches)
            self.step += 1
            self.order = self.order[self._step_batch :]
            pairs += sum(len(batch.rows) for batch in micro_batches)
            self._report(losses, norm, pairs / (time.perf_counter() - started))
            if self.step == self.total_steps:
                break
            if len(self.order) and self._checkpoint_due:
                self._save()
        self.order = torch.empty(0, dtype=torch.long)
        self.epoch += 1
        last = self.step == self.total_steps
        if last or self.epoch % self.arguments.validation_every_epochs == 0:
            self._validate()
        if last or self._checkpoint_due or self.epoch % self.arguments.checkpoint_every_epochs == 0:
            self._save()

    @property
    def _checkpoint_due(self) -> bool:
        return self.step % (self.arguments.checkpoint_every_steps or math.inf) == 0

    def _compose_epoch(self) -> Tensor:
        """Row numbers of a whole epoch, batch after batch. Depends on the seed, the epoch and the queue alone."""
        arguments = self.arguments
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + self.epoch)
        size = self._step_batch
        if arguments.group_size > 1 and self.step >= arguments.group_start_step and len(self.objective.queue):
            image_ids = self.examples.image_ids
            batches = grouped_batches(self.objective.queue, image_ids, size, arguments.group_size, generator)
        elif arguments.length_bucketing:
            batches = length_bucketed_batches(self.examples.speech_sizes(), size, generator)
        else:
            batches = shuffled_batches(len(self.examples), size, generator)
        # A batch that is not full would be a whole step on a few pairs: its rows wait for the next epoch.
        return torch.cat(sorted(batches, key=len, reverse=True)[: self.batches_per_epoch])

    def _steps(self) -> Iterator[list[Any]]:
        """Micro-batches of every remaining optimizer step of the epoch."""
        self.examples.start_epoch(self.epoch)
        done = min(self.batches_per_epoch * self._step_batch, len(self.examples)) - len(self.order)
        parts = [
            [micro.tolist() for micro in rows.split(math.ceil(len(rows) / self.arguments.gradient_accumulation_steps))]
            for rows in self.order.split(self._step_batch)
        ]
        loader = iter(
            DataLoader(
                self.examples,
                batch_sampler=self.examples.batch_sampler([rows for part in parts for rows in part], first=done),
                collate_fn=Collator(self.processor.time_axis),
                num_workers=self.arguments.num_workers,
                # Workers take their seed from the given generator, not from the run's random state.
                generator=torch.Generator().manual_seed(self.arguments.seed),
            )
        )
        for part in parts:
            yield [to_device(next(loader), self.accelerator.device) for _ in part]

    def _optimize(self, micro_batches: list[Any]) -> tuple[Losses, float]:
        """One optimizer step."""
        arguments = self.arguments
        self.objective.train()
        keep_frozen_in_evaluation(self.objective.model)
        factor = learning_rate_factor(arguments, self.step, self.total_steps)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = group["peak_lr"] * factor
        momentum_steps = self.step + 1 - arguments.momentum_start_step
        momentum = momentum_steps > 0
        alpha = arguments.alpha * min(1.0, max(0, momentum_steps) / max(1, arguments.alpha_warmup_steps))
        matching = self.step >= arguments.matching_start_step
        if self.step == arguments.matching_start_step > 0:
            initialize_from_speech_transformer(self.objective.model)
        for batch in micro_batches:
            with self.accelerator.autocast():
                try:
                    losses = self.objective(batch, alpha=alpha, momentum=momentum, matching=matching)
                except FloatingPointError as error:
                    raise self._not_finite("Similarities are", self.step + 1) from error
            self.accelerator.backward(losses.total / len(micro_batches))
        parameters = [parameter for group in groups for parameter in group["params"]]
        norm = self.accelerator.clip_grad_norm_(parameters, arguments.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.objective.after_step(self.step + 1)
        return losses, float(norm)

    def _not_finite(self, what: str, step: int) -> FloatingPointError:
        return FloatingPointError(
            f"{what} not finite at step {step}. Lower learning_rate, or set mixed_precision=no; the last checkpoint "
            "is whole, and the same command continues from it."
        )

    def _report(self, losses: Losses, norm: float, pairs_per_second: float) -> None:
        if not math.isfinite(norm):
            raise self._not_finite("The gradient is", self.step)
        status = f"SIC {losses.contrastive:.3f}  SIM {losses.matching:.3f}  {pairs_per_second:.0f} pairs/s"
        self.progress.update(self.bar, completed=self.step, status=status)
        if self.step % self.arguments.log_every_steps == 0:
            values = {
                "loss/SIC": float(losses.contrastive),
                "loss/SIM": float(losses.matching),
                "loss/SIM listwise": float(losses.listwise),
                "temperature": float(self.objective.model.temperature.detach()),
                "gradient_norm": norm,
                "learning_rate": self.optimizers[0].param_groups[0]["lr"],
                "pairs_per_second": pairs_per_second,
            }
            matching = self._matching_trained
            self.log.write(self.step, {k: v for k, v in values.items() if matching or not k.startswith("loss/SIM")})

    @property
    def _matching_trained(self) -> bool:
        arguments = self.arguments
        switched_on = bool(arguments.matching_weight or arguments.listwise_weight)
        return switched_on and self.step > arguments.matching_start_step

    def _evaluate(
        self, model: SpeechImageRetrievalModel, split: str, rows: Dataset | FeatureRows, rerank_top_k: int
    ) -> dict[str, Any]:
        # In full precision, as `sir evaluate` measures it.
        return evaluate_retrieval(
            model,
            FeatureProcessor(self.processor),
            rows,
            corpus=corpus_name(self.arguments.corpus),
            split=split,
            rerank_top_k=rerank_top_k if self._matching_trained else 0,
            score_rule=self.arguments.score_rule,
            batch_size=self.arguments.evaluation_batch_size,
        )

    def _validate(self) -> None:
        """Measure recall on the validation split; the best model so far is exported."""
        report = self._evaluate(
            self.objective.model, "validation", self.validation, self.arguments.validation_rerank_top_k
        )
        values = {
            f"validation/{direction.replace('_', ' ')}, {stage}": report[direction][stage]["R@1"]
            for direction in ("speech_to_image", "image_to_speech")
            for stage in report["mean_r1"]
        }
        self.log.write(self.step, values)
        means = ", ".join(f"{stage} {value:.1f}" for stage, value in report["mean_r1"].items())
        self.console.print(f"step {self.step}, epoch {self.epoch}: validation mean R@1 {means}")
        stage = "reranked" if "reranked" in report["mean_r1"] else "coarse"
        # A model whose multimodal encoder is trained is better than any without, whatever the coarse recall was.
        score = (stage == "reranked", report["mean_r1"][stage])
        if self.best is None or score >= tuple(self.best):
            self.best = score
            export_model(self.objective.model, self.processor, self.output_dir / "model")
            self._write_beside_model("evaluation.json", report)  # until the test splits are measured
            self._write_beside_model("training.json", self._record())

    def _record(self) -> dict[str, Any]:
        return training_record(
            self.arguments,
            len(self.examples),
            None if self.arguments.stream else self.corpus["train"],
            steps=self.step,
            step_batch=self._step_batch,
            precision=self.precision,
            device=self.accelerator.device,
            seconds=self._seconds,
        )

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self.started

    def _write_beside_model(self, name: str, content: dict[str, Any]) -> None:
        (self.output_dir / "model" / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _save(self) -> None:
        progress = {"step": self.step, "epoch": self.epoch, "best": self.best, "seconds": self._seconds}
        save_checkpoint(
            self.output_dir / "checkpoints", self.objective, self.optimizers, progress, {"order": self.order}
        )
        self.saved += 1
        due = self.saved % (self.arguments.push_every_checkpoints or math.inf) == 0
        if due and self.best is not None and self.step < self.total_steps:
            self._publish_so_far()

    def _publish_so_far(self) -> None:
        """Publish the best model of the unfinished run. Whatever goes wrong with that, training goes on."""
        if self.publish is None:
            return
        try:
            self.publish(self.output_dir / "model", self.corpus["test"][0])
        except Exception as error:
            self.console.print(
                f"WARNING: step {self.step} was not published, and training goes on. {type(error).__name__}: {error}",
                style="bold red",
                markup=False,
            )

    def _finish(self) -> dict[str, Any]:
        """Measure the best model, as exported, on the test splits, and leave figures and curves."""
        folder = self.output_dir / "model"
        model = SpeechImageRetrievalModel.from_pretrained(folder).to(self.accelerator.device)
        reports = {
            split: self._evaluate(model, split, rows, self.arguments.rerank_top_k)
            for split, rows in self.corpus.items()
            if split.startswith("test")
        }
        processor = SpeechImageRetrievalProcessor.from_pretrained(folder)
        # Not where the run's folder is: the same run leaves the same report.
        checkpoint = {"name": folder.name, "fingerprint": model_identity(model, processor)}
        for split, report in reports.items():
            report["protocol"]["checkpoint"] = checkpoint
            name = f"evaluation{split.removeprefix('test')}.json"
            for place in (self.output_dir, folder):
                (place / name).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            self.console.print(format_report(report))
        draw_curves(self.output_dir / "log.csv", self.output_dir / "curves.png")
        self.console.print(f"Model: {folder}  Figures: {self.output_dir / 'evaluation.json'}")
        if self.publish is not None:
            self.publish(folder, self.corpus["test"][0])
        return reports["test"]


__all__ = ["Trainer"]
