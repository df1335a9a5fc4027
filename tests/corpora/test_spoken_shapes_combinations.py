from __future__ import annotations

from pathlib import Path

import pytest
from speech_image_retrieval.corpora import spoken_shapes_combinations
from speech_image_retrieval.corpora.scenes import COLOURS, RELATIONS, SHAPES, Scene
from speech_image_retrieval.corpora.spoken_shapes_combinations import (
    HeldOut,
    build_spoken_shapes_combinations,
    split_combinations,
)


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Scene]]:
    return split_combinations(seed=0)


def test_every_scene_is_in_one_split_at_most(splits: dict[str, list[Scene]]):
    names = [scene.name for scenes in splits.values() for scene in scenes]
    assert len(set(names)) == len(names)


def test_evaluated_splits_have_five_hundred_scenes_and_training_all_that_are_left(splits: dict[str, list[Scene]]):
    assert {name: len(scenes) for name, scenes in splits.items()} == {
        "train": 4376,
        "validation": 500,
        "test": 500,
        "test_unseen_figure": 500,
        "test_unseen_relation": 500,
    }


@pytest.mark.parametrize("known", ["train", "validation", "test"])
def test_combinations_of_training_never_occur_in_the_other_tests(splits: dict[str, list[Scene]], known: str):
    figures = {figure for scene in splits[known] for figure in (scene.first, scene.second)}
    relations = {(scene.first.colour, scene.direction, scene.second.colour) for scene in splits[known]}
    assert all({one.first, one.second} - figures for one in splits["test_unseen_figure"])
    unseen = splits["test_unseen_relation"]
    assert not relations & {(one.first.colour, one.direction, one.second.colour) for one in unseen}


def test_training_has_both_figures_of_an_unseen_relation(splits: dict[str, list[Scene]]):
    figures = {figure for scene in splits["train"] for figure in (scene.first, scene.second)}
    assert all({one.first, one.second} <= figures for one in splits["test_unseen_relation"])


def test_training_has_every_colour_shape_and_direction_in_every_role(splits: dict[str, list[Scene]]):
    for direction in RELATIONS:
        scenes = [scene for scene in splits["train"] if scene.direction == direction]
        for of in ((scene.first for scene in scenes), (scene.second for scene in scenes)):
            figures = list(of)
            assert {figure.colour for figure in figures} == set(COLOURS)
            assert {figure.shape for figure in figures} == set(SHAPES)


def test_held_out_are_a_shape_of_each_colour_and_an_order_of_colours_for_each_direction():
    held_out = HeldOut.drawn(seed=3)
    assert {figure.colour for figure in held_out.figures} == set(COLOURS)
    assert {figure.shape for figure in held_out.figures} == set(SHAPES)
    assert len(held_out.relations) == len(COLOURS) * len(RELATIONS)
    assert all(first != second for first, _, second in held_out.relations)


def test_another_seed_holds_out_others():
    assert HeldOut.drawn(seed=0) != HeldOut.drawn(seed=1)


def test_the_corpus_has_the_splits_with_voices_of_their_own(
    splits: dict[str, list[Scene]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    few = {name: scenes[:2] for name, scenes in splits.items()}
    monkeypatch.setattr(spoken_shapes_combinations, "split_combinations", lambda seed: few)
    corpus = build_spoken_shapes_combinations(tmp_path / "corpus", num_proc=1)
    assert {name: split["image_id"][:: len(split) // 2] for name, split in corpus.items()} == {
        name: [scene.name for scene in scenes] for name, scenes in few.items()
    }
    assert not set(corpus["train"]["speaker"]) & set(corpus["test_unseen_figure"]["speaker"])
