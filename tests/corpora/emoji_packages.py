"""A small `node_modules` whose files lie and are named as in the real packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from speech_image_retrieval.corpora.emoji_artwork import PACKAGES, STYLES

CORNERS = {
    "google": (255, 0, 0),
    "twitter": (0, 255, 0),
    "apple": (255, 255, 0),
    "facebook": (255, 0, 255),
    "openmoji": (0, 0, 255),
    "fluent": (0, 0, 0),
}
"""The colour that tells a style's pictures, at the left of each; the right half is transparent."""


class Emoji(NamedTuple):
    """`files` are its file names for Google, the other emoji-datasource packages, OpenMoji and Fluent, without suffix;
    None where a style lacks it. Those with the same `looks` have the same picture in OpenMoji.
    """

    label: str
    hexcode: str
    files: tuple[str | None, ...]
    tags: tuple[str, ...] = ()
    looks: str | None = None


def same_name(code: str) -> tuple[str, ...]:
    return (code, code, code.upper(), code)


EMOJI = (
    Emoji("grinning face", "1F600", same_name("1f600"), ("cheerful", "face", "omg", ":)")),
    Emoji("red heart", "2764", ("2764-fe0f", "2764-fe0f", "2764", "2764-fe0f"), ("love",)),
    Emoji("keycap: #", "0023-FE0F-20E3", same_name("0023-fe0f-20e3"), ("#", "hash", "key")),
    Emoji("OK hand", "1F44C", same_name("1f44c")),
    Emoji("piñata", "1FA85", same_name("1fa85"), ("candy", "fiesta", "piñata")),
    Emoji("O button (blood type)", "1F17E", ("1f17e-fe0f", "1f17e-fe0f", "1F17E", "1f17e-fe0f"), ("blood",)),
    Emoji("man farmer", "1F468-200D-1F33E", same_name("1f468-200d-1f33e"), looks="farmer"),
    Emoji("farmer", "1F9D1-200D-1F33E", same_name("1f9d1-200d-1f33e"), ("gardener",), looks="farmer"),
    Emoji("snowman", "2603", ("2603-fe0f", "2603-fe0f", "2603", "2603-fe0f"), ("cold",)),
    Emoji("whale", "1F40B", same_name("1f40b"), ("ocean",)),
    Emoji("crab", "1F980", same_name("1f980"), ("zodiac",)),
    Emoji("fog", "1F32B", ("1f32b-fe0f", "1f32b-fe0f", "1F32B", "1f32b-fe0f"), ("cloud",)),
    Emoji("mechanical arm", "1F9BE", same_name("1f9be"), ("robot",)),
    Emoji("lime", "1F34B-200D-1F7E9", (*same_name("1f34b-200d-1f7e9")[:3], None), ("fruit",)),
    Emoji("flag: France", "1F1EB-1F1F7", same_name("1f1eb-1f1f7"), ("FR",)),
)


def write_packages(prefix: Path, emoji: tuple[Emoji, ...] = EMOJI) -> Path:
    """Write `node_modules` under `prefix`, which is returned."""
    root = prefix / "node_modules"
    for name, version in PACKAGES.items():
        (root / name).mkdir(parents=True)
        (root / name / "package.json").write_text(json.dumps({"name": name, "version": version}), encoding="utf-8")
    names = root / "emojibase-data" / "en" / "data.json"
    names.parent.mkdir()
    entries = [{"label": one.label, "hexcode": one.hexcode, "tags": list(one.tags)} for one in emoji]
    names.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    shades: dict[str, int] = {}
    for one in emoji:
        shade = shades.setdefault(one.hexcode, 250 - 10 * len(shades))
        alike = shades.setdefault(one.looks or one.hexcode, shade)
        files = (one.files[0], *3 * one.files[1:2], *one.files[2:])
        for (style, pattern), file in zip(STYLES.items(), files, strict=True):
            path = root / pattern.replace("*", str(file))
            path.parent.mkdir(parents=True, exist_ok=True)
            if file:
                draw(path, CORNERS[style], (40, alike if style == "openmoji" else shade, 40))
    # A variant in a skin tone, which is no entry of its own.
    draw(root / STYLES["google"].replace("*", "1f44c-1f3fb"), CORNERS["google"], (1, 2, 3))
    return prefix


def draw(path: Path, left: tuple[int, int, int], middle: tuple[int, int, int]) -> None:
    if path.suffix == ".svg":
        rectangles = "".join(
            f'<rect x="{x}" width="18" height="72" fill="rgb{colour}"/>' for x, colour in ((0, left), (18, middle))
        )
        path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">{rectangles}</svg>')
        return
    side = 256 if path.suffix == ".webp" else 64
    picture = Image.new("RGBA", (side, side), (9, 9, 9, 0))
    picture.paste((*left, 255), (0, 0, side // 4, side))
    picture.paste((*middle, 255), (side // 4, 0, side // 2, side))
    picture.save(path, lossless=True)
