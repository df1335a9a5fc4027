"""A checked corpus as one HTML file: the verdict, counts, plots, and random captions to see and hear."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..processing.media import load_image, load_speech
from .check import CorpusCheck
from .check_plots import draw_plots
from .check_table import HOW_TO_READ, language_rows, shared_rows, split_rows
from .problems import advised
from .schema import SpokenCaption
from .split_facts import SplitFacts

SAMPLES = 12
"""Random captions of each split."""

HEARD_SECONDS = 15.0
SAMPLING_RATE = 16_000
THUMBNAIL = 360


class _Sample(NamedTuple):
    """`picture` and `sound` are data URIs; where one is None, `problems` says why."""

    caption: SpokenCaption
    picture: str | None
    sound: str | None
    cut_from: float | None
    problems: list[str]


def write_page(check: CorpusCheck, name: str, out: Path, seed: int = 0) -> None:
    """Write the page; it needs no other file, no network and no script.

    Args:
        name: of the corpus, for the heading.
        seed: of the random captions.
    """
    report = check.to_dict()
    errors = [
        {"advice": advice, "kinds": [{"kind": kind, **report["errors"][kind]} for kind in kinds]}
        for advice, kinds in advised(check.errors).items()
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("check_page.html.jinja").render(
        name=name,
        report=report,
        errors=errors,
        split_rows=split_rows(report),
        language_rows=language_rows(report),
        shared_rows=shared_rows(report),
        how_to_read=HOW_TO_READ,
        plots=[plot._replace(svg=Markup(plot.svg)) for plot in draw_plots(check.splits)],
        samples={split.name: _samples(split, seed) for split in check.splits},
        heard_seconds=HEARD_SECONDS,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def _samples(split: SplitFacts, seed: int) -> list[_Sample]:
    drawn = random.Random(f"{seed} {split.name}").sample(range(len(split.rows)), min(SAMPLES, len(split.rows)))
    return [_sample(split.dataset[row]) for row in sorted(drawn)]


def _sample(caption: SpokenCaption) -> _Sample:
    picture, sound, cut_from, problems = None, None, None, []
    try:
        picture = _thumbnail(caption["image"])
    except Exception as error:  # a broken file can raise anything in its decoder; the page shows what
        problems.append(f"No picture: {error}")
    try:
        sound, cut_from = _excerpt(caption["audio"])
    except Exception as error:
        problems.append(f"No recording: {error}")
    return _Sample(caption, picture, sound, cut_from, problems)


def _thumbnail(media: Any) -> str:
    picture = load_image(media)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=85)
    return _data_uri("image/jpeg", encoded)


def _excerpt(media: Any) -> tuple[str, float | None]:
    """The start of a recording as the model hears it, and its whole length in seconds if that is more."""
    samples = load_speech(media, None, SAMPLING_RATE)
    kept = samples[: int(HEARD_SECONDS * SAMPLING_RATE)].clip(-1, 1)
    encoded = io.BytesIO()
    soundfile.write(encoded, kept, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return _data_uri("audio/flac", encoded), len(samples) / SAMPLING_RATE if len(kept) < len(samples) else None


def _data_uri(kind: str, content: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
