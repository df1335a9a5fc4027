"""The results of a model on a split as one HTML file that needs no other file, no network and no script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..evaluation.ranking import RankedGallery
from ..evaluation.recall import RECALL_CUTOFFS
from ..evaluation.report_text import HOW_SURE, interval, protocol_lines
from ..evaluation.split import EncodedSplit
from ..evaluation.standard_pools import corpus_name
from .attributes import picture_attributes, query_attributes
from .confusion import Confusion, Group, by_attribute, confusion, recall_by_value
from .lists import first_results, lists_of, pick_queries
from .media import HEARD_SECONDS, SplitMedia

if TYPE_CHECKING:
    from datasets import Dataset

QUERIES = 6
"""Queries of each kind, in each direction."""

RESULTS = 5
"""Results in a list."""

STAGES = {"coarse": "Coarse", "reranked": "Re-ranked"}
_KNOWN = ("image_id", "text", "speaker", "language")


def write_report(
    rows: Dataset, encoded: EncodedSplit, ranked: RankedGallery, report: Mapping[str, Any], out: Path
) -> None:
    """Write the page.

    Args:
        rows: the split, one row a spoken caption. encoded: of these rows. ranked: all of it as one gallery.
        report: of :func:`..evaluation.protocol.report_of`, for the figures on top.

    Raises:
        OSError: the file cannot be written, or media cannot be read.
    """
    media = SplitMedia(rows, encoded.first_rows)
    directions = {"speech": ranked.speech_to_image, "image": ranked.image_to_speech}
    picked = {
        name: {
            kind: [lists_of(direction, query, RESULTS) for query in queries]
            for kind, queries in pick_queries(direction, QUERIES).items()
        }
        for name, direction in directions.items()
    }
    groups, confusions = _by_attributes(rows, encoded, ranked, report["protocol"]["corpus"])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        corpus=corpus_name(report["protocol"]["corpus"]),
        report=report,
        protocol=report["protocol"],
        sentences=protocol_lines(report),
        how_sure=HOW_SURE,
        interval=interval,
        cutoffs=[f"R@{k}" for k in RECALL_CUTOFFS],
        stages={stage: name for stage, name in STAGES.items() if stage in ranked.speech_to_image.scores},
        picked=picked,
        right_picture=encoded.image_of_caption.tolist(),
        media=media,
        heard_seconds=HEARD_SECONDS,
        groups=groups,
        confusions=confusions,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def _by_attributes(
    rows: Dataset, encoded: EncodedSplit, ranked: RankedGallery, corpus: str
) -> tuple[dict[str, list[Group]], list[Confusion]]:
    """Recall of spoken queries by each attribute of theirs and of their picture, and what pictures are taken for."""
    columns = {name: rows[name][:] for name in _KNOWN}
    captions = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    of_picture = by_attribute([picture_attributes(corpus, columns["image_id"][row]) for row in encoded.first_rows])
    right, found = encoded.image_of_caption.tolist(), first_results(ranked.speech_to_image).tolist()
    confusions = [
        confusion(name, [values[place] for place in right], [values[place] for place in found])
        for name, values in of_picture.items()
        if len(set(values)) > 1
    ]
    drawn = {one.attribute for one in confusions if one.values}
    values_of = by_attribute([query_attributes(corpus, caption) for caption in captions])
    values_of |= {name: [values[place] for place in right] for name, values in of_picture.items() if name in drawn}
    groups = {name: recall_by_value(values, ranked.speech_to_image.queries) for name, values in values_of.items()}
    return {name: found for name, found in groups.items() if found}, [
        one for one in confusions if len(one.values) != 1
    ]
