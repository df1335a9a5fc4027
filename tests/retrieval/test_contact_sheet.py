from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageFont
from speech_image_retrieval.retrieval.contact_sheet import (
    RIGHT,
    THUMBNAIL,
    WAVE,
    SheetQuery,
    SheetResult,
    draw_contact_sheet,
    waveform_image,
    waveform_peaks,
    wrap,
)

FONT = ImageFont.load_default(13)
MAGENTA = "#ff00ff"


def result(size: tuple[int, int] = (96, 96), **fields) -> SheetResult:
    return SheetResult(Image.new("RGB", size, MAGENTA), "a caption", coarse_score=0.5, coarse_rank=2, **fields)


def query(*results: SheetResult, samples: np.ndarray | None = None) -> SheetQuery:
    return SheetQuery("a red circle", np.ones(1600) if samples is None else samples, 16_000, results)


def where(sheet: Image.Image, colour: str) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of the pixels of exactly this colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == ImageColor.getrgb(colour)).all(axis=2))
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


def test_pictures_keep_their_proportions_and_fill_the_place():
    for size, shown in [((96, 96), (1.0, 1.0)), ((300, 100), (1.0, 1 / 3)), ((500, 1000), (0.5, 1.0))]:
        left, top, right, bottom = where(draw_contact_sheet([query(result(size))]), MAGENTA)
        assert (right - left, bottom - top) == pytest.approx((shown[0] * THUMBNAIL, shown[1] * THUMBNAIL), abs=2)


def test_recordings_that_a_picture_found():
    asked = SheetQuery("dog.png", Image.new("RGB", (100, 300), "#00ffff"), 16_000, [])
    found = SheetResult(waveform_image(np.ones(1600)), "woof", coarse_score=0.5, coarse_rank=1)
    sheet = draw_contact_sheet([replace(asked, results=[found])])
    left, top, right, bottom = where(sheet, "#00ffff")
    assert (right - left) / (bottom - top) == pytest.approx(1 / 3, abs=0.02) and bottom - top > 100
    assert where(sheet, WAVE)[0] > right


def test_only_the_right_picture_is_framed_all_round():
    assert where(draw_contact_sheet([query(result(), result())]), RIGHT) is None
    sheet = draw_contact_sheet([query(result(), result(right=True))])
    frame, alone = where(sheet, RIGHT), where(sheet, MAGENTA)
    assert frame[2] >= alone[2] and frame[3] > alone[3]
    assert frame[0] > alone[0] + THUMBNAIL


def test_nothing_lies_outside_the_sheet_and_rows_do_not_overlap():
    one = draw_contact_sheet([query(*[result(right=True)] * 5)])
    three = draw_contact_sheet([query(*[result(right=True)] * 5)] * 3)
    assert one.mode == "RGB"
    assert three.width == one.width
    for sheet in (one, three):
        pixels = np.asarray(sheet)
        border = [pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]]
        assert all((part == 255).all() for part in border)
    shown = [(np.asarray(sheet) == ImageColor.getrgb(MAGENTA)).all(axis=2).sum() for sheet in (one, three)]
    whole = (THUMBNAIL - 2) ** 2  # the outline lies on the picture's edge
    assert shown == [5 * whole, 15 * whole]


def test_a_result_that_was_not_reranked_shows_no_matching_score():
    plain, reranked = (draw_contact_sheet([query(result(matching_score=score))]) for score in (None, 0.0))
    assert plain.tobytes() != reranked.tobytes()


def test_a_query_without_results_is_drawn():
    assert where(draw_contact_sheet([query()]), WAVE) is not None


def test_an_empty_sheet_is_refused():
    with pytest.raises(ValueError, match="at least one query"):
        draw_contact_sheet([])


def test_peaks_follow_the_sound():
    samples = np.concatenate([np.zeros(800), np.full(800, -0.25), np.full(800, 0.5)])
    np.testing.assert_allclose(waveform_peaks(samples, 6), [0, 0, 0.5, 0.5, 1, 1])


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(1000), np.zeros(3, dtype=np.float32)])
def test_silence_is_flat(samples: np.ndarray):
    np.testing.assert_array_equal(waveform_peaks(samples, 50), np.zeros(50))


def test_a_clip_of_fewer_samples_than_columns_is_stretched():
    np.testing.assert_allclose(waveform_peaks(np.array([0.5, 1.0]), 4), [0.5, 0.5, 1, 1])


@settings(deadline=None)
@given(text=st.text(alphabet="ab mW", max_size=80), width=st.integers(30, 200), lines=st.integers(1, 4))
def test_wrapped_text_fits_and_loses_nothing_without_an_ellipsis(text: str, width: int, lines: int):
    wrapped = wrap(text, FONT, width, lines)
    assert len(wrapped) <= lines
    assert all(FONT.getlength(line) <= width for line in wrapped)
    if not any(line.endswith("…") for line in wrapped):
        assert " ".join(wrapped).split() == text.split()
