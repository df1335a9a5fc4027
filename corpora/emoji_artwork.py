"""Emoji as artists of six houses drew them, with their names: what the npm packages hold, as concepts and pictures.

The artwork is under its makers' licences, which the packages state. Names and synonyms are Unicode's CLDR.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from datasets.utils import tqdm

from .schema import CorpusError
from .tuxpaint import render

LONGEST_SIDE = 128

PACKAGES = {
    "emojibase-data": "17.0.0",
    "emoji-datasource-apple": "16.0.0",
    "emoji-datasource-facebook": "16.0.0",
    "emoji-datasource-google": "16.0.0",
    "emoji-datasource-twitter": "16.0.0",
    "openmoji": "17.0.0",
    "@lobehub/fluent-emoji-3d": "1.1.0",
}

# Style to its pictures, each named by its code points.
STYLES = {
    "google": "emoji-datasource-google/img/google/64/*.png",
    "twitter": "emoji-datasource-twitter/img/twitter/64/*.png",
    "apple": "emoji-datasource-apple/img/apple/64/*.png",
    "facebook": "emoji-datasource-facebook/img/facebook/64/*.png",
    "openmoji": "openmoji/color/svg/*.svg",
    "fluent": "@lobehub/fluent-emoji-3d/assets/*.webp",
}

_NAMES = "emojibase-data/en/data.json"
_VARIATION_SELECTOR = "fe0f"
# Microsoft draws no flags of countries: in their place the Fluent package has Google's pictures.
_COUNTRY_FLAG = "flag: "

_SPELLED = {"AB", "ATM", "CL", "ID", "NG", "SOS", "VS", "ZZZ"}
_SAID = {"OK": "okay", "#": "hash", "*": "asterisk"}
_SYNONYM = re.compile(r"[a-z]['a-z -]+[a-z]")
_VOWEL = re.compile("[aeiouy]")
# Initials that synthesisers read as if they were words, and words that name nothing.
_CHAT = {"idk", "ily", "lmao", "omg", "omw", "rofl", "tmi", "ttyl", "xoxo", "yolo"}
_NO_SYNONYMS = {*_CHAT, "atm", "nyc", "pga", "sos", "ufo", "voip", "wlan", "i'm", "let's", "not", "you"}


class Concept(NamedTuple):
    """An emoji: its code points as `image_id`, and its name and synonyms as they are spoken."""

    image_id: str
    name: str
    synonyms: tuple[str, ...]


def find_packages(source: str | Path | None) -> Path:
    """The `node_modules` at or under `source` (default: the current folder), if all packages are there.

    Raises:
        CorpusError: some are missing or in another version; the message is how to install them.
    """
    start = Path(source or ".")
    prefix = start.parent if start.name == "node_modules" else start
    root = prefix / "node_modules"
    missing = [f"{name}@{version}" for name, version in PACKAGES.items() if _version(root / name) != version]
    if missing:
        command = shlex.join(["npm", "install", "--prefix", str(prefix), *missing])
        raise CorpusError(f"{root} lacks {len(missing)} of the emoji packages. Install them: {command}")
    return root


def find_pictures(root: Path) -> dict[str, dict[str, Path]]:
    """Style -> code points, as in :func:`code_points` -> picture file."""
    pictures: dict[str, dict[str, Path]] = {}
    for style, pattern in STYLES.items():
        pictures[style] = {}
        for path in sorted(root.glob(pattern)):
            pictures[style].setdefault(code_points(path.stem), path)
    return pictures


def code_points(name: str) -> str:
    """One form for the houses' file names: lower case, no leading zeros, no variation selectors."""
    return "-".join(part.lstrip("0") for part in name.lower().split("-") if part != _VARIATION_SELECTOR)


def read_concepts(root: Path, drawn: Mapping[str, Iterable[str]]) -> list[Concept]:
    """The emoji, without skin tones and flags of countries, that every style has `drawn`, in Unicode's order.

    Where two would be spoken alike, the first stays.
    """
    everywhere = set.intersection(*map(set, drawn.values()))
    concepts: dict[str, Concept] = {}
    for emoji in json.loads((root / _NAMES).read_text(encoding="utf-8")):
        image_id = code_points(emoji["hexcode"])
        if image_id in everywhere and not emoji["label"].startswith(_COUNTRY_FLAG):
            name = spoken_form(emoji["label"])
            concepts.setdefault(name, Concept(image_id, name, spoken_synonyms(name, emoji.get("tags", ()))))
    return list(concepts.values())


def spoken_form(name: str) -> str:
    """A name in plain letters, digits, hyphens and commas: `A button (blood type)` -> `A button, blood type`."""
    plain = unicodedata.normalize("NFKD", name.replace("’", "'")).replace(": ", ", ").replace(" (", ", ")
    kept = "".join(char for char in plain if char.isascii() and (char.isalnum() or char in " ,'-#*"))
    return " ".join(map(_spoken_word, kept.split()))


def spoken_synonyms(name: str, tags: Sequence[str]) -> tuple[str, ...]:
    """The tags that are words, in plain letters, and say something that the name does not."""
    plain = dict.fromkeys(spoken_form(tag) for tag in tags)
    said = set(re.findall(r"\w+", name.lower()))
    return tuple(
        tag
        for tag in plain
        if _SYNONYM.fullmatch(tag)
        and _VOWEL.search(tag)
        and tag not in _NO_SYNONYMS
        and not said.issuperset(re.findall(r"\w+", tag))
    )


def render_pictures(
    concepts: Sequence[Concept], pictures: Mapping[str, Mapping[str, Path]], folder: Path
) -> list[Concept]:
    """Write each concept's picture in each style as a PNG (:func:`picture_path`), RGB on white, at most 128 pixels.

    Returns the concepts to keep. Of concepts that have identical pictures in some style, directly or through others,
    the one with the shortest name stays (`astronaut`, not `man astronaut`); those with a blank picture are left out.
    """
    _require_renderer()
    alike: dict[str, set[str]] = defaultdict(set)
    blank = set()
    for style in pictures:
        (folder / style).mkdir(parents=True)
    for concept in tqdm(concepts, desc="Drawing pictures"):
        for style, files in pictures.items():
            picture = render(files[concept.image_id])
            picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            if picture.getcolors(maxcolors=1):
                blank.add(concept.image_id)
            picture.save(picture_path(folder, style, concept.image_id))
            pixels = hashlib.sha256(picture.tobytes()).hexdigest()
            alike[f"{style} {picture.size} {pixels}"].add(concept.image_id)
    shown = [concept for concept in concepts if concept.image_id not in blank]
    return distinct_concepts(shown, alike.values())


def distinct_concepts(concepts: Sequence[Concept], alike: Iterable[set[str]]) -> list[Concept]:
    """One concept, the one with the shortest name, for each set of those that look `alike`, joined where they meet."""
    groups: list[set[str]] = []
    for one in alike:
        if len(one) > 1:
            meeting = [group for group in groups if group & one]
            groups = [group for group in groups if not group & one] + [one.union(*meeting)]
    rank = {concept.image_id: (len(concept.name), order) for order, concept in enumerate(concepts)}
    dropped = set()
    for group in groups:
        present = sorted(group & rank.keys(), key=rank.__getitem__)
        dropped.update(present[1:])
    return [concept for concept in concepts if concept.image_id not in dropped]


def picture_path(folder: Path, style: str, image_id: str) -> Path:
    return folder / style / f"{image_id}.png"


def _version(package: Path) -> str | None:
    manifest = package / "package.json"
    return json.loads(manifest.read_text(encoding="utf-8")).get("version") if manifest.is_file() else None


def _spoken_word(word: str) -> str:
    bare = word.strip(",")
    if bare in _SAID:
        return word.replace(bare, _SAID[bare])
    if bare in _SPELLED:
        return word.replace(bare, " ".join(bare))
    return word.lower() if len(bare) > 1 and bare.isupper() else word


def _require_renderer() -> None:
    if find_spec("resvg_py") is None:
        raise CorpusError("OpenMoji is SVG, for which resvg-py is needed: pip install 'speech-image-retrieval[demo]'")
