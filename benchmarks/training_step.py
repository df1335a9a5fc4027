"""Optimizer steps a second (SIC, SIM, queue, momentum distillation) beside a straightforward step of ALBEF, in turns.

python -m benchmarks.training_step CONFIG [field=value ...] [--steps 12]

The reference is ALBEF's step (`models/model_retrieval.py`) on the same backbones and multimodal encoder: the teacher
is a full copy that encodes everything again, in full precision; matched pairs, negative images and negative speeches
are three passes through the multimodal encoder, each on repeated states; the average moves parameter by parameter, and
so does AdamW. Both start from the same weights and take the same batches and negatives, without dropout and masking,
so that their losses can be compared. The first two steps are not timed.
"""

from __future__ import annotations

import argparse
import copy
from statistics import median

import torch
from speech_image_retrieval.modeling.losses import contrastive_loss, positive_targets
from speech_image_retrieval.training.arguments import load_arguments
from speech_image_retrieval.training.embedding_queue import EmbeddingQueue
from speech_image_retrieval.training.loop import Trainer
from speech_image_retrieval.training.matching import HardNegatives
from speech_image_retrieval.training.objective import Batch, CoarseToFineObjective
from speech_image_retrieval.training.optimizers import learning_rate_factor
from torch import Tensor, nn

from benchmarks.timing import timed

_MOMENTUM, _ALPHA = 0.995, 0.4
_OVERRIDES = [
    f"momentum={_MOMENTUM}",
    f"alpha={_ALPHA}",
    "queue_size=4096",
    "alpha_warmup_steps=0",
    "hard_negatives=1",
    "matching_weight=1",
    "listwise_weight=0",
    "muon_learning_rate=null",
    "matching_start_step=0",
    "momentum_start_step=0",
    "group_size=1",
    "learning_rate=1.0e-6",  # AdamW makes large differences of rounding where gradients are next to nothing
    "warmup_steps=0",
    "gradient_accumulation_steps=1",
    "feature_cache=false",
    "mixed_precision=no",
    "cache_examples=false",
    "output_dir=outputs/training_step",
]
_WARM_UP = 2


def main() -> None:
    """Time both, step by step in turns, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_intermixed_args()
    trainer = Trainer(load_arguments(options.config, [*_OVERRIDES, *options.overrides]))
    _draw_nothing(trainer.objective.model)
    reference, drawn = AlbefStep(trainer), _recorded_negatives(trainer.objective)
    batches = trainer.batches.steps(0, trainer.batches.compose(epoch=0, queue=None))
    taken: list[tuple[float, float]] = []
    for _ in range(options.steps + _WARM_UP):
        (batch,) = next(batches)
        fast, (losses, _) = timed(trainer._optimize, [batch])
        trainer.step += 1
        slow, expected = timed(reference.step, batch, drawn.pop())
        taken.append((slow, fast))
        loss = float(losses.total.detach())
        print(f"losses {loss:.5f} and {expected:.5f}, {abs(loss - expected):.1e} apart; {fast:.3f} and {slow:.3f} s")
    slow, fast = (median(seconds) for seconds in zip(*taken[_WARM_UP:], strict=True))
    ratios = [of_reference / own for of_reference, own in taken[_WARM_UP:]]
    pairs = len(batch.rows)
    print(
        f"{pairs / fast:.1f} pairs/s against {pairs / slow:.1f} of ALBEF's step: {median(ratios):.2f} times "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} pairs of steps)"
    )


class AlbefStep:
    """The step as ALBEF writes it, on a copy of a trainer's model."""

    def __init__(self, trainer: Trainer):
        objective = trainer.objective
        self.trainer, self.objective = trainer, copy.deepcopy(objective)
        self.model = self.objective.model
        self.teacher = copy.deepcopy(self.model)
        self.queue = EmbeddingQueue(len(objective.queue.rows), objective.queue.speech.shape[1])
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        arguments = trainer.arguments
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": arguments.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        betas = (0.9, arguments.adam_beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=betas, foreach=False)
        self.trained, self.updates = trained, 0

    def step(self, batch: Batch, negatives: HardNegatives) -> float:
        """Take an optimizer step; returns the loss before it."""
        self.model.train()
        self._set_rate()
        speech = self.model.get_speech_features(**batch.speech, return_dict=True)
        image = self.model.get_image_features(**batch.image, return_dict=True)
        with torch.no_grad():
            teacher = self.teacher.eval()
            speech_teacher = teacher.get_speech_features(**batch.speech, return_dict=True).pooler_output
            image_teacher = teacher.get_image_features(**batch.image, return_dict=True).pooler_output
        loss = self._contrastive(speech.pooler_output, image.pooler_output, speech_teacher, image_teacher, batch)
        states = (speech.last_hidden_state, speech.attention_mask, image.last_hidden_state)
        loss = loss + self._matching(states, negatives)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, self.trainer.arguments.max_grad_norm, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        with torch.no_grad():
            self.model.clamp_temperature()
            momentum = min(_MOMENTUM, 1 - 1 / (self.updates + 1))
            for average, parameter in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                average.data = average.data * momentum + parameter.data * (1.0 - momentum)
            for average, buffer in zip(self.teacher.buffers(), self.model.buffers(), strict=True):
                average.copy_(buffer)
        self.queue.enqueue(speech_teacher, image_teacher, batch.image_ids, batch.rows)
        return float(loss.detach())

    def _set_rate(self) -> None:
        """The trainer's schedule at this step, which it has not taken yet."""
        factor = learning_rate_factor(self.trainer.arguments, self.updates, self.trainer.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.trainer.arguments.learning_rate * factor

    def _contrastive(
        self, speech: Tensor, image: Tensor, speech_teacher: Tensor, image_teacher: Tensor, batch: Batch
    ) -> Tensor:
        queued_speech, queued_image, queued_ids, _ = self.queue.contents()
        all_speech, all_image = torch.cat([speech_teacher, queued_speech]), torch.cat([image_teacher, queued_image])
        temperature = self.model.temperature
        with torch.no_grad():
            hard = positive_targets(batch.image_ids, torch.cat([batch.image_ids, queued_ids]))
            soft_speech = (speech_teacher @ all_image.T / temperature).softmax(1)
            soft_image = (image_teacher @ all_speech.T / temperature).softmax(1)
            targets = [_ALPHA * soft + (1 - _ALPHA) * hard for soft in (soft_speech, soft_image)]
        return contrastive_loss(speech @ all_image.T / temperature, image @ all_speech.T / temperature, *targets)

    def _matching(self, states: tuple[Tensor, Tensor, Tensor], negatives: HardNegatives) -> Tensor:
        speech, mask, image = states
        images, speeches = negatives.images[0].flatten(), negatives.speeches[0].flatten()
        assert all(found.all() for _, found in (negatives.images, negatives.speeches)), "a batch of one picture"
        passes = [
            self._fused(speech, mask, image),
            self._fused(speech, mask, image[images]),
            self._fused(speech[speeches], mask[speeches], image),
        ]
        logits = torch.cat(passes)
        labels = torch.cat([torch.ones(len(speech)), torch.zeros(2 * len(speech))])
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)

    def _fused(self, speech: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        states, _ = self.model.multimodal_encoder(speech, mask, self.model.project_images(image))
        return self.model.matching_head(states[:, 0]).squeeze(-1).float()


def _draw_nothing(model: nn.Module) -> None:
    """Dropout and the masking of speech would make the losses of the two differ."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
        if hasattr(part, "config"):
            part.config.apply_spec_augment = False
            part.config.attention_dropout = 0.0


def _recorded_negatives(objective: CoarseToFineObjective) -> list[HardNegatives]:
    """What the objective draws from now on; drawing is timed with the trainer's step only."""
    draw, drawn = objective.negatives, []

    def negatives(*arguments: object) -> HardNegatives:
        drawn.append(draw(*arguments))
        return drawn[-1]

    objective.negatives = negatives
    return drawn


if __name__ == "__main__":
    main()
