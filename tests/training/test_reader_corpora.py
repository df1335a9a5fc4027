"""What every reader gives can be trained on: built by the command, checked against the schema, trained for a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from speech_image_retrieval.cli import app
from speech_image_retrieval.corpora.schema import check_schema, load_corpus
from speech_image_retrieval.training.loop import Trainer
from typer.testing import CliRunner

from ..corpora import fixture_trees, flickr8k_trees
from ..corpora.test_localized_narratives import write_coco


def _flickr8k(root: Path) -> list[Path]:
    return flickr8k_trees.original(root, broken=True)


def _spoken_coco(root: Path) -> list[Path]:
    fixture_trees.write_release(fixture_trees.write_spoken_coco_recordings(root / "audio"))
    fixture_trees.write_coco_pictures(root / "pictures")
    return [root]


def _speech_coco(root: Path) -> list[Path]:
    fixture_trees.write_speech_coco(root)
    fixture_trees.write_coco_pictures(root / "pictures")
    return [root]


def _places_audio(root: Path) -> list[Path]:
    fixture_trees.write_places_2020(root)
    return [root]


def _localized_narratives(root: Path) -> list[Path]:
    write_coco(root)
    return [root]


def _columns(root: Path) -> list[Path]:
    flickr8k_trees.write_recordings(root)
    (root / "wavs" / "1000268201_693b08cb0e_txt.wav").unlink()
    flickr8k_trees.write_images(root / "Images")
    return [root / "wavs", root / "Images"]


READERS = {
    "flickr8k_audio": _flickr8k,
    "spoken_coco": _spoken_coco,
    "speech_coco": _speech_coco,
    "places_audio": _places_audio,
    "localized_narratives": _localized_narratives,
    "columns": _columns,
}


@pytest.mark.parametrize("name", READERS)
def test_the_corpus_of_every_reader_trains(name: str, make_arguments: Callable, tmp_path: Path):
    sources = READERS[name](tmp_path / "source")
    options = [part for source in sources for part in ("--source", str(source))]
    out = tmp_path / "corpus"
    built = CliRunner().invoke(app, ["corpus", "build", name, *options, "--out", str(out), "--num-proc", "1"])
    assert built.exit_code == 0, built.output
    corpus = load_corpus(out)
    check_schema(corpus, where=name)
    arguments = make_arguments(
        tmp_path / "run", corpus=str(out), max_steps=1, batch_size=min(4, len(corpus["train"])), group_size=1
    )
    arguments.gradient_accumulation_steps = 1
    report = Trainer(arguments).run()
    assert report["protocol"]["captions"] == len(corpus["test"])
