"""A model and a processor small enough to reason about.

All values are small whole numbers, so that every sum is exact whatever the batch, and equal scores do occur. A clip
is a string of digits, one frame a digit; a picture is a string of TOKENS digits. Padded frames hold garbage, as those
of a real encoder may: a score in which they take part is visibly wrong.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

WIDTH, TOKENS = 3, 4
GARBAGE = 1000.0


def media(digits) -> dict:
    return {"bytes": "".join(str(int(digit)) for digit in digits).encode(), "path": None}


class DigitProcessor:
    def __call__(self, audio=None, images=None, return_tensors="pt"):
        items = [[float(digit) for digit in item["bytes"].decode()] for item in (audio or images)]
        if images is not None:
            return {"pixel_values": torch.tensor(items)}
        longest = max(map(len, items))
        return {
            "input_values": torch.tensor([item + [0.0] * (longest - len(item)) for item in items]),
            "attention_mask": torch.tensor([[1] * len(item) + [0] * (longest - len(item)) for item in items]),
        }


class DigitModel(nn.Module):
    """Embeddings are masked sums of token states, matching is a masked sum over all token pairs."""

    device = torch.device("cpu")
    dtype = torch.float32
    rerank_temperature = 0.125

    def __init__(self):
        super().__init__()
        self.frozen, self.trained = nn.Linear(1, 1), nn.Linear(1, 1)
        self.batches: list[dict[str, Tensor]] = []
        self.matched: list[tuple[Tensor, Tensor, Tensor]] = []

    def _states(self, values: Tensor) -> Tensor:
        return torch.stack([values, values % 3, (values + 1) % 5], dim=-1)

    def _embedding(self, states: Tensor, mask: Tensor) -> Tensor:
        return (states * mask.unsqueeze(-1)).sum(dim=1) % 7 - 3

    def get_speech_features(self, input_values, attention_mask):
        self.batches.append({"input_values": input_values, "attention_mask": attention_mask})
        states = self._states(input_values)
        embedding = self._embedding(states, attention_mask)
        states = states.masked_fill(~attention_mask.bool().unsqueeze(-1), GARBAGE)
        return SimpleNamespace(pooler_output=embedding, last_hidden_state=states, attention_mask=attention_mask)

    def get_image_features(self, pixel_values):
        self.batches.append({"pixel_values": pixel_values})
        states = self._states(pixel_values)
        embedding = self._embedding(states, torch.ones_like(pixel_values))
        return SimpleNamespace(pooler_output=embedding, last_hidden_state=states)

    def project_images(self, image_states):
        return image_states

    def match(self, speech_states, speech_mask, image_states, image_rows=None, speech_rows=None):
        image_states = image_states if image_rows is None else image_states[image_rows]
        if speech_rows is not None:
            speech_states, speech_mask = speech_states[speech_rows], speech_mask[speech_rows]
        self.matched.append((speech_states, speech_mask, image_states))
        heard = (speech_states * speech_mask.unsqueeze(-1)).unsqueeze(2)
        return ((heard * image_states.unsqueeze(1)).sum(dim=(1, 2, 3)) % 23) - 11


class PerfectMatcher(DigitModel):
    """Hears the truth: the first digit of a clip and of a picture say which object they show."""

    def match(self, speech_states, speech_mask, image_states, image_rows, speech_rows):
        image_states, speech_states = image_states[image_rows], speech_states[speech_rows]
        return (speech_states[:, 0, 0] == image_states[:, 0, 0]).float()


def digit_rows(images: int, captions_per_image: list[int], seed: int) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for image in range(images):
        picture = media([image % 10, *torch.randint(10, (TOKENS - 1,), generator=generator)])
        for caption in range(captions_per_image[image % len(captions_per_image)]):
            length = int(torch.randint(1, 9, (1,), generator=generator))
            speech = media([image % 10, *torch.randint(10, (length,), generator=generator)])
            rows.append(
                {"image": picture, "audio": speech, "image_id": f"i{image}", "caption_id": f"i{image}#{caption}"}
            )
    return rows


@pytest.fixture
def model() -> DigitModel:
    return DigitModel()


@pytest.fixture
def perfect_matcher() -> PerfectMatcher:
    return PerfectMatcher()


@pytest.fixture
def processor() -> DigitProcessor:
    return DigitProcessor()


@pytest.fixture
def make_rows():
    return digit_rows


@pytest.fixture
def rows() -> list[dict]:
    return digit_rows(images=9, captions_per_image=[2, 1, 3], seed=5)
