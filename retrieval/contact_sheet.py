"""A picture of search results: a row for each query, with what it found: pictures, or recordings as waveforms."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

THUMBNAIL = 168
MARGIN = 32
GAP = 20
QUERY_WIDTH = 300
HEADER = 26
CAPTION_LINES = 2
LINE = 18
ROW = HEADER + THUMBNAIL + 12 + LINE * (2 + CAPTION_LINES)

BACKGROUND, CARD, LINE_COLOUR = "#ffffff", "#f5f6f8", "#dfe2e8"
INK, FADED, WAVE, RIGHT = "#1d2330", "#6b7385", "#4263c7", "#1f9d57"


@dataclass(frozen=True)
class SheetResult:
    """What a query found; results are given in their final order.

    Attributes:
        image: a picture, or a recording as :func:`waveform_image`.
        caption: its text or name.
        coarse_rank: from 1. matching_score: None if it was not re-ranked.
        right: whether it is the picture that the query describes, which frames it.
    """

    image: Image.Image
    caption: str
    coarse_score: float
    coarse_rank: int
    matching_score: float | None = None
    right: bool = False


@dataclass(frozen=True)
class SheetQuery:
    """A query and what it found.

    Attributes:
        title: the spoken text, or the file's name where it is not known.
        asked: (samples,) mono waveform at `sampling_rate` Hz, or a picture.
        note: a smaller line below, for instance the speaker.
    """

    title: str
    asked: np.ndarray | Image.Image
    sampling_rate: int
    results: Sequence[SheetResult]
    note: str = ""


def draw_contact_sheet(queries: Sequence[SheetQuery]) -> Image.Image:
    """Draw one row for each query: what was said and its waveform on the left, its results by rank on the right.

    Returns:
        An RGB picture on white, as wide as the longest row of results needs.

    Raises:
        ValueError: there is no query.
    """
    if not queries:
        raise ValueError("a contact sheet needs at least one query")
    columns = max(len(query.results) for query in queries)
    width = 2 * MARGIN + QUERY_WIDTH + columns * (THUMBNAIL + GAP)
    sheet = Image.new("RGB", (width, MARGIN + len(queries) * (ROW + MARGIN)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, query in enumerate(queries):
        top = MARGIN + number * (ROW + MARGIN)
        if number:
            draw.line([(MARGIN, top - MARGIN // 2), (width - MARGIN, top - MARGIN // 2)], fill=LINE_COLOUR)
        _draw_query(sheet, draw, query, MARGIN, top)
        for rank, result in enumerate(query.results, start=1):
            left = MARGIN + QUERY_WIDTH + GAP + (rank - 1) * (THUMBNAIL + GAP)
            _draw_result(sheet, draw, result, rank, left, top)
    return sheet


def waveform_peaks(samples: np.ndarray, columns: int) -> np.ndarray:
    """The largest magnitude in each of `columns` equal stretches, (columns,), scaled so that the loudest is 1."""
    if not len(samples):
        return np.zeros(columns)
    edges = np.linspace(0, len(samples), columns + 1)
    starts = np.minimum(edges[:-1].astype(int), len(samples) - 1)
    ends = np.maximum(np.ceil(edges[1:]).astype(int), starts + 1)
    peaks = np.array([np.abs(samples[start:end]).max() for start, end in zip(starts, ends, strict=True)])
    return peaks / max(peaks.max(), np.finfo(np.float32).tiny)


def waveform_image(samples: np.ndarray) -> Image.Image:
    """A recording, (samples,), as a result of a sheet."""
    image = Image.new("RGB", (THUMBNAIL, THUMBNAIL), CARD)
    _draw_waveform(ImageDraw.Draw(image), samples, 8, 8, THUMBNAIL - 16, THUMBNAIL - 8)
    return image


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """Break text into at most `lines` lines of `width` pixels; what does not fit ends in an ellipsis."""
    wrapped, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            wrapped.append(line)
            line = word
        else:
            line = longer
    wrapped.append(line)
    shown = wrapped[: lines - 1] + ([" ".join(wrapped[lines - 1 :])] if len(wrapped) >= lines else [])
    return [_shorten(line, font, width) for line in shown]


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    too_many = bisect_right(range(len(text)), width, key=lambda count: font.getlength(f"{text[:count]}…"))
    return f"{text[: max(0, too_many - 1)].rstrip()}…"


def _draw_query(sheet: Image.Image, draw: ImageDraw.ImageDraw, query: SheetQuery, left: int, top: int) -> None:
    title, small = ImageFont.load_default(21), ImageFont.load_default(13)
    inner = QUERY_WIDTH - 2 * GAP
    draw.rounded_rectangle([left, top, left + QUERY_WIDTH, top + ROW], radius=10, fill=CARD)
    y = top + 18
    for line in wrap(query.title, title, inner, lines=4):
        draw.text((left + GAP, y), line, font=title, fill=INK)
        y += 28
    bottom = top + ROW - 14
    for line in reversed(wrap(query.note, small, inner, lines=2)):
        bottom -= LINE
        draw.text((left + GAP, bottom), line, font=small, fill=FADED)
    bottom -= LINE + 4
    if isinstance(query.asked, Image.Image):
        picture = ImageOps.contain(query.asked.convert("RGB"), (inner, bottom - y - 8), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + GAP, bottom - picture.height))
        return
    duration = f"{len(query.asked) / query.sampling_rate:.1f} s"
    draw.text((left + GAP, bottom), duration, font=small, fill=FADED)
    _draw_waveform(draw, query.asked, left + GAP, top + 140, inner, bottom - 10)


def _draw_waveform(
    draw: ImageDraw.ImageDraw, samples: np.ndarray, left: int, top: int, width: int, bottom: int
) -> None:
    middle, half = (top + bottom) / 2, (bottom - top) / 2
    for column, peak in enumerate(waveform_peaks(samples, width // 3)):
        x = left + 3 * column
        draw.rectangle([x, middle - max(0.5, peak * half), x + 1, middle + max(0.5, peak * half)], fill=WAVE)


def _draw_result(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, result: SheetResult, rank: int, left: int, top: int
) -> None:
    bold, small = ImageFont.load_default(16), ImageFont.load_default(13)
    colour = RIGHT if result.right else INK
    draw.text((left, top), f"{rank}", font=bold, fill=colour)
    moved = f"coarse rank {result.coarse_rank}" if result.matching_score is not None else "not re-ranked"
    draw.text((left + THUMBNAIL, top + 3), moved, font=small, fill=FADED, anchor="ra")
    box = [left, top + HEADER, left + THUMBNAIL - 1, top + HEADER + THUMBNAIL - 1]
    picture = ImageOps.contain(result.image.convert("RGB"), (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    draw.rectangle(box, fill=CARD)
    sheet.paste(picture, (left + (THUMBNAIL - picture.width) // 2, top + HEADER + (THUMBNAIL - picture.height) // 2))
    draw.rectangle(box, outline=LINE_COLOUR)
    if result.right:
        draw.rectangle([box[0] - 5, box[1] - 5, box[2] + 5, box[3] + 5], outline=RIGHT, width=4)
    y = top + HEADER + THUMBNAIL + 10
    for line in _scores(result):
        draw.text((left, y), line, font=small, fill=INK)
        y += LINE
    for line in wrap(result.caption, small, THUMBNAIL, CAPTION_LINES):
        draw.text((left, y), line, font=small, fill=FADED)
        y += LINE


def _scores(result: SheetResult) -> list[str]:
    coarse = f"similarity {result.coarse_score:.3f}"
    return [coarse] if result.matching_score is None else [f"match {result.matching_score:+.2f}", coarse]
