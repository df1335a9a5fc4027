"""Tux Paint's stamps: pictures that volunteers described aloud in a dozen languages.

Debian's package tuxpaint-stamps-default (GPL-2) holds clip art and cut-out photographs, for each a text file with its
description in many languages, and for many `NAME_desc_LOCALE.ogg`, a person who reads one of them (`NAME_desc.ogg` is
English). `NAME.ogg` is a sound effect and is left alone. Who speaks is not recorded.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from datasets import Dataset, DatasetDict
from PIL import Image

from .findings import Findings, refuse_losses
from .media_facts import audio_problem
from .schema import (
    SPLITS,
    CorpusError,
    Media,
    SpokenCaption,
    building_folder,
    check_replaceable,
    save_corpus,
    split_from_rows,
)

logger = logging.getLogger(__name__)

INSTALLED = Path("/usr/share/tuxpaint/stamps")
LONGEST_SIDE = 224
HELD_OUT = 0.1

_RECORDING = re.compile(r"(?P<stamp>.+)_desc(?:_(?P<locale>.+))?\.(?:ogg|wav)")
_LOCALE = re.compile(r"(?P<language>[a-z]{2,3})(?:_(?P<region>[A-Za-z]{2}))?(?:@(?P<modifier>[a-z]+))?")
_SCRIPTS = {"latin": "Latn", "cyrillic": "Cyrl"}
# resvg recurses into nested elements and overflows the stack between 200 and 300 of them.
_DEEPEST_SVG = 100
_CSS_PIXELS_PER_INCH = 96


class Recording(NamedTuple):
    """A spoken description; `stamp` is its picture's path under the stamps folder, without the extension."""

    path: Path
    stamp: str
    language: str | None


class Rendered(NamedTuple):
    """A stamp's picture as the corpus holds it, and a digest of its pixels."""

    path: Path
    pixels: str


class _Caption(NamedTuple):
    recording: Path
    picture: Path
    image_id: str
    caption_id: str
    text: str | None
    language: str | None


def build_tuxpaint(
    source: str | Path | None,
    out: str | Path,
    *,
    languages: Sequence[str] | None = None,
    seed: int = 0,
    skip_missing: bool = False,
    num_proc: int | None = None,
) -> DatasetDict:
    """Build the corpus of Tux Paint's spoken descriptions and save it under `out`.

    A picture is rendered to an RGB PNG on white whose longest side is at most 224 pixels; a stamp that has both a PNG
    and an SVG is read from the PNG. Text inside an SVG is not drawn (fonts differ between machines), nor are pictures
    that it links to. Recordings are copied as they are. `image_id` is the stamp's path without its extension, and
    the first of them where several stamps have identical pixels; `text` is the description in the recording's
    language, if there is one.

    Splits are made by picture, about 80 : 10 : 10, and depend on the stamps and the seed but not on `languages`. These
    stay together, directly or through others: stamps with identical pixels (one picture under two names), stamps with
    the same English description up to case and punctuation (six flowers; a letter filled, outlined, small and
    capital), and stamps that share a recording byte for byte.

    Args:
        source: a stamps folder or an unpacked package that has one; None for where Debian installs it.
        out: folder of the corpus.
        languages: BCP-47 tags of the languages to keep; None for all.
        seed: of the splits.
        skip_missing: leave out descriptions whose recording or picture is missing, unreadable or blank.
        num_proc: processes that write the rows.

    Raises:
        CorpusError: no stamps there, a language nobody speaks, a split left without a caption, something else than
            a corpus in `out`, or (unless `skip_missing`) unusable recordings or pictures; the package as Debian ships
            it has about fifty.
    """
    check_replaceable(out)
    root = find_stamps(source)
    pictures = find_pictures(root)
    recordings = find_recordings(root)
    wanted = _in_languages(recordings, languages)
    _require_renderer(pictures.values())
    with building_folder(out) as folder:
        described = sorted({recording.stamp for recording in recordings} & pictures.keys())
        rendered, problems = _render_all(described, pictures, folder)
        descriptions, unreadable_texts = _read_descriptions(root, described)
        problems.update(unreadable_texts)
        usable = _usable(wanted, pictures.keys(), problems, root, skip_missing)
        keys = _grouping_keys(rendered, descriptions, recordings)
        split_of = assign_splits(group_stamps(keys), seed)
        captions = _captions(usable, rendered, descriptions, root)
        return save_corpus(_write_splits(captions, split_of, folder, num_proc), out)


def find_stamps(source: str | Path | None) -> Path:
    """The folder of stamps at or under `source`, by default the installed one."""
    start = Path(source or INSTALLED)
    for folder in (start / INSTALLED.relative_to("/"), start / "stamps", start):
        if folder.is_dir() and any(folder.rglob("*_desc*.ogg")):
            return folder
    raise CorpusError(
        f"{start} holds no spoken Tux Paint stamps. Install them: apt-get install tuxpaint-stamps-default; "
        "or pass the package, unpacked by dpkg-deb -x, with --source."
    )


def find_pictures(root: Path) -> dict[str, Path]:
    """Stamp -> its picture file, PNG before SVG."""
    found = sorted(path for path in root.rglob("*") if path.suffix in (".png", ".svg"))
    pictures: dict[str, Path] = {}
    for path in found:
        pictures.setdefault(path.relative_to(root).with_suffix("").as_posix(), path)
    return pictures


def find_recordings(root: Path) -> list[Recording]:
    """All spoken descriptions, in the order of their paths; `language` is None where the file name states none."""
    matches = ((path, _RECORDING.fullmatch(path.name)) for path in sorted(root.rglob("*_desc*")))
    return [
        Recording(path, path.with_name(match["stamp"]).relative_to(root).as_posix(), bcp47(match["locale"] or "en"))
        for path, match in matches
        if match
    ]


def bcp47(locale: str) -> str | None:
    """A POSIX locale as a language tag (`pt_BR` -> `pt-BR`, `sr@latin` -> `sr-Latn`), or None if it is not one."""
    match = _LOCALE.fullmatch(locale)
    if not match:
        return None
    region = match["region"] and match["region"].upper()
    script = _SCRIPTS.get(match["modifier"])
    variant = None if script else match["modifier"]
    return "-".join(part for part in (match["language"], script, region, variant) if part)


def read_descriptions(path: Path) -> dict[str, str]:
    """Language tag -> description from a stamp's text file: English first, then `LOCALE.utf8=DESCRIPTION` lines."""
    english, *translations = path.read_text(encoding="utf-8-sig").splitlines() or [""]
    descriptions = {"en": english.strip()}
    for line in translations:
        key, _, description = line.partition("=")
        tag = bcp47(key.strip().removesuffix(".utf8"))
        if tag:
            descriptions[tag] = description.strip()
    return {tag: description for tag, description in descriptions.items() if description}


def render(path: Path) -> Image.Image:
    """A PNG or SVG on white, RGB, its longest side at most 224 pixels; raises what its decoder raises."""
    picture = _rasterise(path) if path.suffix == ".svg" else Image.open(path)
    with picture:
        transparent = picture.convert("RGBA")
    on_white = Image.new("RGBA", transparent.size, "white")
    on_white.alpha_composite(transparent)
    rendered = on_white.convert("RGB")
    rendered.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return rendered


def group_stamps(keys: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Sort stamps into groups: two are together if they share a key, or each does with a third, and so on."""
    groups: list[tuple[list[str], set[str]]] = []
    for stamp, own in keys.items():
        merged, merged_keys = [stamp], set(own)
        apart = []
        for group in groups:
            if group[1].isdisjoint(own):
                apart.append(group)
            else:
                merged += group[0]
                merged_keys |= group[1]
        groups = [*apart, (merged, merged_keys)]
    return sorted(sorted(stamps) for stamps, _ in groups)


def assign_splits(groups: Sequence[Sequence[str]], seed: int) -> dict[str, str]:
    """Stamp -> split. Test and validation each take whole groups, in an order drawn by the seed, up to a tenth."""
    if len(groups) < len(SPLITS):
        raise CorpusError(f"{len(groups)} unrelated pictures cannot fill the splits {', '.join(SPLITS)}.")
    remaining = sorted(groups, key=lambda group: hashlib.sha256(f"{seed} {group[0]}".encode()).digest())
    limit = HELD_OUT * sum(map(len, groups))
    split_of = {}
    for split in ("test", "validation"):
        chosen: list[Sequence[str]] = []
        for group in remaining:
            if sum(map(len, chosen)) + len(group) <= limit:
                chosen.append(group)
        chosen = chosen or [min(remaining, key=len)]
        remaining = [group for group in remaining if group not in chosen]
        split_of |= {stamp: split for group in chosen for stamp in group}
    return split_of | {stamp: "train" for group in remaining for stamp in group}


def _in_languages(recordings: Sequence[Recording], languages: Sequence[str] | None) -> list[Recording]:
    if languages is None:
        return list(recordings)
    spoken = {recording.language.casefold(): recording.language for recording in recordings if recording.language}
    asked = {language: spoken.get(language.replace("_", "-").casefold()) for language in languages}
    silent = [language for language, tag in asked.items() if tag is None]
    if silent or not asked:
        raise CorpusError(
            f"No Tux Paint description is spoken in {', '.join(silent) or 'no language'}. "
            f"Languages: {', '.join(sorted(spoken.values()))}."
        )
    return [recording for recording in recordings if recording.language in asked.values()]


def _require_renderer(pictures: Iterable[Path]) -> None:
    if find_spec("resvg_py") is None and any(path.suffix == ".svg" for path in pictures):
        raise CorpusError(
            "Some stamps are SVG, for which resvg-py is needed: pip install 'speech-image-retrieval[demo]'"
        )


def _rasterise(path: Path) -> Image.Image:
    import resvg_py

    root = ElementTree.parse(path).getroot()
    if _deeper_than(root, _DEEPEST_SVG):
        raise ValueError(f"elements nested more than {_DEEPEST_SVG} deep")
    # resvg opens any file that a picture element links to, wherever it is, and has no switch for it.
    for element in root.iter():
        for name in [name for name in element.attrib if name.rpartition("}")[2] == "href"]:
            if not element.attrib[name].strip().startswith(("#", "data:")):
                del element.attrib[name]
    png = resvg_py.svg_to_bytes(
        svg_string=ElementTree.tostring(root, encoding="unicode"),
        width=LONGEST_SIDE,
        height=LONGEST_SIDE,
        dpi=_CSS_PIXELS_PER_INCH,
        skip_system_fonts=True,
    )
    return Image.open(io.BytesIO(bytes(png)))


def _deeper_than(root: ElementTree.Element, levels: int) -> bool:
    level = [root]
    for _ in range(levels):
        level = [child for element in level for child in element]
    return bool(level)


def _render_all(
    stamps: Sequence[str], pictures: Mapping[str, Path], folder: Path
) -> tuple[dict[str, Rendered], dict[str, str]]:
    rendered, problems = {}, {}
    for stamp in stamps:
        try:
            picture = render(pictures[stamp])
        except Exception as error:  # a broken file can raise anything in its decoder; each is listed, none is hidden
            problems[stamp] = f"{pictures[stamp].name}: unreadable picture ({error})"
            continue
        if picture.getcolors(maxcolors=1):
            problems[stamp] = f"{pictures[stamp].name}: shows nothing on a white background"
            continue
        pixels = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        rendered[stamp] = Rendered(folder / f"{pixels}.png", pixels)
        picture.save(rendered[stamp].path)
    return rendered, problems


def _read_descriptions(root: Path, stamps: Sequence[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    descriptions: dict[str, dict[str, str]] = defaultdict(dict)
    problems = {}
    for stamp in stamps:
        path = root / f"{stamp}.txt"
        try:
            if path.is_file():
                descriptions[stamp] = read_descriptions(path)
        except UnicodeDecodeError as error:
            problems[stamp] = f"{path.name}: not UTF-8 ({error})"
    return descriptions, problems


def _usable(
    recordings: Sequence[Recording],
    pictures: Iterable[str],
    picture_problems: Mapping[str, str],
    root: Path,
    skip_missing: bool,
) -> list[Recording]:
    unusable, losses = set(), Findings()
    for recording in recordings:
        if recording.language is None:
            problem = "its name ends in no language that is known"
        elif recording.stamp not in pictures:
            problem = f"no picture {recording.stamp}.png or .svg"
        else:
            problem = picture_problems.get(recording.stamp) or audio_problem(_audio(recording.path))
        if problem:
            unusable.add(recording)
            losses.add("unusable picture or recording", f"{recording.path.relative_to(root)}: {problem}")
    if not skip_missing:
        refuse_losses(losses, len(recordings))
    elif losses.counts:
        listed = "\n".join(map(losses.listed, losses.counts))
        logger.warning("Left out %d of %d spoken captions.\n%s", losses.total, len(recordings), listed)
    return [recording for recording in recordings if recording not in unusable]


def _grouping_keys(
    rendered: Mapping[str, Rendered],
    descriptions: Mapping[str, Mapping[str, str]],
    recordings: Sequence[Recording],
) -> dict[str, set[str]]:
    keys = {stamp: {f"pixels {picture.pixels}"} for stamp, picture in rendered.items()}
    for stamp, own in keys.items():
        words = re.findall(r"\w+", descriptions[stamp].get("en", "").casefold())
        if words:
            own.add(f"text {' '.join(words)}")
    for recording in recordings:
        speech = recording.path.read_bytes()
        if speech and recording.stamp in keys:
            keys[recording.stamp].add(f"speech {hashlib.sha256(speech).hexdigest()}")
    return keys


def _captions(
    recordings: Sequence[Recording],
    rendered: Mapping[str, Rendered],
    descriptions: Mapping[str, Mapping[str, str]],
    root: Path,
) -> dict[str, list[_Caption]]:
    first_with_pixels: dict[str, str] = {}
    for stamp in sorted(rendered):
        first_with_pixels.setdefault(rendered[stamp].pixels, stamp)
    captions: dict[str, list[_Caption]] = defaultdict(list)
    for path, stamp, language in recordings:
        captions[stamp].append(
            _Caption(
                recording=path,
                picture=rendered[stamp].path,
                image_id=first_with_pixels[rendered[stamp].pixels],
                caption_id=path.relative_to(root).as_posix(),
                text=descriptions[stamp].get(language),
                language=language,
            )
        )
    return captions


def _write_splits(
    captions: Mapping[str, Sequence[_Caption]], split_of: Mapping[str, str], folder: Path, num_proc: int | None
) -> dict[str, Dataset]:
    by_split: dict[str, list[_Caption]] = {split: [] for split in SPLITS}
    for stamp, own in captions.items():
        by_split[split_of[stamp]] += own
    empty = [split for split, own in by_split.items() if not own]
    if empty:
        raise CorpusError(
            f"No description is left for the split {', '.join(empty)}: {sum(map(len, by_split.values()))} in all. "
            "Choose more languages or another seed."
        )
    return {
        split: split_from_rows(_rows, num_proc=num_proc, cache_dir=folder, split_name=split, captions=own)
        for split, own in by_split.items()
    }


def _rows(captions: Sequence[_Caption]) -> Iterator[SpokenCaption]:
    for caption in captions:
        yield SpokenCaption(
            image=Media(bytes=caption.picture.read_bytes(), path=None),
            audio=_audio(caption.recording),
            image_id=caption.image_id,
            caption_id=caption.caption_id,
            text=caption.text,
            speaker=None,
            language=caption.language,
        )


def _audio(recording: Path) -> Media:
    return Media(bytes=recording.read_bytes(), path=None)
