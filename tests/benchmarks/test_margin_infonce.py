"""The margin InfoNCE baseline against loops over pairs."""

import math

import pytest
import torch
from speech_image_retrieval.training.objective import Batch

from benchmarks.margin_infonce import AllPairsObjective, margin_infonce


def slow(scores: list[list[float]], image_ids: list[int], margin: float) -> float:
    total = 0.0
    for transposed in (False, True):
        for row in range(len(scores)):
            matched = math.exp(scores[row][row] - margin)
            others = [
                math.exp(scores[other][row] if transposed else scores[row][other])
                for other in range(len(scores))
                if image_ids[other] != image_ids[row]
            ]
            total -= math.log(matched / (matched + sum(others))) / len(scores)
    return total


@pytest.mark.parametrize("margin", [0.0, 1.0])
@pytest.mark.parametrize("image_ids", [[1, 2, 3, 4], [1, 2, 1, 3]])
def test_margin_infonce_is_the_sum_of_both_directions(image_ids, margin):
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
    loss = margin_infonce(scores, torch.tensor(image_ids), margin)
    assert float(loss) == pytest.approx(slow(scores.tolist(), image_ids, margin), abs=1e-6)


class PairModel(torch.nn.Module):
    """Encoders that pass their input on, and a matching score that depends on the order of the two."""

    temperature = torch.tensor(0.5)

    def get_speech_features(self, states, pooled_only, return_dict):
        return Features(states)

    get_image_features = get_speech_features

    def match(self, speech_states, speech_mask, image_states, image_rows, speech_rows):
        return (speech_states[speech_rows] * torch.tensor([1.0, 2.0]) * image_states[image_rows]).sum(-1)


class Features:
    def __init__(self, states):
        self.last_hidden_state = states
        self.attention_mask = torch.ones(len(states), 1)
        self.pooler_output = torch.nn.functional.normalize(states, dim=-1)


def test_all_pairs_of_the_batch_are_scored():
    generator = torch.Generator().manual_seed(1)
    speech, image = (torch.randn(3, 2, generator=generator) for _ in range(2))
    ids = torch.tensor([5, 6, 5])
    batch = Batch({"states": speech}, {"states": image}, ids, torch.arange(3))
    objective = AllPairsObjective(PairModel())
    fine = [[float((s * torch.tensor([1.0, 2.0]) * i).sum()) for i in image] for s in speech]
    coarse = [[float(torch.cosine_similarity(s, i, dim=0)) / 0.5 for i in image] for s in speech]
    expected = 0.1 * slow(coarse, ids.tolist(), 1.0) + slow(fine, ids.tolist(), 1.0)
    of_the_loop = {"alpha": 0.0, "momentum": True, "matching": True, "generator": torch.Generator()}
    assert float(objective(batch, **of_the_loop).total) == pytest.approx(expected, abs=1e-5)
    assert float(objective(batch, matching=False).total) == pytest.approx(0.1 * slow(coarse, ids.tolist(), 1.0))
