"""What is known of the licences of the corpora that are built here."""

from __future__ import annotations

from ..evaluation.standard_pools import corpus_called

_KNOWN = {
    "spoken_shapes": "Scenes are drawn and speech is synthesised by espeak-ng; no media of others are in it.",
    "tuxpaint": "Pictures and speech are Tux Paint's stamps, GPL-2.0.",
    "flickr8k_audio": "The recordings are CC BY-SA; the pictures of Flickr8k are for research.",
    "spoken_coco": "The recordings are CC BY-SA; the pictures of COCO are under the terms of their authors on Flickr.",
}


def licences_of(corpus: str) -> str:
    """A sentence on the licences of a corpus, given as a name, a folder or a Hub id."""
    known = corpus_called(corpus, _KNOWN)
    return _KNOWN[known] if known else "The licences of its speech and pictures are for its makers to state."
