"""The training objective: SIC and SIM on one batch, with queue, momentum teacher and hard negatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..modeling.losses import contrastive_loss, positive_targets, sample_hard_negatives
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from .embedding_queue import EmbeddingQueue
from .matching import MatchingPairs, listwise_matching_loss, pairwise_matching_loss
from .momentum import MomentumTeacher, is_frozen


@dataclass
class Losses:
    """What one batch costs. `total` carries the gradient; the others are for the log."""

    total: Tensor
    contrastive: Tensor
    matching: Tensor
    listwise: Tensor


@dataclass
class Batch:
    """One batch of matched pairs.

    speech: what `get_speech_features` takes: `input_values` or `input_features`, or `backbone_features`, and
        `attention_mask`, each (batch, ...).
    image: what `get_image_features` takes: `pixel_values` (batch, 3, height, width), or `backbone_features`.
    image_ids, rows: (batch,) int64, which image and which row of the corpus.
    """

    speech: dict[str, Tensor]
    image: dict[str, Tensor]
    image_ids: Tensor
    rows: Tensor


class CoarseToFineObjective(nn.Module):
    """SIC + SIM. Call it once per batch, and :meth:`after_step` once per optimizer step.

    Args:
        model: the student.
        queue: None compares within the batch only.
        teacher: None gives hard targets only, and the queue serves to mine hard batches alone: it then holds the
            student's own past embeddings, which are no negatives for SIC.
        contrastive_weight, matching_weight, listwise_weight: weights of the sum; with the last two at 0 the
            multimodal encoder is not run.
        hard_negatives: negatives per speech and per image for SIM.
        negative_sampling: "similarity" draws them in proportion to softmax of the SIC similarity, "random" uniformly.
    """

    def __init__(
        self,
        model: SpeechImageRetrievalModel,
        queue: EmbeddingQueue | None = None,
        teacher: MomentumTeacher | None = None,
        *,
        contrastive_weight: float = 1.0,
        matching_weight: float = 1.0,
        listwise_weight: float = 0.0,
        hard_negatives: int = 1,
        negative_sampling: str = "similarity",
    ):
        super().__init__()
        self.model = model
        self.queue = queue
        self.teacher = teacher
        self.contrastive_weight = contrastive_weight
        self.matching_weight = matching_weight
        self.listwise_weight = listwise_weight
        self.hard_negatives = hard_negatives
        self.negative_sampling = negative_sampling
        self._to_enqueue: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def forward(self, batch: Batch, alpha: float = 0.0, momentum: bool = True, matching: bool = True) -> Losses:
        """Losses of one batch.

        Args:
            alpha: share of the teacher's soft targets in SIC (momentum distillation), 0 to 1.
            momentum: False leaves teacher and queue out of SIC, for steps before they start.
            matching: False leaves SIM out, for steps before it starts.
        """
        use_teacher = self.teacher is not None and momentum
        speech_inputs, image_inputs = self._shared_inputs(batch) if use_teacher else (batch.speech, batch.image)
        matching = matching and bool(self.matching_weight or self.listwise_weight)
        options = {"pooled_only": not matching, "return_dict": True}
        speech = self.model.get_speech_features(**speech_inputs, **options)
        image = self.model.get_image_features(**image_inputs, **options)
        embeds = (speech.pooler_output, image.pooler_output)
        momentum_embeds = self.teacher.embed(speech_inputs, image_inputs) if use_teacher else None
        if self.training:
            queued = momentum_embeds or tuple(part.detach() for part in embeds)
            self._to_enqueue.append((*queued, batch.image_ids, batch.rows))

        contrastive = self._contrastive(embeds, momentum_embeds, batch.image_ids, alpha)
        matched = listed = torch.zeros((), device=contrastive.device)
        if matching:
            pairs = self._pairs(*embeds, batch.image_ids)
            scores = self.model.match(
                speech.last_hidden_state, speech.attention_mask, image.last_hidden_state, pairs.image, pairs.speech
            )
            matched = pairwise_matching_loss(scores, pairs)
            listed = listwise_matching_loss(scores, pairs)
        total = self.contrastive_weight * contrastive + self.matching_weight * matched + self.listwise_weight * listed
        return Losses(total, contrastive.detach(), matched.detach(), listed.detach())

    @torch.no_grad()
    def after_step(self, updates: int) -> None:
        """Move the teacher and fill the queue, after optimizer step number `updates`, counted from 1.

        With gradient accumulation this is once for all micro-batches, so that they see one queue and one teacher.
        """
        self.model.clamp_temperature()
        if self.teacher is not None:
            self.teacher.update(self.model, updates)
        if self.queue is not None and self._to_enqueue:
            self.queue.enqueue(*(torch.cat(parts) for parts in zip(*self._to_enqueue, strict=True)))
        self._to_enqueue.clear()

    def _shared_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What student and teacher encode: of a frozen backbone, which both have, the output, so that it runs once."""
        speech, image = batch.speech, batch.image
        if "backbone_features" not in speech and is_frozen(self.model.speech_backbone):
            features, mask = self.model.get_speech_backbone_features(**speech)
            speech = {"backbone_features": features, "attention_mask": mask}
        if "backbone_features" not in image and is_frozen(self.model.vision_backbone):
            image = {"backbone_features": self.model.get_image_backbone_features(**image)}
        return speech, image

    def _contrastive(
        self,
        embeds: tuple[Tensor, Tensor],
        momentum_embeds: tuple[Tensor, Tensor] | None,
        image_ids: Tensor,
        alpha: float,
    ) -> Tensor:
        """SIC against the momentum embeddings of the batch and of the queue (ALBEF equations 1, 2 and 6); without a
        teacher against the batch itself."""
        speech, image = embeds
        all_speech, all_image = momentum_embeds or embeds
        column_ids = image_ids
        if self.queue is not None and momentum_embeds is not None and len(self.queue):
            queued_speech, queued_image, queued_ids, _ = self.queue.contents()
            all_speech, all_image = torch.cat([all_speech, queued_speech]), torch.cat([all_image, queued_image])
            column_ids = torch.cat([image_ids, queued_ids])
        # Not under autocast: bfloat16 would round similarities by more than what separates hard negatives.
        with torch.autocast(speech.device.type, enabled=False):
            temperature = self.model.temperature
            speech_targets = image_targets = positive_targets(image_ids, column_ids)
            if momentum_embeds is not None and alpha > 0:
                speech_targets = self._distilled(momentum_embeds[0] @ all_image.T, speech_targets, alpha)
                image_targets = self._distilled(momentum_embeds[1] @ all_speech.T, image_targets, alpha)
            return contrastive_loss(
                speech @ all_image.T / temperature, image @ all_speech.T / temperature, speech_targets, image_targets
            )

    @torch.no_grad()
    def _distilled(self, similarity: Tensor, targets: Tensor, alpha: float) -> Tensor:
        return alpha * (similarity / self.model.temperature).softmax(1) + (1 - alpha) * targets

    @torch.no_grad()
    def _pairs(self, speech: Tensor, image: Tensor, image_ids: Tensor) -> MatchingPairs:
        with torch.autocast(speech.device.type, enabled=False):
            similarity = speech @ image.T / self.model.temperature
        if self.negative_sampling == "random":
            similarity = torch.zeros_like(similarity)
        same_image = image_ids[:, None] == image_ids[None, :]
        return MatchingPairs.with_negatives(
            sample_hard_negatives(similarity, same_image, self.hard_negatives),
            sample_hard_negatives(similarity.T, same_image, self.hard_negatives),
        )
