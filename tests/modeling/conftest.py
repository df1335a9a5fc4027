from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from speech_image_retrieval import SpeechImageRetrievalModel
from torch import Tensor

from .tiny import KINDS, tiny_batch, tiny_model

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
torch.set_num_threads(1)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str) -> SpeechImageRetrievalModel:
    return tiny_model(kind)


@pytest.fixture
def batch(kind: str) -> dict[str, Tensor]:
    return tiny_batch(kind)
