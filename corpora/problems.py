"""What makes a corpus unfit for use, and what deserves a look, each with the first few captions by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

from .findings import Findings
from .media_facts import LONG_SECONDS
from .split_facts import ColumnValues, SplitFacts, column_values

SMALLEST_SIDE = 32
SILENCE = 1e-3  # of full scale: -60 dBFS
CLIPPED_SHARE = 0.01
SHORTEST_SECONDS = 0.25

SHARED_ID = "image_id in two splits"
SHARED_PICTURE = "picture in two splits"
SHARED_RECORDING = "recording in two splits"
REPEATED_CAPTION = "caption_id of several rows"
UNNAMED = "row without image_id or caption_id"
SEVERAL_PICTURES = "image_id with several pictures in an evaluation split"

SEVERAL_IDS = "picture under several image_ids of one split"
TINY = f"picture with a side below {SMALLEST_SIDE} pixels"
SILENT = "silent recording (peak below -60 dBFS)"
CLIPPED = f"clipped recording (over {CLIPPED_SHARE:.0%} of samples at full scale)"
SHORT = f"recording shorter than {SHORTEST_SECONDS:g} s"
LONG = f"recording longer than {LONG_SECONDS:g} s"

_APART = (
    "What is measured on one split was seen in the other: put all captions of a picture into one split, "
    "or pass --allow-shared-pictures if it is meant to be so."
)
_RESTORE = "Restore these files, or build the corpus again without their captions."
_ADVICE = {
    SHARED_ID: _APART,
    SHARED_PICTURE: _APART,
    SHARED_RECORDING: "What is measured on one split was heard in the other: keep such a recording in one split.",
    REPEATED_CAPTION: "Give every row a caption_id of its own.",
    UNNAMED: "Give every row an image_id and a caption_id.",
    SEVERAL_PICTURES: "Recall is counted by image_id, of its first picture: give each picture its own image_id.",
}
_NAMED = 5


class SharedRows(NamedTuple):
    """What two splits share: arrays (shared, 2) of the first row of each in both, in the order of the first split."""

    image_ids: np.ndarray
    pictures: np.ndarray
    recordings: np.ndarray
    speakers: np.ndarray


Pair = tuple[SplitFacts, SplitFacts]


def shared_rows(splits: Sequence[SplitFacts]) -> list[tuple[Pair, SharedRows]]:
    """Compare the splits, each with each."""
    return [
        (
            (one, other),
            SharedRows(
                _common(_named(one.image_ids), _named(other.image_ids)),
                _common(_digested(one, "picture"), _digested(other, "picture")),
                _common(_digested(one, "recording"), _digested(other, "recording")),
                _common(_named(one.speakers), _named(other.speakers)),
            ),
        )
        for one, other in combinations(splits, 2)
    ]


def find_leaks(shared: Iterable[tuple[Pair, SharedRows]]) -> tuple[Findings, Findings]:
    """Pictures, by id or content, that are in two splits; and recordings that are.

    Nothing is trained or chosen on test splits, so what two of them share tells nothing in advance.
    """
    pictures, recordings = Findings(), Findings()
    for pair, rows in shared:
        if all(split.for_test for split in pair):
            continue
        pictures.merge(_found(SHARED_ID, rows.image_ids, partial(_both_captions, pair)))
        pictures.merge(_found(SHARED_PICTURE, rows.pictures, partial(_both_media, pair, "image")))
        recordings.merge(_found(SHARED_RECORDING, rows.recordings, partial(_both_media, pair, "audio")))
    return pictures, recordings


def find_naming_errors(splits: Sequence[SplitFacts]) -> Findings:
    """Rows without a name, captions of one name, and pictures that an evaluation could not tell apart."""
    found = Findings()
    caption_ids = column_values("caption_id", *(split.dataset for split in splits))
    starts = np.cumsum([0, *(len(split.rows) for split in splits)])

    def place(row: int) -> str:
        split = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{splits[split].name} row {row - starts[split]}"

    def repeated(code: int) -> str:
        rows = np.flatnonzero(caption_ids.codes == code)
        listed = ", ".join(place(row) for row in rows[:_NAMED])
        return f"{caption_ids.distinct[code]}: {listed}" + (", …" if len(rows) > _NAMED else "")

    unnamed = (caption_ids.codes < 0) | (np.concatenate([split.image_ids.codes for split in splits]) < 0)
    found.merge(_found(UNNAMED, np.flatnonzero(unnamed), place))
    found.merge(_found(REPEATED_CAPTION, np.flatnonzero(caption_ids.counts > 1), repeated))
    for split in splits:
        if split.name != "train":
            found.merge(_several(SEVERAL_PICTURES, split, split.image_ids.codes, split.rows["picture"]))
    return found


def find_warnings(splits: Iterable[SplitFacts]) -> Findings:
    """What can be trained on, and often is a mistake."""
    found = Findings()
    for split in splits:
        found.merge(_several(SEVERAL_IDS, split, split.rows["picture"], split.image_ids.codes))
        found.merge(_tiny_pictures(split))
        found.merge(_doubtful_recordings(split))
    return found


def advised(errors: Findings) -> dict[str, list[str]]:
    """What to do -> the kinds of errors that it is for."""
    kinds: dict[str, list[str]] = {}
    for kind in errors.counts:
        kinds.setdefault(_ADVICE.get(kind, _RESTORE), []).append(kind)
    return kinds


def _tiny_pictures(split: SplitFacts) -> Findings:
    first = split.first_rows_of_pictures()
    widths, heights = split.rows["width"], split.rows["height"]

    def sized(row: int) -> str:
        return f"{split.medium(row, 'image')}: {widths[row]} x {heights[row]}"

    return _found(TINY, first[np.minimum(widths, heights)[first] < SMALLEST_SIDE], sized)


def _doubtful_recordings(split: SplitFacts) -> Findings:
    rows, found = split.rows, Findings()
    heard = rows["seconds"] > 0

    def lasting(row: int) -> str:
        return f"{split.caption(row)}: {rows['seconds'][row]:.2f} s"

    found.merge(_found(SILENT, np.flatnonzero(heard & (rows["peak"] < SILENCE)), split.caption))
    found.merge(_found(CLIPPED, np.flatnonzero(heard & (rows["clipped"] > CLIPPED_SHARE)), split.caption))
    found.merge(_found(SHORT, np.flatnonzero(heard & (rows["seconds"] < SHORTEST_SECONDS)), lasting))
    found.merge(_found(LONG, np.flatnonzero(rows["seconds"] > LONG_SECONDS), lasting))
    return found


def _several(kind: str, split: SplitFacts, keys: np.ndarray, values: np.ndarray) -> Findings:
    """Keys whose rows have different values. Rows without an image_id or a picture do not count."""
    known = np.flatnonzero((split.image_ids.codes >= 0) & (split.rows["picture"] != 0))
    pairs = np.stack([keys[known].astype(np.uint64), values[known].astype(np.uint64)], axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    distinct, starts, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    if not len(distinct):
        return Findings()
    first_of_key = np.minimum.reduceat(first, starts)[counts > 1]
    several = distinct[counts > 1][np.argsort(first_of_key)]

    def name(key: np.uint64) -> str:
        rows = known[np.sort(first[pairs[:, 0] == key])[:2]]
        ids = (split.image_ids.distinct[split.image_ids.codes[row]] for row in rows)
        return "; ".join(f"{image_id}: {split.medium(row, 'image')}" for image_id, row in zip(ids, rows, strict=True))

    return _found(kind, several, name)


def _both_captions(pair: Pair, rows: np.ndarray) -> str:
    one, other = pair
    image_id = one.image_ids.distinct[one.image_ids.codes[rows[0]]]
    return f"{image_id}: {one.caption(rows[0])} and {other.caption(rows[1])}"


def _both_media(pair: Pair, column: str, rows: np.ndarray) -> str:
    one, other = pair
    return f"{one.medium(rows[0], column)} and {other.medium(rows[1], column)}"


def _digested(split: SplitFacts, column: str) -> tuple[np.ndarray, np.ndarray]:
    digests, first = np.unique(split.rows[column], return_index=True)
    return digests[digests != 0], first[digests != 0]


def _named(values: ColumnValues) -> tuple[np.ndarray, np.ndarray]:
    codes, first = np.unique(values.codes, return_index=True)
    return np.array(values.distinct, dtype=object), first[codes >= 0]


def _common(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """From distinct values and their first rows in two splits: the first rows, (shared, 2), of what both have."""
    _, in_one, in_other = np.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
    rows = np.stack([one[1][in_one], other[1][in_other]], axis=1)
    return rows[np.argsort(rows[:, 0], kind="stable")]


def _found(kind: str, places: Sequence, describe: Callable[..., str]) -> Findings:
    if not len(places):
        return Findings()
    return Findings({kind: len(places)}, {kind: [describe(place) for place in places[:_NAMED]]})
