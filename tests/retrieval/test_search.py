from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_image_retrieval.evaluation import EncodedImages, EncodedSpeech, PackedStates, evaluate_encoded
from speech_image_retrieval.retrieval.search import SearchResult, search_encoded, search_images
from torch import Tensor, nn


class VectorProcessor:
    """Clips and pictures are vectors of four numbers."""

    def __call__(self, audio=None, images=None, return_tensors="pt"):
        if any(None in item for item in audio or images):
            raise ValueError("unreadable")
        if images is not None:
            return {"pixel_values": torch.tensor(images)}
        return {"input_values": torch.tensor(audio), "attention_mask": torch.ones(len(audio), 1)}


class VectorModel(nn.Module):
    """The first two numbers are compared by similarity, the last two by matching."""

    device = torch.device("cpu")
    dtype = torch.float32
    rerank_temperature = 0.5

    def __init__(self):
        super().__init__()
        self.pairs_matched = 0

    def get_speech_features(self, input_values, attention_mask):
        return SimpleNamespace(
            pooler_output=input_values[:, :2],
            last_hidden_state=input_values[:, None, 2:],
            attention_mask=attention_mask,
        )

    def get_image_features(self, pixel_values):
        return SimpleNamespace(pooler_output=pixel_values[:, :2], last_hidden_state=pixel_values[:, None, 2:])

    def project_images(self, image_states):
        return image_states

    def match(self, speech_states, speech_mask, image_states, image_rows, speech_rows):
        image_states, speech_states = image_states[image_rows], speech_states[speech_rows]
        self.pairs_matched += len(speech_states)
        return (speech_states[:, 0] * image_states[:, 0]).sum(dim=-1)


def slow_search(query: list[float], images: list[list[float]], top_k: int, rerank_top_k: int) -> list[SearchResult]:
    def dot(start: int, image: int) -> float:
        return sum(query[axis] * images[image][axis] for axis in (start, start + 1))

    coarse = sorted(range(len(images)), key=lambda image: -dot(0, image))
    head = sorted(coarse[:rerank_top_k], key=lambda image: -dot(2, image))
    return [
        SearchResult(image, dot(0, image), coarse.index(image) + 1, dot(2, image) if image in head else None)
        for image in (head + coarse[rerank_top_k:])[:top_k]
    ]


vectors = st.lists(st.integers(-2, 2).map(float), min_size=4, max_size=4)


@settings(deadline=None, max_examples=60)
@given(
    queries=st.lists(vectors, min_size=1, max_size=3),
    images=st.lists(vectors, min_size=1, max_size=9),
    top_k=st.integers(1, 12),
    rerank_top_k=st.integers(0, 12),
)
def test_finds_what_a_slow_search_finds_ties_included(queries, images, top_k, rerank_top_k):
    found = search_images(
        VectorModel(), VectorProcessor(), queries, images, top_k=top_k, rerank_top_k=rerank_top_k, batch_size=2
    )
    assert found == [slow_search(query, images, top_k, rerank_top_k) for query in queries]


def encoded(captions: int, images: int) -> tuple[EncodedSpeech, EncodedImages]:
    draw = torch.Generator().manual_seed(captions)
    speech, gallery = torch.randn(captions, 4, generator=draw), torch.randn(images, 4, generator=draw)
    states = PackedStates.from_tokens(speech[:, 2:], torch.ones(captions, dtype=torch.int64))
    return EncodedSpeech(speech[:, :2], states), EncodedImages(gallery[:, :2], gallery[:, None, 2:])


@pytest.mark.parametrize("score_rule", ["sim", "sim+sic"])
@pytest.mark.parametrize("rerank_top_k", [1, 5, 40])
def test_recall_of_a_search_is_the_recall_that_evaluation_measures(rerank_top_k: int, score_rule: str):
    speech, images = encoded(captions=60, images=20)
    image_of_caption = torch.arange(60) % 20
    options = {"rerank_top_k": rerank_top_k, "score_rule": score_rule}
    found = search_encoded(VectorModel(), speech, images, top_k=10, **options)
    report = evaluate_encoded(VectorModel(), speech, images, image_of_caption, corpus="c", split="test", **options)
    for k in (1, 5, 10):
        hits = [
            right in [result.image for result in results[:k]]
            for right, results in zip(image_of_caption.tolist(), found, strict=True)
        ]
        assert 100 * sum(hits) / 60 == pytest.approx(report["speech_to_image"]["reranked"][f"R@{k}"])


def test_only_the_candidates_are_matched():
    model = VectorModel()
    search_encoded(model, *encoded(captions=3, images=20), rerank_top_k=7)
    assert model.pairs_matched == 3 * 7


def test_without_reranking_no_states_are_needed():
    model = VectorModel()
    speech, images = encoded(captions=3, images=20)
    found = search_encoded(
        model, EncodedSpeech(speech.embeddings), EncodedImages(images.embeddings), top_k=4, rerank_top_k=0
    )
    assert [[result.coarse_rank for result in results] for results in found] == [[1, 2, 3, 4]] * 3
    assert model.pairs_matched == 0


def test_reranking_without_states_is_refused():
    speech, images = encoded(captions=3, images=20)
    with pytest.raises(ValueError, match="keep_states=True"):
        search_encoded(VectorModel(), EncodedSpeech(speech.embeddings), images)


def test_nan_is_not_ranked():
    speech, images = encoded(captions=3, images=20)
    images.embeddings[4, 0] = torch.nan
    with pytest.raises(ValueError, match="query 0, image 4 is NaN"):
        search_encoded(VectorModel(), speech, images)


@pytest.mark.parametrize(("option", "value"), [("top_k", 0), ("rerank_top_k", -1)])
def test_options_out_of_range_are_refused_before_anything_is_encoded(option: str, value: int):
    def processor(**items: object) -> dict[str, Tensor]:
        raise AssertionError("encoded")

    with pytest.raises(ValueError, match=f"{option} must be"):
        search_images(VectorModel(), processor, [[1.0] * 4], [[1.0] * 4], **{option: value})


def test_an_unreadable_picture_is_named():
    with pytest.raises(ValueError, match=r"'cat\.png'.*unreadable"):
        search_images(
            VectorModel(),
            VectorProcessor(),
            [[1.0] * 4],
            [[1.0] * 4, [None] * 4],
            image_names=["dog.png", "cat.png"],
        )
