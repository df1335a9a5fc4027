from __future__ import annotations

import pytest
import torch
from speech_image_retrieval.modeling.transformer_layers import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_asked_share_is_dropped_and_the_mean_is_kept(p):
    torch.manual_seed(0)
    output = Dropout(p)(torch.ones(1000, 1001))
    dropped = (output == 0).double().mean()
    assert abs(dropped - p) < 4 * (p * (1 - p) / output.numel()) ** 0.5 + 1 / 65536
    assert abs(output.double().mean() - 1) < 0.01
    (kept,) = output[output != 0].unique().tolist()
    assert kept == pytest.approx(1 / (1 - p), rel=1e-3)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(400_000)) == 0).double()
    for distance in range(1, 9):  # four elements share one random number
        together = (dropped[distance:] * dropped[:-distance]).mean()
        assert abs(together - 0.25) < 0.005


def test_the_gradient_passes_where_the_value_did():
    values = torch.randn(50, 7, requires_grad=True)
    output = Dropout(0.3)(values)
    output.sum().backward()
    assert torch.equal(values.grad == 0, output == 0)
    assert torch.allclose(output, values * values.grad)


def test_the_seed_decides_and_evaluation_drops_nothing():
    dropout, values = Dropout(0.4), torch.randn(33, 5)
    torch.manual_seed(3)
    first = dropout(values)
    torch.manual_seed(3)
    assert torch.equal(dropout(values), first)
    assert not torch.equal(dropout(values), first)
    assert torch.equal(dropout.eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_stays(dtype):
    assert Dropout(0.2)(torch.ones(5, 3, dtype=dtype)).dtype is dtype
