"""A baseline: margin InfoNCE over the batch, coarse and over all its pairs in the multimodal encoder.

python -m benchmarks.margin_infonce configs/spoken_shapes.yaml [field=value ...]

The objective of FaST-VGS (Peng & Harwath 2022, arXiv 2109.08186) on this project's model and data; not the published
system, whose encoders and hyper-parameters are others. Cosine similarities over the temperature take the place of its
unscaled dot products.
"""

from __future__ import annotations

import argparse
import sys

import torch
from accelerate import PartialState
from speech_image_retrieval.modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from speech_image_retrieval.training.arguments import ArgumentError, TrainingArguments, load_arguments
from speech_image_retrieval.training.loop import Trainer
from speech_image_retrieval.training.objective import Batch, CoarseToFineObjective, Losses
from torch import Tensor, nn

_MARGIN = 1.0
_COARSE_WEIGHT, _FINE_WEIGHT = 0.1, 1.0


def margin_infonce(scores: Tensor, image_ids: Tensor, margin: float = _MARGIN) -> Tensor:
    """Cross-entropy of each matched pair, whose score is lowered by the margin, among the batch; the sum of both
    directions. Other pairs of the same image do not count.

    Args:
        scores: (batch, batch) of speech i and image j.
        image_ids: (batch,) int64.
    """
    matched = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    same_image = (image_ids[:, None] == image_ids[None, :]) & ~matched
    scores = (scores.float() - margin * matched).masked_fill(same_image, -torch.inf)
    targets = torch.arange(len(scores), device=scores.device)
    return nn.functional.cross_entropy(scores, targets) + nn.functional.cross_entropy(scores.T, targets)


class AllPairsObjective(CoarseToFineObjective):
    """0.1 coarse + 1.0 fine, both margin InfoNCE; there is no queue, no teacher and no mining to be had."""

    def forward(
        self,
        batch: Batch,
        alpha: float = 0.0,
        momentum: bool = False,
        matching: bool = True,
        generator: torch.Generator | None = None,
    ) -> Losses:
        speech = self.model.get_speech_features(**batch.speech, pooled_only=not matching, return_dict=True)
        image = self.model.get_image_features(**batch.image, pooled_only=not matching, return_dict=True)
        with torch.autocast(speech.pooler_output.device.type, enabled=False):
            similarity = speech.pooler_output @ image.pooler_output.T / self.model.temperature
        coarse = margin_infonce(similarity, batch.image_ids)
        fine = torch.zeros((), device=coarse.device)
        if matching:
            rows = torch.arange(len(batch.image_ids), device=coarse.device)
            scores = self.model.match(
                speech.last_hidden_state,
                speech.attention_mask,
                image.last_hidden_state,
                image_rows=rows.repeat(len(rows)),
                speech_rows=rows.repeat_interleave(len(rows)),
            )
            fine = margin_infonce(scores.view(len(rows), len(rows)), batch.image_ids)
        total = _COARSE_WEIGHT * coarse + _FINE_WEIGHT * fine
        return Losses(total, coarse.detach(), fine.detach(), torch.zeros_like(fine))


def build(arguments: TrainingArguments, model: SpeechImageRetrievalModel, train_rows: int) -> AllPairsObjective:
    """The objective; what the arguments say of queue, teacher and negatives must be off."""
    if arguments.gradient_accumulation_steps > 1 or PartialState().num_processes > 1:
        raise ArgumentError("margin InfoNCE takes a batch at once, in one process: set gradient_accumulation_steps=1")
    if arguments.queue_size or arguments.momentum is not None:
        raise ArgumentError("margin InfoNCE has no queue and no teacher: set queue_size=0 group_size=1 momentum=null")
    return AllPairsObjective(model)


def main() -> None:
    """Train as train.py does, with this objective."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    options = parser.parse_args()
    try:
        Trainer(load_arguments(options.config, options.overrides), build).run()
    except ArgumentError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
