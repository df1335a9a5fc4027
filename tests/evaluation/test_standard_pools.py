from __future__ import annotations

import pytest
from speech_image_retrieval.evaluation.standard_pools import corpus_called, describe_pool


@pytest.mark.parametrize(
    ("corpus", "split", "images", "captions", "folds", "name"),
    [
        ("flickr8k_audio", "test", 1000, 5000, 1, "Flickr8k Audio, 1,000 x 5,000"),
        ("outputs/spoken_coco/corpus", "test", 5000, 25_031, 1, "SpokenCOCO 5k, 5,000 x 25,031"),
        ("org/SpokenCOCO", "test", 5000, 25_031, 5, "SpokenCOCO 1k, mean of 5 folds of 1,000 x 5,000"),
        ("/data/Places-Audio/corpus", "test", 1000, 1000, 1, "Places Audio, 1,000 x 1,000"),
    ],
)
def test_the_pools_of_the_literature_are_standard(corpus, split, images, captions, folds, name):
    assert describe_pool(corpus, split, images, captions, folds) == {"standard": True, "name": name}


@pytest.mark.parametrize(
    ("corpus", "split", "images", "captions", "folds", "reason"),
    [
        # mteb's pool of Flickr8k: everything, training pictures among it
        ("flickr8k_audio", "test", 8091, 40_000, 1, "split test, 1,000 x 5,000; this is split test, 8,091 x 40,000"),
        ("flickr8k_audio", "test", 1000, 4999, 1, "this is split test, 1,000 x 4,999"),
        ("flickr8k_audio", "validation", 1000, 5000, 1, "this is split validation, 1,000 x 5,000"),
        ("flickr8k_audio", "test", 1000, 5000, 5, "this is split test, 1,000 x 5,000 in 5 folds"),
        ("spoken_coco", "test", 5000, 25_031, 10, "5,000 x 25,031 or split test, 5,000 x 25,031 in 5 folds"),
        ("spoken_coco", "test", 1000, 5010, 1, "this is split test, 1,000 x 5,010"),
        ("speech_coco", "test", 5000, 25_031, 1, "the literature has no pool of speech_coco"),
        ("outputs/my_flickr8k_audio/corpus", "test", 1000, 5000, 1, "literature has no pool of my_flickr8k_audio"),
    ],
)
def test_any_other_pool_is_not_and_says_why(corpus, split, images, captions, folds, reason):
    pool = describe_pool(corpus, split, images, captions, folds)
    assert not pool["standard"] and "name" not in pool
    assert reason in pool["reason"]


def test_a_corpus_is_called_after_a_part_of_its_name():
    known = ["spoken_shapes", "tuxpaint"]
    assert corpus_called("outputs/spoken_shapes/corpus", known) == "spoken_shapes"
    assert corpus_called("org/TuxPaint", known) == "tuxpaint"
    assert corpus_called("outputs/spoken_shapes_2/corpus", known) is None
    assert corpus_called("spoken_shapes/experiments/tuxpaint/corpus", known) == "tuxpaint"
    assert corpus_called("tuxpaint/experiments/spoken_shapes/corpus", known) == "spoken_shapes"
