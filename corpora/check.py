"""Checks a corpus: what each split holds, what splits share, and whether it is fit for use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from .findings import Findings
from .measuring import measure_corpus
from .problems import Pair, SharedRows, advised, find_leaks, find_naming_errors, find_warnings, shared_rows
from .split_facts import ColumnValues, SplitFacts, column_values, split_facts

UNDETERMINED = "und"
"""The BCP-47 tag under which captions that state no language are counted."""


@dataclass(frozen=True)
class CorpusCheck:
    """A checked corpus.

    Args:
        decoded: whether the media were decoded; else only their headers were read, and recordings not compared.
        splits: what was measured of each row.
        errors: what makes it unfit for use: unusable media, leaks between splits, names that are missing or repeated.
        warnings: what can be used, and deserves a look.
        counts: what :meth:`to_dict` holds besides.
    """

    decoded: bool
    splits: list[SplitFacts]
    errors: Findings
    warnings: Findings
    counts: dict[str, Any]

    @property
    def fit(self) -> bool:
        """Whether nothing speaks against its use."""
        return not self.errors.counts

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; docs/corpora.md explains the keys."""
        return {
            "fit": self.fit,
            "decoded": self.decoded,
            "errors": self.errors.to_dict(),
            "warnings": self.warnings.to_dict(),
            **self.counts,
        }

    def refusal(self) -> str:
        """The errors, each with its first captions by name, and what to do about them."""
        lines = []
        for advice, kinds in advised(self.errors).items():
            lines += [*map(self.errors.listed, kinds), advice]
        return "\n".join(lines)


def inspect_corpus(
    corpus: Mapping[str, Dataset],
    *,
    decode: bool = True,
    allow_shared_pictures: bool = False,
    num_proc: int | None = None,
) -> CorpusCheck:
    """Read every picture and every recording of a corpus and look for what is wrong.

    Args:
        corpus: split -> rows of the schema.
        decode: decode all media, so that files that break off are found, and compare recordings; else read headers
            only. Pictures are compared by content either way.
        allow_shared_pictures: count pictures that two splits share as warnings.
        num_proc: processes; default: all processors.
    """
    measured = measure_corpus(corpus, decode, num_proc)
    splits = [split_facts(name, dataset, measured.rows[name]) for name, dataset in corpus.items()]
    shared = shared_rows(splits)
    pictures, recordings = find_leaks(shared)
    errors, warnings = measured.unusable, find_warnings(splits)
    for found in (recordings, find_naming_errors(splits)):
        errors.merge(found)
    (warnings if allow_shared_pictures else errors).merge(pictures)
    counts = {
        "splits": {split.name: _split_counts(split, decode) for split in splits},
        "shared": [_shared_counts(pair, rows, decode) for pair, rows in shared],
    }
    return CorpusCheck(decode, splits, errors, warnings, counts)


def _split_counts(split: SplitFacts, decoded: bool) -> dict[str, Any]:
    rows = split.rows
    heard, seen = rows[rows["seconds"] > 0], rows[split.first_rows_of_pictures()]
    return {
        "rows": len(rows),
        "unusable": int(np.count_nonzero(~rows["usable"])),
        "pictures": len(split.image_ids.distinct),
        "picture_contents": len(seen),
        "recording_contents": _distinct(rows["recording"]) if decoded else None,
        "captions_per_picture": _spread(split.image_ids.counts),
        "pictures_by_captions": _tally(split.image_ids.counts),
        "speakers": len(split.speakers.distinct),
        "captions_per_speaker": _spread(split.speakers.counts),
        "rows_without_speaker": split.speakers.missing,
        "rows_without_language": split.languages.missing,
        "rows_without_text": column_values("text", split.dataset).missing,
        "languages": _languages(split.languages),
        "hours": float(rows["seconds"].sum()) / 3600,
        "seconds": _quantiles(heard["seconds"]),
        "sampling_rates": _tally(heard["sampling_rate"]),
        "channels": _tally(heard["channels"]),
        "picture_width": _quantiles(seen["width"]),
        "picture_height": _quantiles(seen["height"]),
    }


def _shared_counts(pair: Pair, rows: SharedRows, decoded: bool) -> dict[str, Any]:
    return {
        "splits": [split.name for split in pair],
        "leak": not all(split.for_test for split in pair)
        and any(len(found) for found in (rows.image_ids, rows.pictures, rows.recordings)),
        "image_ids": len(rows.image_ids),
        "picture_contents": len(rows.pictures),
        "recording_contents": len(rows.recordings) if decoded else None,
        "speakers": len(rows.speakers),
    }


def _distinct(digests: np.ndarray) -> int:
    return int(np.count_nonzero(np.unique(digests)))


def _languages(languages: ColumnValues) -> dict[str, int]:
    counted = dict(zip(languages.distinct, languages.counts.tolist(), strict=True))
    if languages.missing:
        counted[UNDETERMINED] = counted.get(UNDETERMINED, 0) + languages.missing
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def _tally(values: np.ndarray) -> dict[str, int]:
    """Value -> how often it is there, by value; the keys are strings, as in JSON."""
    distinct, counts = np.unique(values, return_counts=True)
    return dict(zip(map(str, distinct.tolist()), counts.tolist(), strict=True))


def _spread(counts: np.ndarray) -> dict[str, float]:
    if not len(counts):
        return {"min": 0, "mean": 0.0, "max": 0}
    return {"min": int(counts.min()), "mean": float(counts.mean()), "max": int(counts.max())}


def _quantiles(values: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    names = ("min", "p5", "median", "p95", "max")
    return dict(zip(names, np.quantile(values, (0, 0.05, 0.5, 0.95, 1)).round(3).tolist(), strict=True))
