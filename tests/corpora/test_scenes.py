from __future__ import annotations

import io
import itertools
import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from speech_image_retrieval.corpora.scenes import (
    COLOURS,
    SHAPES,
    SIDE,
    Figure,
    Scene,
    all_scenes,
    describe,
    draw,
    png,
)

FIGURES = st.builds(Figure, st.sampled_from(sorted(COLOURS)), st.sampled_from(SHAPES))
SCENES = st.sampled_from(all_scenes())


def _parse(sentence: str) -> Scene:
    """The scene that a sentence describes, read word by word."""
    words = [word for word in sentence.split() if word not in {"a", "an", "the", "there", "is", "to", "of"}]
    colour, shape, relation, other_colour, other_shape = words
    subject, other = Figure(colour, shape), Figure(other_colour, other_shape)
    return {
        "above": Scene(subject, other, "vertical"),
        "below": Scene(other, subject, "vertical"),
        "left": Scene(subject, other, "horizontal"),
        "right": Scene(other, subject, "horizontal"),
    }[relation]


def test_every_scene_is_there_once():
    scenes = all_scenes()
    assert len(scenes) == 64 * 63 * 2
    assert len(set(scenes)) == len({scene.name for scene in scenes}) == len(scenes)
    assert all(scene.first != scene.second for scene in scenes)


@settings(deadline=None)
@given(SCENES, st.booleans(), st.integers(0, 1000))
def test_both_forms_of_a_sentence_describe_the_scene(scene: Scene, converse: bool, seed: int):
    sentence = describe(scene, converse=converse, rng=Random(seed))
    assert _parse(sentence) == scene
    assert (("below" in sentence) or ("right" in sentence)) == converse


@settings(deadline=None)
@given(SCENES, st.booleans(), st.integers(0, 1000))
def test_articles_fit_the_words_after_them(scene: Scene, converse: bool, seed: int):
    words = describe(scene, converse=converse, rng=Random(seed)).split()
    for article, word in itertools.pairwise(words):
        if article in {"a", "an"}:
            assert (article == "an") == (word == "orange")


def test_every_opening_is_used():
    scene = all_scenes()[0]
    sentences = [describe(scene, converse=False, rng=Random(seed)) for seed in range(100)]
    assert {sentence.split()[0] for sentence in sentences} == {"a", "the", "there"}


def _distance(pixels: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.linalg.norm(pixels - colour, axis=-1)


def _centroids(scene: Scene, pixels: np.ndarray) -> list[np.ndarray]:
    """Centroid (x, y) of each figure's pixels, which are nearer to its colour than to the other's or the ground."""
    palette = np.array([COLOURS[scene.first.colour], COLOURS[scene.second.colour], pixels[0, 0]])
    nearest = np.argmin([_distance(pixels, colour) for colour in palette], axis=0)
    found = [np.argwhere(nearest == index) for index in range(2)]
    assert min(len(points) for points in found) > 60
    return [points.mean(axis=0)[::-1] for points in found]


@settings(max_examples=150, deadline=None)
@given(SCENES.filter(lambda scene: scene.first.colour != scene.second.colour), st.integers(0, 10_000))
def test_figures_are_where_the_scene_says_and_wholly_in_the_picture(scene: Scene, seed: int):
    pixels = np.asarray(draw(scene, Random(seed)), dtype=float)
    (x1, y1), (x2, y2) = _centroids(scene, pixels)
    along, across = (y2 - y1, x2 - x1) if scene.direction == "vertical" else (x2 - x1, y2 - y1)
    assert along > 25
    assert along > 1.5 * abs(across)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == pixels[0, 0]).all()


@settings(max_examples=100, deadline=None)
@given(FIGURES, st.integers(0, 10_000))
def test_figures_stand_out_from_the_background(figure: Figure, seed: int):
    pixels = np.asarray(draw(Scene(figure, Figure("red", "circle"), "vertical"), Random(seed)), dtype=float)
    upper = pixels[: SIDE // 2]
    assert (_distance(upper, pixels[0, 0]) > 35).sum() > 60


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SHAPES, 2)))
def test_shapes_look_different(one: str, other: str):
    scenes = [Scene(Figure("red", shape), Figure("blue", "circle"), "vertical") for shape in (one, other)]
    pictures = [np.asarray(draw(scene, Random(3)), dtype=float) for scene in scenes]
    drawn = [_distance(pixels[: SIDE // 2], pixels[0, 0]) > 60 for pixels in pictures]
    assert np.logical_and(*drawn).sum() / np.logical_or(*drawn).sum() < 0.85


def test_colours_stay_apart_after_their_variation():
    # The tint moves each channel by at most 14, so two colours meet within 2 * 14 * sqrt(3).
    closest = min(math.dist(COLOURS[a], COLOURS[b]) for a, b in itertools.combinations(COLOURS, 2))
    assert closest > 2 * 14 * math.sqrt(3)


def test_edges_are_smooth():
    picture = draw(Scene(Figure("red", "circle"), Figure("black", "star"), "vertical"), Random(0))
    assert len(picture.getcolors(maxcolors=SIDE * SIDE)) > 20


def test_pictures_vary_with_the_seed_and_only_with_it():
    scene = all_scenes()[123]
    assert png(draw(scene, Random(1))) == png(draw(scene, Random(1)))
    assert len({png(draw(scene, Random(seed))) for seed in range(20)}) == 20


def test_png_keeps_the_pixels():
    picture = draw(all_scenes()[5], Random(0))
    with Image.open(io.BytesIO(png(picture))) as read:
        assert (read.format, read.mode, read.size) == ("PNG", "RGB", (SIDE, SIDE))
        assert read.tobytes() == picture.tobytes()


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="'hexagon' is none of the shapes"):
        draw(Scene(Figure("red", "hexagon"), Figure("red", "star"), "vertical"), Random(0))
