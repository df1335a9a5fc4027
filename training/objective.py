"""The training objective: SIC and SIM on one batch, with queue, momentum teacher and hard negatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..modeling.losses import contrastive_loss, positive_targets, sample_hard_negatives
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from .embedding_queue import EmbeddingQueue
from .matching import HardNegatives, MatchingPairs, listwise_matching_loss, pairwise_matching_loss
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


@dataclass
class EncodedBatch:
    """What the encoders make of a batch.

    speech, image: (batch, projection_dim) unit-length embeddings.
    speech_states, speech_mask, image_states: token states, (batch, tokens, hidden_size), and (batch, tokens); None in
        steps without SIM.
    momentum: the teacher's embeddings of speech and of images, None without it.
    image_ids, rows: as of the :class:`Batch`.
    """

    speech: Tensor
    image: Tensor
    speech_states: Tensor | None
    speech_mask: Tensor | None
    image_states: Tensor | None
    momentum: tuple[Tensor, Tensor] | None
    image_ids: Tensor
    rows: Tensor


class CoarseToFineObjective(nn.Module):
    """SIC + SIM. Call it once per optimizer step, then :meth:`after_step`; or :func:`.gradient_cache.backward`, where
    one step's batch is more than fits into memory, or is shared out between processes.

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
        self._to_enqueue: tuple[Tensor, Tensor, Tensor, Tensor, bool] | None = None

    def forward(
        self,
        batch: Batch,
        alpha: float = 0.0,
        momentum: bool = True,
        matching: bool = True,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Losses of one batch.

        Args:
            alpha: share of the teacher's soft targets in SIC (momentum distillation), 0 to 1.
            momentum: False leaves teacher and queue out of SIC, for steps before they start.
            matching: False leaves SIM out, for steps before it starts.
            generator: draws the hard negatives, on the CPU; torch's own by default.
        """
        encoded = self.encode(batch, momentum, matching)
        self.remember(encoded)
        return self.losses(encoded, alpha, self.negatives(encoded, generator) if self.matches(matching) else None)

    def matches(self, matching: bool) -> bool:
        """Whether SIM is part of the sum in a step."""
        return matching and bool(self.matching_weight or self.listwise_weight)

    def encode(self, batch: Batch, momentum: bool = True, matching: bool = True) -> EncodedBatch:
        """Run the student's encoders, and the teacher's."""
        use_teacher = self.teacher is not None and momentum
        speech_inputs, image_inputs = self._shared_inputs(batch) if use_teacher else (batch.speech, batch.image)
        with_states = self.matches(matching)
        options = {"pooled_only": not with_states, "return_dict": True}
        speech = self.model.get_speech_features(**speech_inputs, **options)
        image = self.model.get_image_features(**image_inputs, **options)
        return EncodedBatch(
            speech=speech.pooler_output,
            image=image.pooler_output,
            speech_states=speech.last_hidden_state if with_states else None,
            speech_mask=speech.attention_mask if with_states else None,
            image_states=image.last_hidden_state if with_states else None,
            momentum=self.teacher.embed(speech_inputs, image_inputs) if use_teacher else None,
            image_ids=batch.image_ids,
            rows=batch.rows,
        )

    def remember(self, encoded: EncodedBatch) -> None:
        """Keep what :meth:`after_step` enqueues."""
        if self.training and self.queue is not None:
            queued = encoded.momentum or (encoded.speech.detach(), encoded.image.detach())
            self._to_enqueue = (*queued, encoded.image_ids, encoded.rows, encoded.momentum is not None)

    def losses(
        self,
        encoded: EncodedBatch,
        alpha: float = 0.0,
        negatives: HardNegatives | None = None,
        anchors: slice | None = None,
    ) -> Losses:
        """Losses of an encoded batch.

        Args:
            negatives: of the whole batch, from :meth:`negatives`; None leaves SIM out.
            anchors: rows whose share of the means to compute, compared with the whole batch; the shares of all rows
                add up to the losses of the batch. All rows by default.
        """
        anchors = anchors or slice(0, len(encoded.rows))
        contrastive = self._contrastive(encoded, alpha, anchors)
        matched = listed = torch.zeros((), device=contrastive.device)
        if negatives is not None:
            pairs = negatives.pairs(anchors)
            scores = self._scores(encoded, pairs)
            matched = pairwise_matching_loss(scores, pairs)
            listed = listwise_matching_loss(scores, pairs)
        total = self.contrastive_weight * contrastive + self.matching_weight * matched + self.listwise_weight * listed
        return Losses(total, contrastive.detach(), matched.detach(), listed.detach())

    @torch.no_grad()
    def negatives(self, encoded: EncodedBatch, generator: torch.Generator | None = None) -> HardNegatives:
        """Draw the hard negatives of every row of a batch, in both directions."""
        with torch.autocast(encoded.speech.device.type, enabled=False):
            similarity = encoded.speech @ encoded.image.T / self.model.temperature
        if self.negative_sampling == "random":
            similarity = torch.zeros_like(similarity)
        same_image = encoded.image_ids[:, None] == encoded.image_ids[None, :]
        return HardNegatives(
            sample_hard_negatives(similarity, same_image, self.hard_negatives, generator),
            sample_hard_negatives(similarity.T, same_image, self.hard_negatives, generator),
        )

    @torch.no_grad()
    def after_step(self, updates: int) -> None:
        """Move the teacher and fill the queue, after optimizer step number `updates`, counted from 1."""
        self.model.clamp_temperature()
        if self.teacher is not None:
            self.teacher.update(self.model, updates)
        if self._to_enqueue is not None:
            self.queue.enqueue(*self._to_enqueue)
            self._to_enqueue = None

    def _shared_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What student and teacher encode: of a frozen backbone, which both have, the output, so that it runs once."""
        speech, image = batch.speech, batch.image
        if "backbone_features" not in speech and is_frozen(self.model.speech_backbone):
            features, mask = self.model.get_speech_backbone_features(**speech)
            speech = {"backbone_features": features, "attention_mask": mask}
        if "backbone_features" not in image and is_frozen(self.model.vision_backbone):
            image = {"backbone_features": self.model.get_image_backbone_features(**image)}
        return speech, image

    def _contrastive(self, encoded: EncodedBatch, alpha: float, anchors: slice) -> Tensor:
        """SIC against the momentum embeddings of the batch and of the queue (ALBEF equations 1, 2 and 6); without a
        teacher against the batch itself."""
        momentum = encoded.momentum
        all_speech, all_image = momentum or (encoded.speech, encoded.image)
        column_ids = encoded.image_ids
        if self.queue is not None and momentum is not None:
            queued_speech, queued_image, queued_ids, _ = self.queue.contents(by_teacher=True)
            all_speech, all_image = torch.cat([all_speech, queued_speech]), torch.cat([all_image, queued_image])
            column_ids = torch.cat([column_ids, queued_ids])
        # Not under autocast: bfloat16 would round similarities by more than what separates hard negatives.
        with torch.autocast(all_speech.device.type, enabled=False):
            temperature = self.model.temperature
            speech_targets = image_targets = positive_targets(encoded.image_ids[anchors], column_ids)
            if momentum is not None and alpha > 0:
                speech_targets = self._distilled(momentum[0][anchors] @ all_image.T, speech_targets, alpha)
                image_targets = self._distilled(momentum[1][anchors] @ all_speech.T, image_targets, alpha)
            speech, image = encoded.speech[anchors], encoded.image[anchors]
            loss = contrastive_loss(
                speech @ all_image.T / temperature, image @ all_speech.T / temperature, speech_targets, image_targets
            )
        return loss * (len(speech) / len(encoded.rows))

    def _scores(self, encoded: EncodedBatch, pairs: MatchingPairs) -> Tensor:
        """(pairs,) matching logits. What several pairs share is computed once, and only of rows that occur in them."""
        states = (encoded.speech_states, encoded.speech_mask, encoded.image_states)
        image_rows, speech_rows = pairs.image, pairs.speech
        if pairs.anchors < len(encoded.rows):
            speech, speech_rows = speech_rows.unique(return_inverse=True)
            image, image_rows = image_rows.unique(return_inverse=True)
            states = (encoded.speech_states[speech], encoded.speech_mask[speech], encoded.image_states[image])
        return self.model.match(*states, image_rows, speech_rows)

    @torch.no_grad()
    def _distilled(self, similarity: Tensor, targets: Tensor, alpha: float) -> Tensor:
        return alpha * (similarity / self.model.temperature).softmax(1) + (1 - alpha) * targets
