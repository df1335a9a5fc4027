from __future__ import annotations

import copy

import accelerate
import pytest
import torch
from speech_image_retrieval.training import gradient_cache
from speech_image_retrieval.training.embedding_queue import EmbeddingQueue
from speech_image_retrieval.training.gradient_cache import backward
from speech_image_retrieval.training.momentum import MomentumTeacher
from speech_image_retrieval.training.objective import Batch, CoarseToFineObjective, EncodedBatch
from torch import nn

from .reference import SmallModel

FEATURES, WIDTH, TOKENS = 4, 3, 5
IDS = [[0, 1, 2, 0, 3, 4], [3, 0, 1, 7, 8, 8], [5, 5, 5, 5, 5, 5], [4, 6, 7, 8, 4, 9], [1, 2, 3, 4, 5, 6]]


class StochasticModel(SmallModel):
    """With dropout and batch norm in both encoders."""

    def __init__(self):
        super().__init__(FEATURES, WIDTH)
        for name in ("speech_encoder", "image_encoder"):
            layers = nn.Sequential(getattr(self, name), nn.Dropout(0.3), _TokenNorm(WIDTH))
            setattr(self, name, layers)


class _TokenNorm(nn.BatchNorm1d):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states.flatten(0, 1)).view_as(states)


def objective_of(model: nn.Module, queue_size: int | None = 7, momentum: float | None = 0.6) -> CoarseToFineObjective:
    queue = None if queue_size is None else EmbeddingQueue(queue_size, WIDTH)
    teacher = None if momentum is None else MomentumTeacher(model, momentum)
    return CoarseToFineObjective(model, queue, teacher, matching_weight=0.7, listwise_weight=0.3, hard_negatives=2)


def batch_of(image_ids: list[int]) -> Batch:
    """Clips of 1 to 5 tokens."""
    lengths = torch.tensor([1 + row % TOKENS for row in range(len(image_ids))])
    return Batch(
        speech={
            "input_values": torch.randn(len(image_ids), TOKENS, FEATURES),
            "attention_mask": torch.arange(TOKENS) < lengths[:, None],
        },
        image={"pixel_values": torch.randn(len(image_ids), 2, FEATURES)},
        image_ids=torch.tensor(image_ids),
        rows=torch.arange(len(image_ids)),
    )


def parts_of(batch: Batch, sizes: list[int]) -> list[Batch]:
    """Micro-batches without the tokens that they do not need."""
    parts = []
    for rows in torch.arange(len(batch.rows)).split(sizes):
        longest = int(batch.speech["attention_mask"][rows].sum(1).max())
        speech = {name: value[rows][:, :longest] for name, value in batch.speech.items()}
        image = {name: value[rows] for name, value in batch.image.items()}
        parts.append(Batch(speech, image, batch.image_ids[rows], batch.rows[rows]))
    return parts


@pytest.mark.parametrize("sizes", [[6], [3, 3], [2, 2, 2], [4, 2], [1] * 6])
@pytest.mark.parametrize(("queue_size", "momentum"), [(7, 0.6), (7, None), (None, None)])
def test_parts_of_a_batch_train_as_the_whole_batch_does(sizes, queue_size, momentum):
    torch.manual_seed(0)
    whole = objective_of(SmallModel(FEATURES, WIDTH), queue_size, momentum)
    cached = copy.deepcopy(whole)
    optimizers = [torch.optim.SGD(one.model.parameters(), lr=0.1) for one in (whole, cached)]
    for updates, image_ids in enumerate(IDS, start=1):
        batch = batch_of(image_ids)
        for optimizer in optimizers:
            optimizer.zero_grad()
        expected = whole(batch, alpha=0.4, generator=torch.Generator().manual_seed(updates))
        expected.total.backward()
        generator = torch.Generator().manual_seed(updates)
        losses = backward(cached, parts_of(batch, sizes), alpha=0.4, generator=generator)
        for name, value in vars(losses).items():
            torch.testing.assert_close(value, getattr(expected, name).detach(), atol=1e-5, rtol=0, msg=name)
        for (name, parameter), other in zip(whole.model.named_parameters(), cached.model.parameters(), strict=True):
            torch.testing.assert_close(other.grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)
        for objective, optimizer in zip((whole, cached), optimizers, strict=True):
            optimizer.step()
            objective.after_step(updates)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], value, atol=1e-5, rtol=0, msg=name)


def test_both_passes_draw_the_same(monkeypatch):
    torch.manual_seed(0)
    objective = objective_of(StochasticModel())
    passes: list[list[torch.Tensor]] = [[], []]
    encode = CoarseToFineObjective.encode

    def spying(self, *args, **kwargs):
        encoded = encode(self, *args, **kwargs)
        passes[torch.is_grad_enabled()].append(encoded.speech_states.detach())
        return encoded

    monkeypatch.setattr(CoarseToFineObjective, "encode", spying)
    batch = batch_of(IDS[0])
    backward(objective, parts_of(batch, [3, 3]))
    assert len(passes[0]) == len(passes[1]) == 2
    for first, second in zip(*passes, strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(passes[0][0], passes[0][1])


def test_running_statistics_are_those_of_one_pass():
    torch.manual_seed(0)
    objective = objective_of(StochasticModel(), None, None)
    alone = copy.deepcopy(objective.model)
    parts = parts_of(batch_of(IDS[0]), [3, 3])
    state = torch.get_rng_state()
    backward(objective, parts)
    torch.set_rng_state(state)
    for part in parts:
        alone.get_speech_features(**part.speech)
        alone.get_image_features(**part.image)
    for name, value in alone.named_buffers():
        if name.endswith(("mean", "var", "num_batches_tracked")):
            torch.testing.assert_close(objective.model.get_buffer(name), value, msg=name)


def test_the_next_step_does_not_draw_what_this_one_did():
    torch.manual_seed(0)
    objective = objective_of(StochasticModel())
    batch = batch_of(IDS[0])
    before = torch.get_rng_state()
    backward(objective, parts_of(batch, [3, 3]), generator=torch.Generator())
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    for part in parts_of(batch, [3, 3]):
        objective.encode(part)
    assert torch.equal(torch.get_rng_state(), after)


def test_only_one_micro_batch_has_a_graph(monkeypatch):
    objective = objective_of(SmallModel(FEATURES, WIDTH), None, None)
    graphs = []
    monkeypatch.setattr(
        objective.model.speech_encoder,
        "forward",
        lambda values: graphs.append(torch.is_grad_enabled()) or values @ objective.model.speech_encoder.weight.T,
    )
    backward(objective, parts_of(batch_of(IDS[0]), [2, 2, 2]))
    assert graphs == [False] * 3 + [True] * 3


def test_steps_without_sim_keep_no_states():
    objective = objective_of(SmallModel(FEATURES, WIDTH))
    losses = backward(objective, parts_of(batch_of(IDS[0]), [3, 3]), matching=False)
    assert losses.matching == 0
    assert objective.model.multimodal_encoder.weight.grad is None
    assert objective.model.speech_encoder.weight.grad.abs().sum() > 0


def test_similarities_that_are_not_finite_are_reported():
    objective, batch = objective_of(SmallModel(FEATURES, WIDTH)), batch_of(IDS[0])
    batch.image["pixel_values"][1] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        backward(objective, parts_of(batch, [3, 3]))


def test_masks_stay_masks_where_another_process_has_longer_speech(monkeypatch):
    encoded = EncodedBatch(
        speech=torch.randn(2, 3),
        image=torch.randn(2, 3),
        speech_states=torch.randn(2, 4, 3),
        speech_mask=torch.ones(2, 4, dtype=torch.bool),
        image_states=torch.randn(2, 5, 3),
        momentum=None,
        image_ids=torch.arange(2),
        rows=torch.arange(2),
    )
    monkeypatch.setattr(accelerate.utils.operations, "gather", lambda size: torch.cat([size, size + 2]))
    gathered = gradient_cache._gathered(encoded)
    assert gathered.speech_states.shape == (2, 6, 3)
    assert gathered.speech_mask.dtype == torch.bool
    assert gathered.speech_mask.tolist() == [[True] * 4 + [False] * 2] * 2
