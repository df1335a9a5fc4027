"""bfloat16 is chosen where the machine has it, and only there."""

import pytest
import torch
from speech_image_retrieval.training.precision import resolve_precision


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "no"),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": True}, "bf16"),
    ],
)
def test_auto_follows_the_processor(capabilities, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", torch.device("cpu")) == chosen


@pytest.mark.parametrize("asked", ["no", "bf16"])
def test_what_is_asked_for_is_kept(asked, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": asked == "no"})
    assert resolve_precision(asked, torch.device("cpu")) == asked
