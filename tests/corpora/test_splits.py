from __future__ import annotations

from collections import Counter

import pytest
from speech_image_retrieval.corpora.splits import DRAWN_PICTURES, karpathy_split, validation_drawn_from


@pytest.mark.parametrize(("coco_id", "split"), [(391895, "test"), (42, "test"), (139, "validation"), (9, "train")])
def test_karpathys_split(coco_id: int, split: str):
    assert karpathy_split(coco_id) == split


def test_karpathys_split_has_5000_pictures_each_for_validation_and_test():
    counts = Counter(map(karpathy_split, range(600_000)))
    assert counts["validation"] == counts["test"] == 5000


def test_at_most_a_thousand_pictures_are_drawn():
    image_ids = [f"a/abbey/{number}.jpg" for number in range(20_000)]
    drawn = validation_drawn_from(image_ids * 2)
    assert sum(map(drawn, image_ids)) == DRAWN_PICTURES


@pytest.mark.parametrize(("pictures", "count"), [(0, 0), (1, 0), (2, 1), (19, 1), (50, 5), (9_990, 999)])
def test_a_small_corpus_gives_a_tenth(pictures: int, count: int):
    image_ids = [f"{number}.jpg" for number in range(pictures)]
    assert sum(map(validation_drawn_from(image_ids), image_ids)) == count


def test_the_same_pictures_are_drawn_in_any_order_and_on_any_machine():
    image_ids = [f"{number}.jpg" for number in range(50)]
    drawn = validation_drawn_from(reversed(image_ids))
    assert [image_id for image_id in image_ids if drawn(image_id)] == [
        "11.jpg",
        "12.jpg",
        "25.jpg",
        "30.jpg",
        "38.jpg",
    ]
