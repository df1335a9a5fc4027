"""Pictures of two coloured shapes beside or above each other, and the sentences that describe them."""

from __future__ import annotations

import colorsys
import io
import math
import re
from dataclasses import dataclass
from itertools import permutations, product
from random import Random

from PIL import Image, ImageDraw

SIDE = 96
_OVERSAMPLING = 4

COLOURS = {
    "red": (214, 36, 40),
    "green": (38, 150, 62),
    "blue": (36, 78, 208),
    "yellow": (250, 222, 38),
    "orange": (246, 134, 22),
    "purple": (136, 48, 168),
    "black": (24, 24, 26),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
RELATIONS = {"vertical": ("above", "below"), "horizontal": ("to the left of", "to the right of")}

Point = tuple[float, float]

_COLOUR, _SHAPE = "|".join(COLOURS), "|".join(SHAPES)
_RELATION = "|".join(words[0].replace(" ", "-") for words in RELATIONS.values())
_NAME = re.compile(
    f"(?P<colour>{_COLOUR})-(?P<shape>{_SHAPE})-(?P<relation>{_RELATION})-(?P<colour_2>{_COLOUR})-(?P<shape_2>{_SHAPE})"
)


@dataclass(frozen=True)
class Figure:
    """One coloured shape."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Two figures. `first` is the upper one (vertical) or the left one (horizontal), so each scene has one form."""

    first: Figure
    second: Figure
    direction: str

    @property
    def name(self) -> str:
        relation = RELATIONS[self.direction][0]
        return f"{self.first} {relation} {self.second}".replace(" ", "-")

    @classmethod
    def from_name(cls, name: str) -> Scene | None:
        """The scene of that :attr:`name`; None if it is the name of none."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        direction = next(one for one, words in RELATIONS.items() if words[0].replace(" ", "-") == match["relation"])
        return cls(Figure(match["colour"], match["shape"]), Figure(match["colour_2"], match["shape_2"]), direction)

    @property
    def words(self) -> frozenset[str]:
        return frozenset({self.first.colour, self.first.shape, self.second.colour, self.second.shape, self.direction})


def all_scenes() -> list[Scene]:
    """Every scene of two different figures, 8,064 of them."""
    figures = [Figure(colour, shape) for colour, shape in product(COLOURS, SHAPES)]
    return [Scene(first, second, d) for (first, second), d in product(permutations(figures, 2), RELATIONS)]


def describe(scene: Scene, *, converse: bool, rng: Random) -> str:
    """A sentence about where the first figure is ("... above ..."), or as `converse` the second ("... below ...")."""
    relation = RELATIONS[scene.direction][converse]
    subject, other = (scene.second, scene.first) if converse else (scene.first, scene.second)
    opening = rng.choices(("", "the", "there is"), weights=(6, 3, 1))[0]
    if opening == "the":
        return f"the {subject} {relation} the {other}"
    return f"{opening} {_indefinite(subject)} {relation} {_indefinite(other)}".strip()


def draw(scene: Scene, rng: Random) -> Image.Image:
    """The scene as an RGB picture of 96 x 96 pixels; place, size, rotation, tints and background vary with `rng`."""
    size = SIDE * _OVERSAMPLING
    picture = Image.new("RGB", (size, size), _background(rng))
    for figure, centre in zip((scene.first, scene.second), _centres(scene.direction, rng), strict=True):
        mask = _mask(figure.shape, centre, radius=rng.uniform(13, 18), angle=rng.uniform(-0.22, 0.22))
        picture.paste(_tinted(figure.colour, rng), mask=mask)
    return picture.reduce(_OVERSAMPLING)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _indefinite(figure: Figure) -> str:
    return f"{'an' if figure.colour[0] in 'aeiou' else 'a'} {figure}"


def _background(rng: Random) -> tuple[int, ...]:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.03, 0.16), rng.uniform(0.68, 0.8))
    return tuple(round(255 * channel) for channel in (red, green, blue))


def _tinted(colour: str, rng: Random) -> tuple[int, ...]:
    return tuple(min(max(channel + rng.randint(-14, 14), 0), 255) for channel in COLOURS[colour])


def _centres(direction: str, rng: Random) -> list[Point]:
    """Centres in pixels: at least 36 apart along the direction of the relation, at most 16 across it."""
    along = (rng.uniform(22, 30), rng.uniform(66, 74))
    across = (rng.uniform(40, 56), rng.uniform(40, 56))
    centres = list(zip(across, along, strict=True))
    return centres if direction == "vertical" else [(y, x) for x, y in centres]


def _mask(shape: str, centre: Point, radius: float, angle: float) -> Image.Image:
    mask = Image.new("L", (SIDE * _OVERSAMPLING, SIDE * _OVERSAMPLING))
    cosine, sine = math.cos(angle) * radius, math.sin(angle) * radius
    for outline, inside in _outlines(shape):
        points = [(centre[0] + x * cosine - y * sine, centre[1] + x * sine + y * cosine) for x, y in outline]
        ImageDraw.Draw(mask).polygon([(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in points], fill=inside)
    return mask


def _outlines(shape: str) -> list[tuple[list[Point], int]]:
    """Polygons within the unit circle, y downwards, each with what it fills the mask with."""
    match shape:
        case "circle":
            return [(_regular(64, 0.9), 255)]
        case "ring":
            return [(_regular(64, 0.95), 255), (_regular(64, 0.55), 0)]
        case "square":
            return [([(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)], 255)]
        case "triangle":
            return [(_regular(3), 255)]
        case "diamond":
            return [([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)], 255)]
        case "star":
            return [([p for pair in zip(_regular(5), _regular(5, 0.42, 0.5), strict=True) for p in pair], 255)]
        case "cross":
            arm, end = 0.3, 0.92
            corners = [(arm, -end), (arm, -arm), (end, -arm)]
            quarter = [(-y, x) for x, y in corners]
            half = corners + quarter
            return [(half + [(-x, -y) for x, y in half], 255)]
        case "heart":
            return [([_heart(2 * math.pi * step / 64) for step in range(64)], 255)]
    raise ValueError(f"{shape!r} is none of the shapes {', '.join(SHAPES)}")


def _regular(corners: int, radius: float = 1.0, turn: float = 0.0) -> list[Point]:
    angles = [2 * math.pi * (corner + turn) / corners for corner in range(corners)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for angle in angles]


def _heart(t: float) -> Point:
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return x / 17, -(y + 2.5) / 17
