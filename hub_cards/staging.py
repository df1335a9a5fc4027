"""The folder that becomes a repository: a model, its card and figures, an endpoint's handler, an example."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.reranking import ScoreRule
from .content import CLONE
from .examples import check_examples, write_example

ENDPOINT_FILES = (Path(__file__).with_name("handler.py"), Path(__file__).with_name("requirements.txt"))
"""What Inference Endpoints run and install."""


def stage_model(
    model: Path, folder: Path, example: Mapping[str, Any] | None, galleries: Sequence[str], score_rule: ScoreRule
) -> None:
    """Put together what of a model is published, but for its card.

    Args:
        model: the exported folder; its files are linked where the file system can do that, not copied.
        folder: where to; made.
        example: a row of a corpus, whose recording and picture are shown and tried; None takes those that are in
            `examples/` of the model.
        galleries: indexes of pictures, of recordings or of both, which the published model searches by itself.
        score_rule: what orders re-ranked answers from them.

    Raises:
        PublishError: there is no example, or one that an endpoint would not take.
    """
    shutil.copytree(model, folder, ignore=_ignore_clone_of(model), copy_function=_link_or_copy, dirs_exist_ok=True)
    for path in ENDPOINT_FILES:
        replace_file(folder / path.name, path.read_bytes())
    if example is not None:
        write_example(example, folder)
    else:
        check_examples(model)
    if galleries:
        shutil.rmtree(folder / "gallery", ignore_errors=True)  # those of the model itself, which are links
        from .gallery import refuse_two_of_a_kind, ship_gallery  # needs LanceDB

        refuse_two_of_a_kind(galleries)
        for uri in galleries:
            ship_gallery(uri, folder, score_rule=score_rule)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file anew: writing into one that is linked would change the model's own."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _ignore_clone_of(model: Path) -> Callable[[str, list[str]], set[str]]:
    """What `shutil.copytree` leaves out: that a folder was cloned from the Hub."""
    return lambda folder, names: set(names) & set(CLONE) if Path(folder) == model else set()


def _link_or_copy(source: str, target: str) -> None:
    """A second name of the same file costs nothing, which matters for weights."""
    if Path(source).is_symlink():  # shutil follows links, os.link does not
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
