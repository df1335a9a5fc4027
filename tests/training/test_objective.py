from __future__ import annotations

import copy

import pytest
import torch
from speech_image_retrieval.training import objective as objective_module
from speech_image_retrieval.training.embedding_queue import EmbeddingQueue
from speech_image_retrieval.training.momentum import MomentumTeacher
from speech_image_retrieval.training.objective import Batch, CoarseToFineObjective

from .reference import SlowObjective, SmallModel, negative_probabilities

FEATURES, WIDTH = 4, 3
WEIGHTS = {"contrastive_weight": 1.0, "matching_weight": 0.7, "listwise_weight": 0.3}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random_batch(image_ids: list[int], first_row: int = 0) -> Batch:
    size = len(image_ids)
    mask = torch.rand(size, 3) > 0.3
    mask[:, 0] = True
    return Batch(
        speech={"input_values": torch.randn(size, 3, FEATURES), "attention_mask": mask},
        image={"pixel_values": torch.randn(size, 2, FEATURES)},
        image_ids=torch.tensor(image_ids),
        rows=torch.arange(first_row, first_row + size),
    )


def build(queue_size: int | None, momentum: float | None, **options) -> CoarseToFineObjective:
    model = SmallModel(FEATURES, WIDTH)
    queue = None if queue_size is None else EmbeddingQueue(queue_size, WIDTH)
    teacher = None if momentum is None else MomentumTeacher(model, momentum)
    return CoarseToFineObjective(model, queue, teacher, **{**WEIGHTS, **options})


class Draws:
    """Records what the objective asks `sample_hard_negatives` for, and what it is given."""

    def __init__(self, monkeypatch):
        self.calls: list[tuple] = []
        self._sample = objective_module.sample_hard_negatives
        monkeypatch.setattr(objective_module, "sample_hard_negatives", self)

    def __call__(self, logits, same_image, count, generator):
        result = self._sample(logits, same_image, count, generator)
        self.calls.append((logits, same_image, result))
        return result

    def probabilities(self) -> list[torch.Tensor]:
        """Of the two directions' latest draws, zero in rows without a negative."""
        return [
            logits.masked_fill(same_image, -torch.inf).softmax(1).nan_to_num()
            for logits, same_image, _ in self.calls[-2:]
        ]

    def drawn(self) -> tuple[list[list[int]], list[list[int]]]:
        """The latest negative images of each speech, and negative speeches of each image."""
        return tuple(
            [columns[found].tolist() for columns, found in zip(*result, strict=True)]
            for _, _, result in self.calls[-2:]
        )


BATCHES = [
    [0, 1, 2, 0],  # two captions of image 0
    [3, 0, 1],  # images that the queue holds too
    [5, 5],  # no negative for anyone
    [4, 6, 7, 8, 4, 9],  # larger than the small queue
    [2],
    [0, 4, 5],
]


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize(
    ("queue_size", "momentum", "alpha"),
    [(5, 0.6, 0.0), (5, 0.6, 0.4), (5, 0.6, 1.0), (7, 0.0, 0.4), (None, 0.6, 0.4), (4, None, 0.4), (None, None, 0.4)],
)
def test_losses_gradients_and_state_follow_the_slow_reference(monkeypatch, queue_size, momentum, alpha, negatives):
    fast = build(queue_size, momentum, hard_negatives=negatives)
    slow = SlowObjective(fast.model, queue_size, momentum, tuple(WEIGHTS.values()))
    optimizer = torch.optim.SGD(fast.model.parameters(), lr=0.05)
    draws = Draws(monkeypatch)
    for updates, image_ids in enumerate(BATCHES, start=1):
        batch = random_batch(image_ids)
        losses = fast(batch, alpha=alpha)
        expected = slow.losses(batch, alpha, draws.drawn())
        measured = (losses.contrastive, losses.matching, losses.listwise)
        assert [loss.item() for loss in measured] == pytest.approx([loss.item() for loss in expected], abs=1e-5)
        assert losses.total.dtype == torch.float32
        assert losses.total.item() == pytest.approx(slow.total(expected).item(), abs=1e-5)

        optimizer.zero_grad()
        losses.total.backward()
        slow.total(expected).backward()
        for name, parameter in fast.model.named_parameters():
            gradient = [
                [0.0 if leaf.grad is None else leaf.grad.item() for leaf in row]
                for row in slow.student.parameters[name]
            ]
            expected_gradient = torch.tensor(gradient).view(parameter.shape)
            torch.testing.assert_close(parameter.grad, expected_gradient, atol=1e-5, rtol=1e-4, msg=name)

        optimizer.step()
        fast.after_step(updates)
        slow.step(0.05, updates)
        if momentum is not None:
            for name, parameter in fast.teacher.model.named_parameters():
                leaves = [[leaf.item() for leaf in row] for row in slow.teacher.parameters[name]]
                leaves = torch.tensor(leaves).view(parameter.shape)
                torch.testing.assert_close(parameter, leaves, atol=1e-5, rtol=1e-5, msg=name)
        if queue_size is not None:
            speech, image, ids, _ = fast.queue.contents()
            held = zip(ids.tolist(), speech.tolist(), image.tolist(), strict=True)
            wanted = [(image_id, [v.item() for v in s], [v.item() for v in i]) for s, i, image_id in slow.queue]
            for left, right in zip(sorted(held), sorted(wanted), strict=True):
                assert left[0] == right[0]
                assert left[1] + left[2] == pytest.approx(right[1] + right[2], abs=1e-5)


def test_negatives_are_drawn_by_the_current_similarities_of_the_batch(monkeypatch):
    fast, draws, batch = build(5, 0.5), Draws(monkeypatch), random_batch([0, 1, 2, 0, 3])
    fast(random_batch([7, 8, 9]))
    fast.after_step(1)
    fast(batch)
    student = SlowObjective(fast.model, None, None, (1, 1, 1)).student
    speech = [student.embedding("speech_encoder", list(item.double())) for item in batch.speech["input_values"]]
    image = [student.embedding("image_encoder", list(item.double())) for item in batch.image["pixel_values"]]
    ids = batch.image_ids.tolist()
    for measured, queries, columns in zip(draws.probabilities(), (speech, image), (image, speech), strict=True):
        for row, query in enumerate(queries):
            expected = negative_probabilities(query, columns, ids[row], ids, student.temperature)
            assert measured[row].tolist() == pytest.approx([p.item() for p in expected], abs=1e-5)


def test_random_negatives_ignore_similarity_but_not_image_ids(monkeypatch):
    fast, draws = build(None, None, negative_sampling="random"), Draws(monkeypatch)
    fast(random_batch([0, 1, 2, 0]))
    for probabilities in draws.probabilities():
        torch.testing.assert_close(
            probabilities,
            torch.tensor([[0, 0.5, 0.5, 0], [1 / 3, 0, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 0, 1 / 3], [0, 0.5, 0.5, 0]]),
        )


def test_the_queue_is_filled_with_the_students_embeddings_when_there_is_no_teacher():
    fast, batch = build(4, None), random_batch([0, 1])
    expected = fast.model.get_speech_features(**batch.speech, return_dict=True).pooler_output
    fast(batch).total.backward()
    fast.after_step(1)
    torch.testing.assert_close(fast.queue.contents()[0], expected.detach())


@pytest.mark.parametrize(("options", "matching"), [({"matching_weight": 0, "listwise_weight": 0}, True), ({}, False)])
def test_the_multimodal_encoder_does_not_run_when_nobody_wants_it(monkeypatch, options, matching):
    fast = build(4, 0.5, **options)
    monkeypatch.setattr(fast.model, "match", lambda *_: pytest.fail("match was called"))
    losses = fast(random_batch([0, 1, 2]), matching=matching)
    losses.total.backward()
    assert losses.total.item() == pytest.approx(losses.contrastive.item())
    assert losses.matching == losses.listwise == 0
    assert fast.model.multimodal_encoder.weight.grad is None


def test_without_gradient_for_the_teacher_and_with_one_for_the_temperature():
    fast = build(4, 0.5)
    fast(random_batch([0, 1, 2]), alpha=0.4).total.backward()
    assert all(parameter.grad is None for parameter in fast.teacher.parameters())
    assert fast.model.logit_scale.grad != 0


@pytest.mark.parametrize(("start", "end"), [(3.0, 0.5), (1e-6, 0.001), (0.07, 0.07)])
def test_the_temperature_stays_within_albefs_bounds(start, end):
    fast = build(None, None)
    with torch.no_grad():
        fast.model.logit_scale.copy_(-torch.tensor(start).log())
    fast(random_batch([0, 1]))
    fast.after_step(1)
    assert fast.model.temperature.item() == pytest.approx(end, rel=1e-5)


def test_embeddings_that_are_not_finite_stop_the_run():
    fast, batch = build(None, None), random_batch([0, 1])
    batch.image["pixel_values"][1] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        fast(batch)


class Float32Encoders(SmallModel):
    """Whose embeddings are the same with and without autocast."""

    def get_speech_features(self, *args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return super().get_speech_features(*args, **kwargs)

    def get_image_features(self, *args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return super().get_image_features(*args, **kwargs)


def test_sic_is_computed_in_float32_under_autocast():
    model = Float32Encoders(FEATURES, WIDTH, temperature=0.02)
    fast = CoarseToFineObjective(model, EmbeddingQueue(6, WIDTH), MomentumTeacher(model, 0.5))
    fast(random_batch([4, 5, 6]))
    fast.after_step(1)
    batch = random_batch([0, 1, 2, 3])
    full = fast(batch, alpha=0.4).contrastive
    with torch.autocast("cpu", torch.bfloat16):
        mixed = fast(batch, alpha=0.4).contrastive
    torch.testing.assert_close(mixed, full, atol=1e-6, rtol=1e-6)


def test_a_forward_pass_for_measurement_leaves_the_queue_alone():
    fast = build(4, 0.5).eval()
    with torch.no_grad():
        fast(random_batch([0, 1]))
    fast.train()
    fast(random_batch([2], first_row=7))
    fast.after_step(1)
    assert fast.queue.contents()[3].tolist() == [7]


def test_what_the_student_embedded_before_the_teacher_started_is_mined_and_no_negative_of_sic():
    early = build(8, 0.5)
    late = copy.deepcopy(early)
    early(random_batch([4, 5, 6]), momentum=False)
    early.queue.enqueue(*early._to_enqueue)
    assert len(early.queue) == 3
    batch = random_batch([0, 1, 2, 3])
    torch.testing.assert_close(early(batch).contrastive, late(batch).contrastive)
    for objective in (early, late):
        objective.queue.enqueue(*objective._to_enqueue)
    torch.testing.assert_close(early(batch).contrastive, late(batch).contrastive)
    assert early.queue.contents(by_teacher=True)[3].tolist() == late.queue.contents()[3].tolist()
