"""Why a recording and a picture match: which stretch of the speech made which part of the picture count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .token_places import Box


@dataclass(frozen=True)
class StretchRelevance:
    """A stretch of the speech that matters.

    Attributes:
        start, end: seconds.
        image: (rows, columns), how much more each cell of the picture adds to the score than it does without this
            stretch.
    """

    start: float
    end: float
    image: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """A recording, a picture, and what their matching score rests on. Relevance is in units of that score, negative
    for what speaks against a match; see :class:`.match_relevance.MatchedPair`.

    Attributes:
        picture: RGB, upright. seen: the part of it that the model saw. cells: the part over which `image` lies; it may
            reach beyond.
        samples: (samples,) mono float32 at `sampling_rate` Hz.
        edges: (tokens + 1,) seconds where the speech tokens begin, and where the last one ends.
        speech: (tokens,) and image: (rows, columns), what each of them adds to the score.
        stretches: the up to four that add most, in the order of time.
        matching_score: matching logit, higher for pairs that fit better. coarse_score: cosine similarity.
        title: what was said, or the name of the recording. caption: the same of the picture; "" if not known.
    """

    picture: Image.Image
    seen: Box
    cells: Box
    samples: np.ndarray
    sampling_rate: int
    edges: np.ndarray
    speech: np.ndarray
    image: np.ndarray
    stretches: tuple[StretchRelevance, ...]
    matching_score: float
    coarse_score: float
    title: str
    caption: str
