"""spoken_emoji: emoji in six art styles, named by synthetic speakers. Measures what is learnt beyond the training
data: other voices, another synthesiser, another art style, and things that training neither showed nor named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from datasets import DatasetDict

from . import flite
from .emoji_artwork import Concept, find_packages, find_pictures, picture_path, read_concepts, render_pictures
from .schema import CorpusError, SpokenCaption, building_folder, check_replaceable, save_corpus, split_from_rows
from .synthesis import SPEAKERS, Voice, flac, require_espeak, synthesize

TRAIN_STYLES = ("google", "twitter", "openmoji", "apple", "facebook")
SEEN_STYLE = "google"
HELD_OUT_STYLE = "fluent"
HELD_OUT_CONCEPTS = 0.1


class Prosody(NamedTuple):
    """Lowest and highest of what an espeak voice is varied by; see :func:`synthesis.synthesize`."""

    rate: tuple[int, int]
    pitch: tuple[int, int]
    pitch_range: tuple[int, int]


# Wider in training: what is measured is understanding voices that training does not have.
TRAIN_PROSODY = Prosody(rate=(130, 210), pitch=(25, 75), pitch_range=(20, 80))
HELD_OUT_PROSODY = Prosody(rate=(155, 185), pitch=(42, 58), pitch_range=(35, 65))
FLITE_STRETCH = (0.92, 1.12)


def build_spoken_emoji(
    source: str | Path | None,
    out: str | Path,
    *,
    seed: int = 0,
    captions_per_concept: int = 24,
    num_proc: int | None = None,
) -> DatasetDict:
    """Draw the emoji, speak their names and save them as a corpus under `out`.

    `image_id` is the concept, so all its pictures have the same. Concepts are the emoji that all styles have; of
    those that look or sound the same in one style, one stays. A tenth of them, drawn by the seed, is held out of
    training (:func:`hold_out`). Splits:

    - `train`: `captions_per_concept` captions, the pictures of five styles in turn;
    - `validation`: the same concepts, Google's pictures, one caption;
    - `test`: likewise, two captions, by one of espeak's voices and by one of flite's;
    - `test_unseen_style`: the recordings of `test` with pictures in a style that training does not have;
    - `test_unseen_concept`: the concepts held out, with Google's pictures and two captions as in `test`.

    No voice is in two of train, validation and the tests. A caption is the name, in half of them with a synonym.
    The same seed and packages give the same corpus, whatever `num_proc` is (default: all processors).

    Args:
        source: the folder of `npm install --prefix`, or its `node_modules`; None for the current folder.

    Raises:
        CorpusError: packages or synthesisers are missing, sizes that cannot be had, or `out` holds something else.
    """
    if captions_per_concept < 1:
        raise CorpusError(f"captions_per_concept is {captions_per_concept}; it must be 1 at least.")
    check_replaceable(out)
    require_espeak()
    flite.require_flite()
    files = find_pictures(root := find_packages(source))
    with building_folder(out) as folder:
        pictures = folder / "pictures"
        concepts = render_pictures(read_concepts(root, files), files, pictures)
        seen, unseen = hold_out(concepts, seed)
        parts = {
            "train": (seen, TRAIN_STYLES, captions_per_concept),
            "validation": (seen, (SEEN_STYLE,), 1),
            "test": (seen, (SEEN_STYLE,), 2),
            "test_unseen_style": (seen, (HELD_OUT_STYLE,), 2),
            "test_unseen_concept": (unseen, (SEEN_STYLE,), 2),
        }
        splits = {
            name: split_from_rows(
                _spoken_captions,
                num_proc=min(num_proc or os.cpu_count() or 1, len(part)),
                cache_dir=folder,
                split_name=name,
                concepts=part,
                split=name,
                styles=styles,
                captions=captions,
                pictures=pictures,
                seed=seed,
            )
            for name, (part, styles, captions) in parts.items()
        }
        return save_corpus(splits, out)


def hold_out(concepts: Sequence[Concept], seed: int) -> tuple[list[Concept], list[Concept]]:
    """The concepts of training, and about a tenth of all (one at least) that it neither shows nor names, each in their
    old order.

    Names may share words (`woman pilot` may be held out and `pilot` not), but no name that is held out is part of
    another's, and training loses the synonyms that contain one.
    """
    held_out = max(1, round(HELD_OUT_CONCEPTS * len(concepts)))
    names = [f" {one.name.lower().replace(',', '')} " for one in concepts]
    alone = [one for one, name in zip(concepts, names, strict=True) if sum(name in other for other in names) == 1]
    if held_out >= len(concepts) or held_out > len(alone):
        raise CorpusError(f"{len(concepts)} emoji cannot be shared out between training and test. Reinstall them.")
    unseen = set(Random(f"{seed}/concepts").sample(alone, held_out))
    unheard = [name for one, name in zip(concepts, names, strict=True) if one in unseen]
    seen = [one._replace(synonyms=_without(one.synonyms, unheard)) for one in concepts if one not in unseen]
    return seen, [one for one in concepts if one in unseen]


def _without(synonyms: Sequence[str], unheard: Sequence[str]) -> tuple[str, ...]:
    return tuple(one for one in synonyms if not any(name in f" {one.lower()} " for name in unheard))


def _spoken_captions(
    concepts: list[Concept], split: str, styles: tuple[str, ...], captions: int, pictures: Path, seed: int
) -> Iterator[SpokenCaption]:
    # All test splits have the same recordings of a concept, so that only the pictures differ.
    purpose = split.partition("_")[0]
    for concept in concepts:
        # A generator for each concept: nothing depends on how the concepts are shared out between processes.
        rng = Random(f"{seed}/{purpose}/{concept.image_id}")
        with_synonym = rng.randrange(2)
        for number, voice in enumerate(_draw_voices(purpose, captions, rng)):
            text = caption_text(concept, synonym=number % 2 == with_synonym, rng=rng)
            picture = picture_path(pictures, styles[number % len(styles)], concept.image_id)
            yield {
                "image": {"bytes": picture.read_bytes(), "path": None},
                "audio": {"bytes": flac(_speak(text, voice, purpose, rng)), "path": None},
                "image_id": concept.image_id,
                "caption_id": f"{split}/{concept.image_id}#{number}",
                "text": text,
                "speaker": voice.name,
                "language": voice.language,
            }


def caption_text(concept: Concept, *, synonym: bool, rng: Random) -> str:
    """The concept's name, with one of its synonyms if it has any and `synonym` is set."""
    return f"{concept.name}, {rng.choice(concept.synonyms)}" if synonym and concept.synonyms else concept.name


def _draw_voices(purpose: str, captions: int, rng: Random) -> list[Voice | flite.FliteVoice]:
    if purpose == "test":
        return [rng.choice(SPEAKERS["test"]), rng.choice(flite.FLITE_SPEAKERS)]
    drawn: list[Voice | flite.FliteVoice] = []
    while len(drawn) < captions:
        drawn += rng.sample(SPEAKERS[purpose], min(captions - len(drawn), len(SPEAKERS[purpose])))
    return drawn


def _speak(text: str, voice: Voice | flite.FliteVoice, purpose: str, rng: Random) -> np.ndarray:
    if isinstance(voice, flite.FliteVoice):
        return flite.synthesize(text, voice, duration_stretch=round(rng.uniform(*FLITE_STRETCH), 2))
    prosody = TRAIN_PROSODY if purpose == "train" else HELD_OUT_PROSODY
    return synthesize(
        text,
        voice,
        rate=rng.randint(*prosody.rate),
        pitch=rng.randint(*prosody.pitch),
        pitch_range=rng.randint(*prosody.pitch_range),
    )
