"""A picture of an explanation: what counts in the picture, and which stretch of the speech made it count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from .contact_sheet import BACKGROUND, FADED, GAP, INK, LINE_COLOUR, MARGIN, waveform_peaks, wrap
from .explanation import Explanation, StretchRelevance
from .heat_map import heated
from .token_places import Box

WIDTH = 900
INNER = WIDTH - 2 * MARGIN
HALF = (INNER - GAP) // 2
TALLEST = 460
WAVE = 130
AXIS = 34
STRETCHES = 4
SMALL = (INNER - (STRETCHES - 1) * GAP) // STRETCHES
NOTE = 34
LABEL = 44
BADGE = 15
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
MOST_TICKS = 12

COLD, HOT = "#c6ccd8", "#c1121f"
STRETCH_COLOURS = ("#2f6fde", "#15924f", "#a23fb0", "#b86e00")


def draw_explanation(explanation: Explanation) -> Image.Image:
    """Draw the picture, plain and under its heat map, the waveform coloured by relevance over seconds, and below up to
    four stretches of the speech that the match rests on most, each with what of the picture it made count.

    Each heat map is scaled to its own hottest place. What the model did not see of the picture is paled.

    Returns:
        An RGB picture on white, 900 pixels wide.
    """
    stretches = explanation.stretches
    large, small = _contained(explanation.picture, HALF), _contained(explanation.picture, SMALL)
    lines = _heading(explanation)
    pictures = MARGIN + sum(step for *_, step in lines) + GAP // 2
    wave = pictures + large.height + GAP + 2 * BADGE
    note = wave + WAVE + AXIS + GAP
    below = note + NOTE
    sheet = Image.new("RGB", (WIDTH, below + LABEL + small.height + MARGIN if stretches else note), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for text, font, colour, step in lines:
        draw.text((MARGIN, top), text, font=font, fill=colour)
        top += step
    for left, shown in ((MARGIN, large), (WIDTH - MARGIN - HALF, _heated(large, explanation, explanation.image))):
        sheet.paste(shown, (left + (HALF - shown.width) // 2, pictures))
    _draw_wave(draw, explanation, wave)
    if stretches:
        said = "What counts more with each stretch of the speech than without it"
        draw.text((MARGIN, note), said, font=ImageFont.load_default(18), fill=FADED)
    for number, stretch in enumerate(stretches):
        left = MARGIN + number * (SMALL + GAP)
        shown = _heated(small, explanation, stretch.image)
        _draw_label(draw, number, stretch, left, below)
        place = (left + (SMALL - shown.width) // 2, below + LABEL)
        sheet.paste(shown, place)
        frame = [place[0] - 3, place[1] - 3, place[0] + shown.width + 2, place[1] + shown.height + 2]
        draw.rectangle(frame, outline=STRETCH_COLOURS[number], width=3)
    return sheet


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Explanations below each other."""
    stacked = Image.new("RGB", (WIDTH, sum(picture.height for picture in pictures)), BACKGROUND)
    top = 0
    for picture in pictures:
        stacked.paste(picture, (0, top))
        if top:
            ImageDraw.Draw(stacked).line([(MARGIN, top), (WIDTH - MARGIN, top)], fill=LINE_COLOUR, width=2)
        top += picture.height
    return stacked


def _contained(picture: Image.Image, width: int) -> Image.Image:
    """The picture as large as this width and its share of the height allow."""
    return ImageOps.contain(picture, (width, TALLEST * width // HALF), Image.Resampling.LANCZOS)


def _heated(shown: Image.Image, explanation: Explanation, relevance: np.ndarray) -> Image.Image:
    seen, cells = (_on(shown, box, explanation.picture) for box in (explanation.seen, explanation.cells))
    return heated(shown, relevance, cells, seen)


def _on(shown: Image.Image, box: Box, picture: Image.Image) -> Box:
    """A box of a picture on the same picture in another size."""
    across, down = shown.width / picture.width, shown.height / picture.height
    return Box(box.left * across, box.top * down, box.right * across, box.bottom * down)


def _heading(explanation: Explanation) -> list[tuple[str, ImageFont.FreeTypeFont, str, int]]:
    """Lines of text with font, colour and height."""
    large, small = ImageFont.load_default(28), ImageFont.load_default(18)
    scores = f"match {explanation.matching_score:+.2f}    similarity {explanation.coarse_score:.3f}"
    lines = [(line, large, INK, 36) for line in wrap(explanation.title or "A recording", large, INNER, 2)]
    if explanation.caption not in ("", explanation.title):
        lines += [(line, small, FADED, 26) for line in wrap(explanation.caption, small, INNER, 2)]
    return [*lines, (scores, small, INK, 26)]


def _draw_wave(draw: ImageDraw.ImageDraw, explanation: Explanation, top: int) -> None:
    duration = len(explanation.samples) / explanation.sampling_rate
    bottom, middle = top + WAVE, top + WAVE / 2

    def x(second: float) -> float:
        return MARGIN + INNER * min(second / duration, 1)

    for number, stretch in enumerate(explanation.stretches):
        start, end = x(stretch.start), x(stretch.end)
        colour = STRETCH_COLOURS[number]
        draw.rectangle([start, top, end, bottom], fill=_mixed(BACKGROUND, colour, 0.12))
        draw.rectangle([start, bottom - 3, end, bottom], fill=colour)
        _draw_badge(draw, number, (start + end) / 2, top - BADGE)
    columns = INNER // 3
    seconds = (np.arange(columns) + 0.5) * duration / columns
    density = explanation.speech.clip(0) / np.diff(explanation.edges)
    token = (np.searchsorted(explanation.edges, seconds, side="right") - 1).clip(0, len(density) - 1)
    heat = density[token] / max(float(density.max()), np.finfo(np.float32).tiny)
    for column, peak in enumerate(waveform_peaks(explanation.samples, columns)):
        left, half = MARGIN + 3 * column, max(0.5, peak * (WAVE / 2 - 8))
        draw.rectangle([left, middle - half, left + 1, middle + half], fill=_mixed(COLD, HOT, float(heat[column])))
    _draw_axis(draw, duration, bottom)


def _draw_axis(draw: ImageDraw.ImageDraw, duration: float, top: int) -> None:
    font = ImageFont.load_default(16)
    step = next((tick for tick in TICKS if duration / tick <= MOST_TICKS), TICKS[-1])
    draw.line([(MARGIN, top), (WIDTH - MARGIN, top)], fill=LINE_COLOUR)
    for number in range(int(duration / step + 1e-6) + 1):
        x = MARGIN + INNER * number * step / duration
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
