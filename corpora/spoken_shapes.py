"""spoken_shapes: drawn scenes of two shapes, described by synthetic speakers. Builds anywhere, in about a minute."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

from datasets import DatasetDict

from .scenes import Scene, all_scenes, describe, draw, png
from .schema import (
    CorpusError,
    SpokenCaption,
    building_folder,
    check_replaceable,
    save_corpus,
    split_from_rows,
)
from .synthesis import SPEAKERS, Voice, flac, require_espeak, synthesize


def build_spoken_shapes(
    out: str | Path,
    *,
    seed: int = 0,
    train_scenes: int = 6500,
    validation_scenes: int = 500,
    test_scenes: int = 500,
    captions_per_scene: int = 2,
    num_proc: int | None = None,
) -> DatasetDict:
    """Draw the scenes, speak their descriptions and save them as a corpus under `out`.

    A scene is one picture and occurs in one split only; speakers too. Training scenes have `captions_per_scene`
    spoken captions, by different speakers and from both figures' sides in turn; validation and test scenes have one.
    The same seed and sizes give the same corpus, whatever `num_proc` is (default: all processors).

    Raises:
        CorpusError: sizes that cannot be had, `out` holds something else, or espeak-ng is not installed.
    """
    sizes = {"train": train_scenes, "validation": validation_scenes, "test": test_scenes}
    if not 1 <= captions_per_scene <= len(SPEAKERS["train"]):
        raise CorpusError(
            f"captions_per_scene is {captions_per_scene}; it can be 1 to {len(SPEAKERS['train'])}, one a speaker."
        )
    return save_scenes(split_scenes(sizes, seed), out, captions_per_scene, seed, num_proc)


def save_scenes(
    scenes: Mapping[str, list[Scene]], out: str | Path, train_captions: int, seed: int, num_proc: int | None
) -> DatasetDict:
    """Draw and speak the scenes of each split, those of `train` several times, and save them as a corpus."""
    check_replaceable(out)
    require_espeak()
    with building_folder(out) as folder:
        splits = {
            name: split_from_rows(
                _spoken_captions,
                num_proc=min(num_proc or os.cpu_count() or 1, len(of_split)),
                cache_dir=folder,
                split_name=name,
                scenes=of_split,
                speakers=SPEAKERS[name.partition("_")[0]],
                captions=train_captions if name == "train" else 1,
                seed=seed,
            )
            for name, of_split in scenes.items()
        }
        return save_corpus(splits, out)


def split_scenes(sizes: dict[str, int], seed: int) -> dict[str, list[Scene]]:
    """Disjoint random scenes for each split; the first split's hold every colour, shape and direction early on."""
    scenes = all_scenes()
    if min(sizes.values()) < 1 or sum(sizes.values()) > len(scenes):
        asked = " + ".join(f"{size:,} {name}" for name, size in sizes.items())
        raise CorpusError(
            f"Asked for {asked} scenes. Each split needs one at least, and there are {len(scenes):,} different scenes."
        )
    Random(f"{seed}/scenes").shuffle(scenes)
    ordered = iter(_every_word_first(scenes))
    return {name: [next(ordered) for _ in range(size)] for name, size in sizes.items()}


def _every_word_first(scenes: list[Scene]) -> list[Scene]:
    seen: set[str] = set()
    first, rest = [], []
    for scene in scenes:
        (rest if scene.words <= seen else first).append(scene)
        seen |= scene.words
    return first + rest


def _spoken_captions(
    scenes: list[Scene], speakers: tuple[Voice, ...], captions: int, seed: int
) -> Iterator[SpokenCaption]:
    for scene in scenes:
        # A generator for each scene: nothing depends on how the scenes are shared out between processes.
        rng = Random(f"{seed}/{scene.name}")
        picture = png(draw(scene, rng))
        first_is_converse = rng.random() < 0.5
        for number, voice in enumerate(rng.sample(speakers, captions)):
            text = describe(scene, converse=first_is_converse ^ (number % 2 == 1), rng=rng)
            speech = synthesize(
                text,
                voice,
                rate=rng.randint(155, 185),
                pitch=rng.randint(42, 58),
                pitch_range=rng.randint(35, 65),
            )
            yield {
                "image": {"bytes": picture, "path": None},
                "audio": {"bytes": flac(speech), "path": None},
                "image_id": scene.name,
                "caption_id": f"{scene.name}#{number}",
                "text": text,
                "speaker": voice.name,
                "language": voice.language,
            }
