"""The cascade compares texts rightly; Whisper itself is not run."""

import pytest
import torch

from benchmarks.cascade import recalls, refuse_missing, text_similarity

TEXTS = ["a red circle", "a blue square", "the round red thing", "a green star"]
PICTURES = torch.tensor([0, 1, 0, 2])


def test_a_picture_is_as_near_as_the_nearest_of_its_texts():
    similarity = text_similarity(["A red circle.", "round red thing"], TEXTS, PICTURES, pictures=3)
    assert similarity.shape == (2, 3)
    assert float(similarity[0, 0]) == 100, "case and punctuation do not count"
    assert similarity[1].argmax() == 0 and float(similarity[1, 0]) > 80
    assert (similarity[:, 1:] < 60).all()


def test_captions_without_a_text_are_refused():
    refuse_missing(TEXTS)
    with pytest.raises(SystemExit, match="2 of 3 captions have no text"):
        refuse_missing(["a", None, ""])


def test_both_directions_are_measured_and_texts_that_two_pictures_share_count_against_it():
    heard = list(TEXTS)
    perfect = recalls(text_similarity(heard, TEXTS, PICTURES, 3), PICTURES)
    assert [perfect[way]["cascade"]["R@1"] for way in ("speech_to_image", "image_to_speech")] == [100.0, 100.0]
    shared = ["a star", "a star"]
    ambiguous = recalls(text_similarity(shared, shared, torch.tensor([0, 1]), 2), torch.tensor([0, 1]))
    assert ambiguous["speech_to_image"]["cascade"]["R@1"] == pytest.approx(0.0)
