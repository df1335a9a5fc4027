"""The whole training objective once more, slowly: loops over scalars, in double precision, written from ALBEF.

A matrix is a list of rows, a row is a list of scalar tensors; autograd follows them, so gradients can be compared too.
`SmallModel` is what the fast objective trains; `SlowModel` computes the same linear maps with loops.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import torch
from torch import Tensor, nn

Row = list[Tensor]
Matrix = list[Row]


class SmallModel(nn.Module):
    """Linear maps behind the interface of the real model. Embeddings are the normalised first token's."""

    def __init__(self, features: int = 4, width: int = 3, temperature: float = 0.2):
        super().__init__()
        self.speech_encoder = nn.Linear(features, width, bias=False)
        self.image_encoder = nn.Linear(features, width, bias=False)
        self.multimodal_encoder = nn.Linear(width, width, bias=False)
        self.matching_head = nn.Linear(width, 1, bias=False)
        self.logit_scale = nn.Parameter(-torch.tensor(temperature).log())

    @property
    def speech_backbone(self) -> nn.Module:
        return self.speech_encoder

    @property
    def vision_backbone(self) -> nn.Module:
        return self.image_encoder

    @property
    def temperature(self) -> Tensor:
        return torch.exp(-self.logit_scale.float())

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        self.logit_scale.clamp_(-torch.tensor(0.5).log(), -torch.tensor(0.001).log())

    def get_speech_features(
        self, input_values: Tensor, attention_mask: Tensor, pooled_only: bool = False, return_dict: bool = True
    ) -> SimpleNamespace:
        states = self.speech_encoder(input_values)
        return SimpleNamespace(
            last_hidden_state=states,
            pooler_output=nn.functional.normalize(states[:, 0].float(), dim=-1),
            attention_mask=attention_mask,
        )

    def get_image_features(
        self, pixel_values: Tensor, pooled_only: bool = False, return_dict: bool = True
    ) -> SimpleNamespace:
        states = self.image_encoder(pixel_values)
        embeds = nn.functional.normalize(states[:, 0].float(), dim=-1)
        return SimpleNamespace(last_hidden_state=states, pooler_output=embeds)

    def match(
        self, speech_states: Tensor, speech_mask: Tensor, image_states: Tensor, image_rows: Tensor, speech_rows: Tensor
    ) -> Tensor:
        speech_states, speech_mask = speech_states[speech_rows], speech_mask[speech_rows]
        image_states = image_states[image_rows]
        speech = (self.multimodal_encoder(speech_states) * speech_mask[..., None]).sum(1)
        return self.matching_head(speech * image_states.sum(1)).squeeze(-1)


class SlowModel:
    """`SmallModel` with loops; its parameters are matrices of scalar leaves."""

    def __init__(self, model: SmallModel):
        self.parameters = {
            name: [
                [scalar.detach().double().requires_grad_() for scalar in row]
                for row in parameter.view(-1, parameter.shape[-1] if parameter.dim() else 1)
            ]
            for name, parameter in model.named_parameters()
        }

    @property
    def temperature(self) -> Tensor:
        return torch.exp(-self.parameters["logit_scale"][0][0])

    def leaves(self) -> Row:
        return [leaf for matrix in self.parameters.values() for row in matrix for leaf in row]

    def state(self, encoder: str, token: Row) -> Row:
        return [dot(weights, token) for weights in self.parameters[encoder + ".weight"]]

    def embedding(self, encoder: str, tokens: Matrix) -> Row:
        return unit(self.state(encoder, tokens[0]))

    def match(self, speech_tokens: Matrix, mask: list[bool], image_tokens: Matrix) -> Tensor:
        width = len(self.parameters["matching_head.weight"][0])
        speech, image = [torch.tensor(0.0).double()] * width, [torch.tensor(0.0).double()] * width
        for token, kept in zip(speech_tokens, mask, strict=True):
            if kept:
                fused = self.state("multimodal_encoder", self.state("speech_encoder", token))
                speech = [total + value for total, value in zip(speech, fused, strict=True)]
        for token in image_tokens:
            image = [total + value for total, value in zip(image, self.state("image_encoder", token), strict=True)]
        product = [a * b for a, b in zip(speech, image, strict=True)]
        return dot(self.parameters["matching_head.weight"][0], product)


def dot(left: Row, right: Row) -> Tensor:
    total = torch.tensor(0.0).double()
    for a, b in zip(left, right, strict=True):
        total = total + a * b
    return total


def unit(row: Row) -> Row:
    length = dot(row, row).sqrt()
    return [value / length for value in row]


def softmax(row: Row) -> Row:
    exponentials = [value.exp() for value in row]
    total = sum(exponentials)
    return [value / total for value in exponentials]


def multi_positive_targets(image_id: int, column_ids: list[int]) -> list[float]:
    positives = column_ids.count(image_id)
    return [1 / positives if column == image_id else 0.0 for column in column_ids]


def cross_entropy(logits: Row, targets: list) -> Tensor:
    loss = torch.tensor(0.0).double()
    for probability, target in zip(softmax(logits), targets, strict=True):
        loss = loss - target * probability.log()
    return loss


def sic(
    queries: Matrix,
    columns: Matrix,
    teacher_queries: Matrix,
    query_ids: list[int],
    column_ids: list[int],
    temperature: Tensor,
    alpha: float,
) -> Tensor:
    """One direction of SIC: ALBEF equation 6, with image-id-aware targets as in its retrieval model."""
    total = torch.tensor(0.0).double()
    for query, teacher_query, image_id in zip(queries, teacher_queries, query_ids, strict=True):
        hard = multi_positive_targets(image_id, column_ids)
        soft = softmax([dot(teacher_query, column) / temperature for column in columns])
        targets = [alpha * s.detach() + (1 - alpha) * h for s, h in zip(soft, hard, strict=True)]
        total = total + cross_entropy([dot(query, column) / temperature for column in columns], targets)
    return total / len(queries)


def negative_probabilities(query: Row, columns: Matrix, image_id: int, ids: list[int], temperature: Tensor) -> Row:
    """Of each column to be drawn as the query's hard negative; all 0 if every column shows the query's image."""
    weights = [
        torch.tensor(0.0).double() if column_id == image_id else (dot(query, column) / temperature).exp()
        for column, column_id in zip(columns, ids, strict=True)
    ]
    total = sum(weights)
    return [weight / total if total > 0 else weight for weight in weights]


def binary_matching(matched: Row, negatives: Row) -> Tensor:
    """SIM, ALBEF equation 4: mean over positives and negatives."""
    losses = [-torch.sigmoid(score).log() for score in matched] + [-torch.sigmoid(-score).log() for score in negatives]
    return sum(losses) / len(losses)


def listwise_matching(lists: list[Row]) -> Tensor:
    """Mean cross-entropy of the first score of every list that holds more than one."""
    losses = [-softmax(scores)[0].log() for scores in lists if len(scores) > 1]
    return sum(losses) / len(losses) if losses else torch.tensor(0.0).double()


class SlowObjective:
    """SIC + SIM + listwise, queue, teacher and plain gradient descent."""

    def __init__(self, model: SmallModel, queue_size: int | None, momentum: float | None, weights: tuple[float, ...]):
        self.student = SlowModel(model)
        self.teacher = None if momentum is None else SlowModel(model)
        self.momentum = momentum
        self.queue: deque = deque(maxlen=queue_size or 1)
        self.uses_queue = queue_size is not None
        self.weights = weights
        self.waiting: list[tuple] = []

    def losses(self, batch, alpha: float, negatives: tuple[list[list[int]], list[list[int]]]) -> tuple[Tensor, ...]:
        """(contrastive, matching, listwise) of a batch whose hard negatives were drawn already: for each row the
        negative images of its speech, and the negative speeches of its image."""
        speech_in = [list(map(list, item)) for item in batch.speech["input_values"].double()]
        image_in = [list(map(list, item)) for item in batch.image["pixel_values"].double()]
        masks = batch.speech["attention_mask"].tolist()
        ids = batch.image_ids.tolist()

        speech = [self.student.embedding("speech_encoder", item) for item in speech_in]
        image = [self.student.embedding("image_encoder", item) for item in image_in]
        if self.teacher is None:
            slow_speech, slow_image = speech, image
        else:
            slow_speech = [detached(self.teacher.embedding("speech_encoder", item)) for item in speech_in]
            slow_image = [detached(self.teacher.embedding("image_encoder", item)) for item in image_in]
        self.waiting += zip(map(detached, slow_speech), map(detached, slow_image), ids, strict=True)
        queued = list(self.queue) if self.teacher is not None else []  # without a teacher it only mines
        all_speech = slow_speech + [entry[0] for entry in queued]
        all_image = slow_image + [entry[1] for entry in queued]
        all_ids = ids + [entry[2] for entry in queued]
        share = alpha if self.teacher is not None else 0.0
        temperature = self.student.temperature
        contrastive = (
            sic(speech, all_image, slow_speech, ids, all_ids, temperature, share)
            + sic(image, all_speech, slow_image, ids, all_ids, temperature, share)
        ) / 2

        def match(speech_row: int, image_row: int) -> Tensor:
            return self.student.match(speech_in[speech_row], masks[speech_row], image_in[image_row])

        matched = [match(row, row) for row in range(len(ids))]
        of_speech = [[match(row, other) for other in others] for row, others in enumerate(negatives[0])]
        of_image = [[match(other, row) for other in others] for row, others in enumerate(negatives[1])]
        matching = binary_matching(matched, [score for scores in of_speech + of_image for score in scores])
        lists = [[matched[row], *scores] for side in (of_speech, of_image) for row, scores in enumerate(side)]
        return contrastive, matching, listwise_matching(lists)

    def total(self, losses: tuple[Tensor, ...]) -> Tensor:
        return sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))

    def step(self, learning_rate: float, updates: int) -> None:
        """Gradient descent, temperature clamp, teacher, queue."""
        for leaf in self.student.leaves():
            if leaf.grad is not None:
                leaf.data -= learning_rate * leaf.grad
                leaf.grad = None
        scale = self.student.parameters["logit_scale"][0][0]
        scale.data = torch.tensor(min(max(1 / self.student.temperature.item(), 2.0), 1000.0)).double().log()
        if self.teacher is not None:
            momentum = early_momentum(self.momentum, updates)
            for slow, fast in zip(self.teacher.leaves(), self.student.leaves(), strict=True):
                slow.data = momentum * slow.data + (1 - momentum) * fast.data
        if self.uses_queue:
            for entry in self.waiting:
                self.queue.append(entry)
        self.waiting.clear()


def early_momentum(momentum: float, updates: int) -> float:
    """Up to 1 / (1 - momentum) steps the teacher is the plain mean of the initial weights and all steps'."""
    return min(momentum, updates / (updates + 1))


def detached(row: Row) -> Row:
    return [value.detach() for value in row]
