from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor
from speech_image_retrieval.retrieval.explanation import Explanation, StretchRelevance
from speech_image_retrieval.retrieval.explanation_picture import (
    NARROW,
    STRETCH_COLOURS,
    WIDE,
    Layout,
    draw_explanation,
    stack,
)
from speech_image_retrieval.retrieval.heat_map import heated
from speech_image_retrieval.retrieval.token_places import Box

GREY = (120, 120, 120)


def explanation(size: tuple[int, int] = (300, 200), stretches: int = 2, **changes) -> Explanation:
    everything = Box(0, 0, *size)
    values = {
        "picture": Image.new("RGB", size, GREY),
        "seen": everything,
        "cells": everything,
        "samples": np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32),
        "sampling_rate": 16_000,
        "edges": np.linspace(0, 2, 11),
        "speech": np.eye(10)[4] - 0.1,
        "image": np.eye(4),
        "stretches": tuple(StretchRelevance(0.5 * n, 0.5 * n + 0.4, np.eye(4)) for n in range(stretches)),
        "matching_score": 1.5,
        "coarse_score": 0.5,
        "title": "a red circle",
        "caption": "a picture",
    }
    return Explanation(**{**values, **changes})


def changed(picture: Image.Image) -> np.ndarray:
    """(height, width) bool: where it is visibly not the plain grey."""
    return (np.abs(np.asarray(picture).astype(int) - GREY) > 3).any(axis=2)


def test_heat_lies_over_its_cell_alone_and_is_hottest_in_its_middle():
    cells = np.zeros((3, 4))
    cells[1, 2] = 5.0
    picture = Image.new("RGB", (400, 300), GREY)
    whole = Box(0, 0, 400, 300)
    hot = heated(picture, cells, whole, whole)
    rows, columns = changed(hot).nonzero()
    assert (columns.mean(), rows.mean()) == pytest.approx((249.5, 149.5), abs=1)
    assert columns.min() > 99 and columns.max() < 400 and rows.min() > 0 and rows.max() < 299
    green = np.asarray(hot)[..., 1]  # less and less from yellow to red
    assert green[150, 250] < green[150, 205] < green[10, 210]


def test_cells_that_reach_beyond_the_picture_keep_their_places():
    cells = np.zeros((6, 6))
    cells[2, 3] = 1.0
    picture = Image.new("RGB", (96, 96), GREY)
    rows, columns = changed(heated(picture, cells, Box(-8, -8, 88, 88), Box(0, 0, 96, 96))).nonzero()
    assert (columns.mean(), rows.mean()) == pytest.approx((47.5, 31.5), abs=1)


@pytest.mark.parametrize("seen", [Box(50, 0, 250, 200), Box(-50, -100, 350, 300)])
def test_what_was_not_seen_is_paled(seen: Box):
    shown = np.asarray(heated(Image.new("RGB", (300, 200), GREY), np.zeros((2, 2)), seen, seen))
    inside = np.zeros((200, 300), dtype=bool)
    inside[:, max(0, round(seen.left)) : round(seen.right)] = True
    assert (shown[inside] == GREY).all()
    assert (shown[~inside] > 200).all()


def test_what_speaks_against_is_cold():
    whole = Box(0, 0, 40, 40)
    assert not changed(heated(Image.new("RGB", (40, 40), GREY), -np.eye(4), whole, whole)).any()


@pytest.mark.parametrize("size", [(300, 200), (96, 96), (200, 900), (4000, 300), (1, 1)])
@pytest.mark.parametrize("stretches", [0, 1, 4])
@pytest.mark.parametrize(("layout", "highest"), [(WIDE, 1300), (NARROW, 2300)])
def test_nothing_lies_outside_and_each_stretch_has_its_colour(
    size: tuple[int, int], stretches: int, layout: Layout, highest: int
):
    long = "a very long description of it all " * 20
    sheet = draw_explanation(explanation(size, stretches, title=long, caption=long), layout)
    assert sheet.mode == "RGB" and sheet.width == layout.width and sheet.height < highest
    pixels = np.asarray(sheet)
    assert all((part == 255).all() for part in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]))
    drawn = [(pixels == ImageColor.getrgb(colour)).all(axis=2).any() for colour in STRETCH_COLOURS]
    assert drawn == [number < stretches for number in range(4)]


def test_a_stretch_is_marked_at_its_time():
    sheet = draw_explanation(explanation(stretches=1))
    colour = (np.asarray(sheet) == ImageColor.getrgb(STRETCH_COLOURS[0])).all(axis=2)
    widths = colour.sum(axis=1)
    mark = colour[int(np.flatnonzero(widths > 150)[0])].nonzero()[0]
    inner = WIDE.width - 64
    assert (mark[0], mark[-1]) == pytest.approx((32, 32 + inner * 0.2), abs=2)


@pytest.mark.parametrize("samples", [1, 800, 16_000 * 700])
def test_recordings_of_any_length_are_drawn(samples: int):
    seconds = max(samples / 16_000, 0.25)
    edges = np.linspace(0, seconds, 11)
    drawn = draw_explanation(explanation(samples=np.zeros(samples, np.float32), edges=edges))
    assert drawn.width == WIDE.width


def test_a_caption_is_shown_if_it_says_anything():
    captions = ("a picture", "", "a red circle")  # the last is the title again
    named, unnamed, same = (draw_explanation(explanation(caption=caption)) for caption in captions)
    assert unnamed.height == same.height < named.height


def test_explanations_are_stacked():
    parts = [draw_explanation(explanation(stretches=number)) for number in (0, 2)]
    stacked = stack(parts)
    assert stacked.size == (WIDE.width, sum(part.height for part in parts))
    top = stacked.crop((0, 0, *parts[0].size))
    assert top.tobytes() == parts[0].tobytes()
