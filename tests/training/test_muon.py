"""Muon against torch's own, and its orthogonalisation against the SVD."""

import pytest
import torch
from speech_image_retrieval.training import muon
from speech_image_retrieval.training.muon import Muon, orthogonalized

SHAPES = [(8, 8), (8, 8), (8, 20), (20, 8), (20, 8), (20, 8)]


def matrices() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_it_moves_as_torchs_own_does_apart_from_rounding():
    ours, theirs = matrices(), matrices()
    groups = [(parts[:2], parts[2:]) for parts in (ours, theirs)]
    own, torchs = (
        [{"params": first, "weight_decay": 0.0}, {"params": second, "weight_decay": 0.3}] for first, second in groups
    )
    optimizers = [
        Muon(own, lr=0.01),
        torch.optim.Muon(torchs, lr=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, start in zip(ours, theirs, matrices(), strict=True):
        # bfloat16 leaves torch's update right to about a hundredth.
        assert (mine - other).norm() < 0.02 * (mine - start).norm()


def test_a_matrix_without_a_gradient_stays():
    first, second = matrices()[:2]
    first.grad = torch.ones_like(first)
    before = second.clone()
    Muon([first, second]).step()
    assert torch.equal(second, before)


def test_in_full_precision_no_device_rounds_to_bfloat16(monkeypatch):
    moved = []
    for native in (False, True):
        monkeypatch.setattr(muon, "has_native_bfloat16", lambda device, native=native: native)
        parameters = matrices()
        for parameter in parameters:
            parameter.grad = parameter.detach().clone()
        Muon(parameters, lr=0.01, bfloat16=False).step()
        moved.append(parameters)
    assert all(map(torch.equal, *moved))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (7, 7)])
def test_orthogonalized_keeps_the_singular_vectors_and_evens_out_the_values(shape, dtype):
    matrix = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.mT @ orthogonalized((matrix * 1000).to(dtype)).float() @ right.mT
    evened = turned.diagonal(dim1=1, dim2=2)
    assert (turned - torch.diag_embed(evened)).abs().max() < 0.05
    assert evened.min() > 0.5 and evened.max() < 1.4, values


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"for matrices, not for a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.ones(3))])
