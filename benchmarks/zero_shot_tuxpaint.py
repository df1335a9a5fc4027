"""Zero-shot: pictures that volunteers described, found by English descriptions; the model was trained on others.

python -m benchmarks.zero_shot_tuxpaint MODEL [--source STAMPS] [--score-rule sim+sic] [--json OUT]

All of Tux Paint's stamps that have a description in English are the gallery, one of those whose description is the
same. Queries are the descriptions, each by one of flite's voices, and the English recordings by people that exist.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from speech_image_retrieval.cli.app import load_model
from speech_image_retrieval.corpora import flite, tuxpaint
from speech_image_retrieval.corpora.scenes import png
from speech_image_retrieval.corpora.synthesis import flac
from speech_image_retrieval.evaluation import evaluate_retrieval, format_report

PEOPLE = "people"


def main() -> None:
    """Print the report, with the figures of each voice and of people."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--source", help="a folder of stamps; default: where Debian installs them")
    parser.add_argument("--score-rule", default="sim+sic", help="chosen on the validation split of training")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, processor = load_model(options.model)
    report = evaluate_retrieval(
        model,
        processor,
        list(described_in_english(tuxpaint.find_stamps(options.source))),
        corpus="tuxpaint, English descriptions",
        split="all",
        score_rule=options.score_rule,
        group_by="speaker",
        progress=True,
    )
    print(format_report(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def described_in_english(root: Path) -> Iterator[dict[str, Any]]:
    """Rows of the evaluation; of stamps with the same description the first in alphabetical order."""
    described: set[str] = set()
    for stamp, picture in sorted(tuxpaint.find_pictures(root).items()):
        text_file = root / f"{stamp}.txt"
        text = tuxpaint.read_descriptions(text_file).get("en", "") if text_file.is_file() else ""
        if not text or text.casefold() in described:
            continue
        described.add(text.casefold())
        row = {"image": {"bytes": png(tuxpaint.render(picture))}, "image_id": stamp}
        rng = Random(stamp)
        voice = rng.choice(flite.FLITE_SPEAKERS)
        yield row | {
            "audio": {"bytes": flac(flite.synthesize(text, voice))},
            "caption_id": f"{stamp}#{voice.name}",
            "speaker": voice.name,
        }
        recording = root / f"{stamp}_desc.ogg"
        if recording.is_file():
            yield row | {
                "audio": {"bytes": recording.read_bytes()},
                "caption_id": f"{stamp}#{PEOPLE}",
                "speaker": PEOPLE,
            }


if __name__ == "__main__":
    main()
