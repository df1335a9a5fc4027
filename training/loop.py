"""The training loop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, set_seed
from datasets import Dataset, DatasetDict
from rich.console import Console
from torch import nn

from ..corpora.hub import load_hub_corpus, stream_training_rows
from ..corpora.progress import counted_progress
from ..corpora.schema import load_corpus
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from .arguments import ArgumentError, TrainingArguments, changed_fields, save_arguments
from .augmentation import build_augmentations
from .checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint, saved_progress
from .embedding_queue import EmbeddingQueue
from .epoch_batches import EpochBatches
from .examples import Collator, ExampleReader, SpokenCaptions
from .frozen_features import FeatureRows, cached_rows
from .gradient_cache import backward
from .log import TrainingLog
from .objective import Batch, CoarseToFineObjective, Losses
from .optimizers import build_optimizers, learning_rate_factor
from .policies import keep_frozen_in_evaluation
from .precision import resolve_precision
from .record import describe, training_record
from .run_model import Publish, RunModel, Score, Validation
from .setup import (
    build_model,
    build_objective,
    build_processor,
    initialize_from_speech_transformer,
    refuse_sharded_parameters,
)
from .stopping import EndWatch, save_for_inspection, told_in_words
from .streaming import StreamedCaptions

# How long processes wait for one that fills a feature cache, evaluates or publishes.
_PATIENCE = timedelta(days=2)


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

    @told_in_words()
    def __init__(
        self,
        arguments: TrainingArguments,
        objective: Callable[
            [TrainingArguments, SpeechImageRetrievalModel, int], CoarseToFineObjective
        ] = build_objective,
        publish: Publish | None = None,
    ):
        refuse_sharded_parameters()
        self.arguments = arguments
        self.output_dir = Path(arguments.output_dir)
        self.console = Console(stderr=True)
        on_cpu = not torch.accelerator.is_available()  # unless told, accelerate takes processes on CPUs for one
        self.precision = resolve_precision(
            arguments.mixed_precision, PartialState(cpu=on_cpu, timeout=_PATIENCE).device
        )
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=self.precision)
        self.console.quiet = not self.accelerator.is_main_process
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
        # Neither is wrapped: gradients are summed by gradient_cache, once a step.
        self.objective = objective(arguments, model, len(self.examples)).to(self.accelerator.device)
        self.optimizers = build_optimizers(arguments, model)
        self.batches = EpochBatches(arguments, self.examples, Collator(self.processor.time_axis))
        self.run_model = RunModel(arguments, self.processor, self.corpus, self.console, publish)
        set_seed(arguments.seed, device_specific=True)
        planned = arguments.num_epochs * self.batches.per_epoch
        self.total_steps = min(planned, arguments.max_steps or planned)
        self.step = 0
        self.epoch = 0
        self.best: Score | None = None
        self.order = torch.empty(0, dtype=torch.long)
        self.saved = 0  # checkpoints so far
        self.saved_step: int | None = None  # of the last one in this session
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
        with self.accelerator.main_process_first():  # which fills it
            return cached_rows(
                model,
                self.processor,
                self.corpus[split],
                split,
                self.arguments.corpus,
                precision=self.precision,
                autocast=self.accelerator.autocast,
            )

    @told_in_words()
    def run(self) -> dict[str, Any]:
        """Train to the end, from the newest checkpoint if there is one; returns the report on the test split."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._resume()
        self.accelerator.wait_for_everyone()  # all have read arguments.yaml
        if self.accelerator.is_main_process:
            save_arguments(self.arguments, self.output_dir / "arguments.yaml")
            self.log = TrainingLog(self.output_dir, first_step=self.step + 1)
        self.console.print(self._plan, highlight=False)
        with (
            counted_progress("training", self.accelerator.is_main_process) as progress,
            EndWatch() as self.end_watch,
        ):
            self.bar = progress.add_task("steps", total=self.total_steps, completed=self.step, status="")
            self.progress = progress
            while self.step < self.total_steps:
                self._train_epoch()
        if self.accelerator.is_main_process:
            self.log.close()
        return self.run_model.finish(self.accelerator.device, self._matching_trained)

    @property
    def _plan(self) -> str:
        arguments, processes = self.arguments, self.accelerator.num_processes
        return (
            f"{processes} process{'es' if processes > 1 else ''} on {describe(self.accelerator.device)}, precision "
            f"{self.precision}: {processes} x batch_size {arguments.batch_size} x "
            f"gradient_accumulation_steps {arguments.gradient_accumulation_steps} = {self.batches.step_batch} pairs a "
            f"step, {self.total_steps - self.step} steps to go."
        )

    def _in_main_process(self, work: Callable[[], Any]) -> Any:
        """What `work` returns, done by one process while the others wait."""
        result = [work() if self.accelerator.is_main_process else None]
        return broadcast_object_list(result)[0]

    def _resume(self) -> None:
        checkpoint = self._in_main_process(lambda: latest_checkpoint(self.output_dir / "checkpoints"))
        if checkpoint is None:
            return
        before = saved_progress(checkpoint)["step_batch"]
        if before != self.batches.step_batch:
            raise ArgumentError(
                f"{checkpoint} is of a run with {before} pairs a step; this one has {self.batches.step_batch}. Keep "
                "batch_size x gradient_accumulation_steps x processes as it was, or choose another output_dir."
            )
        state, extra = load_checkpoint(checkpoint, self.objective, self.optimizers)
        self.step, self.epoch, self.best = state["step"], state["epoch"], state["best"]
        self.order = extra["order"]
        self.saved = state["saved"]
        self.started -= state["seconds"]
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
            self.order = self._in_main_process(lambda: self.batches.compose(self.epoch, self._mined_queue))
        started, pairs = time.perf_counter(), 0
        for micro_batches in self.batches.steps(self.epoch, self.order):
            losses, norm = self._optimize(micro_batches)
            self.step += 1
            if not math.isfinite(norm):
                raise self._not_finite("The gradient is", self.step, micro_batches)
            self.order = self.order[self.batches.step_batch :]
            pairs += self.accelerator.num_processes * sum(len(batch.rows) for batch in micro_batches)
            self._report(losses, norm, pairs / (time.perf_counter() - started))
            if self.step == self.total_steps:
                break
            if not len(self.order):
                break  # what is due at the end of an epoch comes first
            if signalled := self.end_watch.received():
                self._end_early(signalled)
            if self._checkpoint_due:
                self._save()
        self.order = torch.empty(0, dtype=torch.long)
        self.epoch += 1
        last = self.step == self.total_steps
        if last or self.epoch % self.arguments.validation_every_epochs == 0:
            self.best = self._validate()
        if last or self._checkpoint_due or self.epoch % self.arguments.checkpoint_every_epochs == 0:
            self._save()
        if signalled := self.end_watch.received():
            self._end_early(signalled)

    @property
    def _mined_queue(self) -> EmbeddingQueue | None:
        mined = self.arguments.group_size > 1 and self.step >= self.arguments.group_start_step
        return self.objective.queue if mined else None

    def _end_early(self, signalled: signal.Signals) -> None:
        if self.saved_step != self.step:
            self._save()
        self.console.print(
            f"Ended by {signalled.name} at step {self.step} of {self.total_steps}, with a checkpoint: the same "
            "command goes on."
        )
        raise SystemExit(0 if signalled == signal.SIGTERM else 128 + signalled)

    @property
    def _checkpoint_due(self) -> bool:
        return self.step % (self.arguments.checkpoint_every_steps or math.inf) == 0

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
        options = {
            "alpha": alpha,
            "momentum": momentum,
            "matching": matching,
            "generator": self._negatives_generator(),
        }
        try:
            losses = self._backward(micro_batches, options)
        except FloatingPointError as error:
            raise self._not_finite("Similarities are", self.step + 1, micro_batches) from error
        parameters = [parameter for group in groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, arguments.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.objective.after_step(self.step + 1)
        return losses, float(norm)

    def _backward(self, micro_batches: list[Any], options: dict[str, Any]) -> Losses:
        """The gradients of one step, and its losses."""
        if self.batches.micro_batches > 1:
            return backward(self.objective, micro_batches, autocast=self.accelerator.autocast, **options)
        with self.accelerator.autocast():
            losses = self.objective(micro_batches[0], **options)
        losses.total.backward()
        return losses

    def _negatives_generator(self) -> torch.Generator:
        """Of one step, the same in every process."""
        return torch.Generator().manual_seed(self.arguments.seed * 1_000_003 + self.step)

    def _not_finite(self, what: str, step: int, micro_batches: list[Batch]) -> FloatingPointError:
        batch = save_for_inspection(micro_batches, self.output_dir)
        whole = latest_checkpoint(self.output_dir / "checkpoints")
        goes_on = f"the run continues from {whole}" if whole else "no checkpoint was due before"
        rates = "learning_rate" + (" and muon_learning_rate" if self.arguments.muon_learning_rate else "")
        or_precision = "" if self.precision == "no" else ", or set mixed_precision=no"
        return FloatingPointError(
            f"{what} not finite at step {step}. Lower {rates}{or_precision}; {goes_on}. The batch is in {batch}."
        )

    def _report(self, losses: Losses, norm: float, pairs_per_second: float) -> None:
        status = f"SIC {losses.contrastive:.3f}  SIM {losses.matching:.3f}  {pairs_per_second:.0f} pairs/s"
        self.progress.update(self.bar, completed=self.step, status=status)
        if not self.console.is_terminal and self.step % (5 * self.arguments.log_every_steps) == 0:  # no bar is drawn
            self.console.print(f"step {self.step} of {self.total_steps}: {status}", highlight=False)
        if self.accelerator.is_main_process and self.step % self.arguments.log_every_steps == 0:
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

    def _validate(self) -> Score:
        """Measure recall on the validation split; the best model so far is exported. Returns the best's score."""
        validation = self.run_model.validate(self.objective.model, self.validation, self._matching_trained)
        return self._in_main_process(lambda: self._kept(validation))

    def _kept(self, validation: Validation) -> Score:
        report, score = validation.report, validation.score
        values = {
            f"validation/{direction.replace('_', ' ')}, {stage}": report[direction][stage]["R@1"]
            for direction in ("speech_to_image", "image_to_speech")
            for stage in report["mean_r1"]
        }
        if validation.rerank_temperature is not None:
            values["rerank_temperature"] = validation.rerank_temperature
        self.log.write(self.step, values)
        means = ", ".join(f"{stage} {value:.1f}" for stage, value in report["mean_r1"].items())
        self.console.print(f"step {self.step}, epoch {self.epoch}: validation mean R@1 {means}")
        if self.best is not None and score < tuple(self.best):
            return self.best
        self.run_model.export(self.objective.model, validation, self._record())
        return score

    def _record(self) -> dict[str, Any]:
        return training_record(
            self.arguments,
            len(self.examples),
            None if self.arguments.stream else self.corpus["train"],
            steps=self.step,
            step_batch=self.batches.step_batch,
            precision=self.precision,
            device=self.accelerator.device,
            seconds=self._seconds,
        )

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self.started

    def _save(self) -> None:
        self.saved, self.saved_step = self.saved + 1, self.step
        progress = {
            "step": self.step,
            "epoch": self.epoch,
            "best": self.best,
            "seconds": self._seconds,
            "saved": self.saved,
            "step_batch": self.batches.step_batch,
        }
        save_checkpoint(
            self.output_dir / "checkpoints", self.objective, self.optimizers, progress, {"order": self.order}
        )
        due = self.saved % (self.arguments.push_every_checkpoints or math.inf) == 0
        if due and self.best is not None and self.step < self.total_steps:
            self._in_main_process(lambda: self.run_model.publish_so_far(self.step))


__all__ = ["Trainer"]
