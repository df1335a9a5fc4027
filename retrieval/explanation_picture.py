"""A picture of an explanation: what counts in the picture, and which stretch of the speech made it count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from .contact_sheet import BACKGROUND, FADED, GAP, INK, LINE_COLOUR, MARGIN, waveform_peaks, wrap
from .explanation import Explanation, StretchRelevance
from .heat_map import heated
from .token_places import Box

TALLEST = 1.13  # height of a picture over the width that it has
WAVE = 130
AXIS = 34
LINE = 26
LABEL = 44
BADGE = 15
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
MOST_TICKS = 12
TICK_WIDTH = 36

COLD, HOT = "#c6ccd8", "#c1121f"
STRETCH_COLOURS = ("#2f6fde", "#15924f", "#a23fb0", "#b86e00")


class _Line(NamedTuple):
    text: str
    font: ImageFont.FreeTypeFont
    colour: str
    height: int


@dataclass(frozen=True)
class Layout:
    """How much of an explanation stands side by side.

    Attributes:
        width, margin: pixels, of the whole and of its border.
        pictures, stretches: how many of them are in a row.
    """

    width: int
    margin: int
    pictures: int
    stretches: int

    @property
    def inner(self) -> int:
        return self.width - 2 * self.margin

    def column(self, columns: int) -> int:
        """Width of each of so many columns."""
        return (self.inner - (columns - 1) * GAP) // columns


WIDE = Layout(width=900, margin=MARGIN, pictures=2, stretches=4)
NARROW = Layout(width=480, margin=16, pictures=1, stretches=2)  # to be read on a phone


def draw_explanation(explanation: Explanation, layout: Layout = WIDE) -> Image.Image:
    """Draw the picture, plain and under its heat map, the waveform coloured by relevance over seconds, and below up to
    four stretches of the speech that the match rests on most, each with what of the picture it made count.

    Each heat map is scaled to its own hottest place. What the model did not see of the picture is paled.

    Returns:
        An RGB picture on white, as wide as the layout.
    """
    wide, narrow = layout.column(layout.pictures), layout.column(layout.stretches)
    large, small = _contained(explanation.picture, wide), _contained(explanation.picture, narrow)
    heading, note = _heading(explanation, layout), _note(explanation, layout)
    below_heading = layout.margin + _height(heading) + GAP // 2
    picture_places = _places(layout, wide, large.height, layout.pictures, 2, below_heading)
    wave = picture_places[-1][1] + large.height + GAP + 2 * BADGE
    below_wave = wave + WAVE + AXIS + GAP
    below_note = below_wave + _height(note) + GAP // 2
    count = len(explanation.stretches)
    rows = _places(layout, narrow, LABEL + small.height, layout.stretches, count, below_note)
    height = rows[-1][1] + LABEL + small.height + layout.margin if rows else below_wave
    sheet = Image.new("RGB", (layout.width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _draw_lines(draw, heading, layout.margin, layout.margin)
    for (left, top), shown in zip(
        picture_places, (large, _heated(large, explanation, explanation.image)), strict=True
    ):
        sheet.paste(shown, (left + (wide - shown.width) // 2, top))
    _draw_wave(draw, explanation, layout, wave)
    _draw_lines(draw, note, layout.margin, below_wave)
    for number, (stretch, (left, top)) in enumerate(zip(explanation.stretches, rows, strict=True)):
        shown = _heated(small, explanation, stretch.image)
        _draw_label(draw, number, stretch, left, top)
        place = (left + (narrow - shown.width) // 2, top + LABEL)
        sheet.paste(shown, place)
        frame = [place[0] - 3, place[1] - 3, place[0] + shown.width + 2, place[1] + shown.height + 2]
        draw.rectangle(frame, outline=STRETCH_COLOURS[number], width=3)
    return sheet


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Explanations below each other, as wide as the widest."""
    width = max(picture.width for picture in pictures)
    stacked = Image.new("RGB", (width, sum(picture.height for picture in pictures)), BACKGROUND)
    top = 0
    for picture in pictures:
        stacked.paste(picture, (0, top))
        if top:
            ImageDraw.Draw(stacked).line([(MARGIN, top), (width - MARGIN, top)], fill=LINE_COLOUR, width=2)
        top += picture.height
    return stacked


def _contained(picture: Image.Image, width: int) -> Image.Image:
    """The picture as large as this width and its share of the height allow."""
    return ImageOps.contain(picture, (width, round(TALLEST * width)), Image.Resampling.LANCZOS)


def _places(layout: Layout, width: int, height: int, columns: int, count: int, top: int) -> list[tuple[int, int]]:
    """Left and top of boxes of one size, row by row."""
    return [
        (layout.margin + number % columns * (width + GAP), top + number // columns * (height + GAP))
        for number in range(count)
    ]


def _heated(shown: Image.Image, explanation: Explanation, relevance: np.ndarray) -> Image.Image:
    seen, cells = (_on(shown, box, explanation.picture) for box in (explanation.seen, explanation.cells))
    return heated(shown, relevance, cells, seen)


def _on(shown: Image.Image, box: Box, picture: Image.Image) -> Box:
    """A box of a picture on the same picture in another size."""
    across, down = shown.width / picture.width, shown.height / picture.height
    return Box(box.left * across, box.top * down, box.right * across, box.bottom * down)


def _heading(explanation: Explanation, layout: Layout) -> list[_Line]:
    large, small = ImageFont.load_default(28), ImageFont.load_default(18)
    scores = f"match {explanation.matching_score:+.2f}    similarity {explanation.coarse_score:.3f}"
    lines = [_Line(line, large, INK, 36) for line in wrap(explanation.title or "A recording", large, layout.inner, 2)]
    if explanation.caption not in ("", explanation.title):
        lines += [_Line(line, small, FADED, LINE) for line in wrap(explanation.caption, small, layout.inner, 2)]
    lines += [_Line(scores, small, INK, LINE)]
    legend = "Red: what counts most for the match, in the picture and in the speech"
    return lines + [_Line(line, small, FADED, LINE) for line in wrap(legend, small, layout.inner, 2)]


def _note(explanation: Explanation, layout: Layout) -> list[_Line]:
    """What the stretches below show, if there are any."""
    if not explanation.stretches:
        return []
    said, font = "What counts more with each stretch of the speech than without it", ImageFont.load_default(18)
    return [_Line(line, font, FADED, LINE) for line in wrap(said, font, layout.inner, 2)]


def _height(lines: Sequence[_Line]) -> int:
    return sum(line.height for line in lines)


def _draw_lines(draw: ImageDraw.ImageDraw, lines: Sequence[_Line], left: int, top: int) -> None:
    for line in lines:
        draw.text((left, top), line.text, font=line.font, fill=line.colour)
        top += line.height


def _draw_wave(draw: ImageDraw.ImageDraw, explanation: Explanation, layout: Layout, top: int) -> None:
    duration = len(explanation.samples) / explanation.sampling_rate
    bottom, middle = top + WAVE, top + WAVE / 2

    def x(second: float) -> float:
        return layout.margin + layout.inner * min(second / duration, 1)

    for number, stretch in enumerate(explanation.stretches):
        start, end = x(stretch.start), x(stretch.end)
        colour = STRETCH_COLOURS[number]
        draw.rectangle([start, top, end, bottom], fill=_mixed(BACKGROUND, colour, 0.12))
        draw.rectangle([start, bottom - 3, end, bottom], fill=colour)
        _draw_badge(draw, number, (start + end) / 2, top - BADGE)
    columns = layout.inner // 3
    seconds = (np.arange(columns) + 0.5) * duration / columns
    density = explanation.speech.clip(0) / np.diff(explanation.edges)
    token = (np.searchsorted(explanation.edges, seconds, side="right") - 1).clip(0, len(density) - 1)
    heat = density[token] / max(float(density.max()), np.finfo(np.float32).tiny)
    for column, peak in enumerate(waveform_peaks(explanation.samples, columns)):
        left, half = layout.margin + 3 * column, max(0.5, peak * (WAVE / 2 - 8))
        draw.rectangle([left, middle - half, left + 1, middle + half], fill=_mixed(COLD, HOT, float(heat[column])))
    _draw_axis(draw, duration, layout, bottom)


def _draw_axis(draw: ImageDraw.ImageDraw, duration: float, layout: Layout, top: int) -> None:
    font = ImageFont.load_default(16)
    most_ticks = min(MOST_TICKS, layout.inner // TICK_WIDTH)
    step = next((tick for tick in TICKS if duration / tick <= most_ticks), TICKS[-1])
    draw.line([(layout.margin, top), (layout.width - layout.margin, top)], fill=LINE_COLOUR)
    for number in range(int(duration / step + 1e-6) + 1):
        x = layout.margin + layout.inner * number * step / duration
        draw.line([(x, top), (x, top + 6)], fill=FADED)
        label = f"{number * step:g}" if number else "0 s"
        draw.text((x, top + 10), label, font=font, fill=FADED, anchor="ma" if number else "la")


def _draw_label(draw: ImageDraw.ImageDraw, number: int, stretch: StretchRelevance, left: int, top: int) -> None:
    _draw_badge(draw, number, left + BADGE, top + BADGE)
    text = f"{stretch.start:.2f} to {stretch.end:.2f} s"
    font = ImageFont.load_default(18)
    draw.text((left + 2 * BADGE + 10, top + BADGE), text, font=font, fill=INK, anchor="lm")


def _draw_badge(draw: ImageDraw.ImageDraw, number: int, x: float, y: float) -> None:
    draw.ellipse([x - BADGE, y - BADGE, x + BADGE, y + BADGE], fill=STRETCH_COLOURS[number])
    draw.text((x, y), f"{number + 1}", font=ImageFont.load_default(18), fill=BACKGROUND, anchor="mm")


def _mixed(cold: str, hot: str, share: float) -> tuple[int, ...]:
    pairs = zip(ImageColor.getrgb(cold), ImageColor.getrgb(hot), strict=True)
    return tuple(round(low + (high - low) * share) for low, high in pairs)
