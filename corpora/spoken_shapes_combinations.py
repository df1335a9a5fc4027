"""spoken_shapes_combinations: scenes of spoken_shapes, of which training neither shows nor names some combinations.

Measures whether colours, shapes and relations that are known apart are understood together, zero-shot.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from datasets import DatasetDict

from .scenes import COLOURS, RELATIONS, SHAPES, Figure, Scene, all_scenes
from .spoken_shapes import save_scenes

EVALUATED = 500


@dataclass(frozen=True)
class HeldOut:
    """What training lacks.

    Attributes:
        figures: of each colour one shape, of each shape one colour.
        relations: colour, direction and colour ("red above blue"), where each colour is once the first and once the
            second in each direction.
    """

    figures: frozenset[Figure]
    relations: frozenset[tuple[str, str, str]]

    @classmethod
    def drawn(cls, seed: int) -> HeldOut:
        rng = Random(f"{seed}/combinations")
        colours, shapes = rng.sample(list(COLOURS), len(COLOURS)), rng.sample(SHAPES, len(SHAPES))
        relations = {
            (colour, direction, colours[(place + step) % len(colours)])
            for step, direction in enumerate(RELATIONS, start=1)
            for place, colour in enumerate(colours)
        }
        return cls(frozenset(map(Figure, colours, shapes)), frozenset(relations))

    def split_of(self, scene: Scene) -> str:
        """`test_unseen_figure`, `test_unseen_relation` if both figures are known, or `train`."""
        if {scene.first, scene.second} & self.figures:
            return "test_unseen_figure"
        relation = (scene.first.colour, scene.direction, scene.second.colour)
        return "test_unseen_relation" if relation in self.relations else "train"


def build_spoken_shapes_combinations(out: str | Path, *, seed: int = 0, num_proc: int | None = None) -> DatasetDict:
    """Draw the scenes, speak their descriptions and save them as a corpus under `out`.

    Rows are those of :func:`.spoken_shapes.build_spoken_shapes`, two captions of a scene in training. The splits
    `validation` and `test` have combinations of training, `test_unseen_figure` and `test_unseen_relation` others, see
    :class:`HeldOut`; each has 500 scenes and voices that training does not have. The same seed gives the same corpus,
    whatever `num_proc` is (default: all processors).

    Raises:
        CorpusError: `out` holds something else, or espeak-ng is not installed.
    """
    return save_scenes(split_combinations(seed), out, 2, seed, num_proc)


def split_combinations(seed: int) -> dict[str, list[Scene]]:
    """The scenes of each split, disjoint, in an order drawn by the seed."""
    scenes = all_scenes()
    Random(f"{seed}/scenes").shuffle(scenes)
    held_out = HeldOut.drawn(seed)
    known = iter([scene for scene in scenes if held_out.split_of(scene) == "train"])
    splits = {name: list(islice(known, EVALUATED)) for name in ("validation", "test")}
    for name in ("test_unseen_figure", "test_unseen_relation"):
        splits[name] = [scene for scene in scenes if held_out.split_of(scene) == name][:EVALUATED]
    return {"train": list(known), **splits}
