from __future__ import annotations

import pytest
import torch
from speech_image_retrieval.corpora.scenes import all_scenes, describe
from speech_image_retrieval.evaluation.intervals import RankedQueries
from speech_image_retrieval.gallery.attributes import picture_attributes, query_attributes
from speech_image_retrieval.gallery.confusion import (
    MOST_CONFUSED,
    MOST_GROUPS,
    NOT_KNOWN,
    OTHERS,
    by_attribute,
    confusion,
    recall_by_value,
)


def queries(ranks: list[int]) -> RankedQueries:
    return RankedQueries({"coarse": torch.tensor(ranks)}, torch.arange(len(ranks)))


def caption(text: str | None, speaker: str | None = None, language: str | None = None) -> dict:
    return {"text": text, "speaker": speaker, "language": language}


def test_recall_is_that_of_each_value_and_values_are_in_natural_order():
    values = ["10 to 14", "2", "2", "1", "2", NOT_KNOWN]
    groups = recall_by_value(values, queries([1, 1, 5, 2, 1, 1]))
    assert [(group.value, group.queries) for group in groups] == [
        ("1", 1),
        ("2", 3),
        ("10 to 14", 1),
        (NOT_KNOWN, 1),
    ]
    two = groups[1].recalls["coarse"]
    assert two.value == pytest.approx(200 / 3)
    assert two.low < two.value < two.high
    assert recall_by_value(["en"] * 3, queries([1, 1, 1])) == []


def test_the_rarest_of_many_values_are_taken_together():
    values = [f"voice {number}" for number in range(MOST_GROUPS)] * 2 + ["rare a", "rare b"]
    groups = recall_by_value(values, queries([1] * len(values)))
    assert len(groups) == MOST_GROUPS + 1
    assert (groups[-1].value, groups[-1].queries) == (OTHERS, 2)


def test_confusion_counts_what_was_found_for_what_is_right():
    found = confusion("colour", ["red", "red", "blue", "red"], ["red", "blue", "blue", "green"])
    assert found.values == ["blue", "green", "red"]
    assert found.counts == [[1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert found.agreement == 50
    assert found.most_confused == 1
    many = [str(number) for number in range(MOST_CONFUSED + 1)]
    assert confusion("name", many, many) == ("name", 100, [], [])


def test_a_scene_is_known_by_its_name():
    from random import Random

    for scene in all_scenes()[::97]:
        known = picture_attributes("outputs/spoken_shapes/corpus", scene.name)
        assert known["colour of the upper or left figure"] == scene.first.colour
        assert known["shape of the other figure"] == scene.second.shape
        assert known["relation"] == ("above" if scene.direction == "vertical" else "to the left of")
        text = describe(scene, converse=True, rng=Random(0))
        said = query_attributes("spoken_shapes", caption(text, "en-US+f2", "en-US"))
        assert said["relation said"] == ("below" if scene.direction == "vertical" else "to the right of")
        assert said["speaker"] == "en-US+f2" and said["language"] == "en-US"
    mirrored = {picture_attributes("spoken_shapes", name)["both figures, in either order"] for name in
                ("red-ring-above-blue-star", "blue-star-above-red-ring")}  # fmt: skip
    assert len(mirrored) == 1
    assert picture_attributes("spoken_shapes", "no-scene") == {}


def test_emoji_stamps_and_other_corpora():
    assert picture_attributes("spoken_emoji", "1f600") == {"Unicode block": "Emoticons"}
    assert picture_attributes("spoken_emoji", "1f680-200d-1f525") == {"Unicode block": "Transport and Map Symbols"}
    assert picture_attributes("spoken_emoji", "23-20e3") == {"Unicode block": "other blocks"}
    assert query_attributes("spoken_emoji", caption("ram", "flite+slt"))["synthesiser"] == "flite"
    assert query_attributes("spoken_emoji", caption("ram", "en-US+f2"))["synthesiser"] == "espeak"
    assert picture_attributes("org/tuxpaint", "animals/birds/robin") == {"kind": "animals"}
    assert query_attributes("tuxpaint", caption(None, None, "fr")) == {"language": "fr"}
    assert picture_attributes("places_audio", "a/abbey/1.jpg") == {}
    assert query_attributes("places_audio", caption("word " * 12)) == {"number of words": "10 to 14"}


def test_an_item_without_an_attribute_is_not_known():
    assert by_attribute([{"a": "1"}, {}, {"a": "2", "b": "3"}]) == {
        "a": ["1", NOT_KNOWN, "2"],
        "b": [NOT_KNOWN, NOT_KNOWN, "3"],
    }
