"""What is known of spoken queries and of pictures, by corpus, to ask which of them are found and what is confused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..corpora.scenes import RELATIONS, Scene
from ..evaluation.standard_pools import corpus_called

_DESCRIBED = ("spoken_shapes", "spoken_emoji", "tuxpaint")
_FEW_WORDS = 9
_MANY_WORDS = ((10, "10 to 14"), (15, "15 to 19"), (20, "20 to 29"), (30, "30 or more"))
_UNICODE_BLOCKS = (
    (0x1F300, 0x1F5FF, "Miscellaneous Symbols and Pictographs"),
    (0x1F600, 0x1F64F, "Emoticons"),
    (0x1F680, 0x1F6FF, "Transport and Map Symbols"),
    (0x1F900, 0x1F9FF, "Supplemental Symbols and Pictographs"),
    (0x1FA70, 0x1FAFF, "Symbols and Pictographs Extended-A"),
)


def query_attributes(corpus: str, caption: Mapping[str, Any]) -> dict[str, str]:
    """Attributes of a spoken query; those that are not known are left out.

    Args:
        corpus: its name, folder or Hub id.
        caption: `text`, `speaker` and `language` of its row, each may be None.
    """
    text, speaker = caption["text"] or "", caption["speaker"]
    known = {
        "speaker": speaker,
        "language": caption["language"],
        "number of words": _word_count(text),
    }
    called = corpus_called(corpus, _DESCRIBED)
    if called == "spoken_shapes":
        known["relation said"] = next((said for pair in RELATIONS.values() for said in pair if said in text), None)
    if called == "spoken_emoji" and speaker:
        known["synthesiser"] = "flite" if speaker.startswith("flite+") else "espeak"
    return {name: value for name, value in known.items() if value}


def picture_attributes(corpus: str, image_id: str) -> dict[str, str]:
    """Attributes of what a picture shows, by its id; empty where nothing is known."""
    match corpus_called(corpus, _DESCRIBED):
        case "spoken_shapes":
            return _of_scene(Scene.from_name(image_id))
        case "spoken_emoji":
            return {"Unicode block": _unicode_block(image_id)}
        case "tuxpaint":
            return {"kind": image_id.partition("/")[0]}
    return {}


def _of_scene(scene: Scene | None) -> dict[str, str]:
    if scene is None:
        return {}
    return {
        "colour of the upper or left figure": scene.first.colour,
        "colour of the other figure": scene.second.colour,
        "shape of the upper or left figure": scene.first.shape,
        "shape of the other figure": scene.second.shape,
        "relation": RELATIONS[scene.direction][0],
        "both figures, in either order": " and ".join(sorted(map(str, (scene.first, scene.second)))),
    }


def _unicode_block(code_points: str) -> str:
    """The block of an emoji's first code point; `image_id` is its code points in hexadecimal, joined by hyphens."""
    first = int(code_points.partition("-")[0], 16)
    return next((name for start, end, name in _UNICODE_BLOCKS if start <= first <= end), "other blocks")


def _word_count(text: str) -> str | None:
    words = len(text.split())
    if words <= _FEW_WORDS:
        return str(words) if words else None
    return next(name for least, name in reversed(_MANY_WORDS) if words >= least)
