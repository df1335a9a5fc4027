"""A copy of a corpus in which a share of the training captions has a wrong picture: such pairs are what momentum
distillation is for (ALBEF, section 3.3). The other splits stay as they are.

python -m benchmarks.noisy_pairs CORPUS --share 0.3 --out FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from datasets import Dataset
from speech_image_retrieval.corpora.schema import (
    SpokenCaption,
    building_folder,
    load_corpus,
    save_corpus,
    split_from_rows,
)


def main() -> None:
    """Copy a corpus with noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder of a corpus")
    parser.add_argument("--share", type=float, required=True, help="of the training captions, between 0 and 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="folder of the copy")
    options = parser.parse_args()
    if not 0 <= options.share <= 1:
        parser.error(f"--share is between 0 and 1; it is {options.share}")
    corpus = load_corpus(options.corpus)
    train = corpus["train"]
    taken_from = exchanged(len(train), options.share, options.seed)
    with building_folder(options.out) as folder:
        corpus["train"] = split_from_rows(with_pictures_of, cache_dir=folder, captions=train, taken_from=taken_from)
        save_corpus(corpus, options.out)


def exchanged(count: int, share: float, seed: int) -> np.ndarray:
    """(count,) whose picture each row gets: a share of the rows exchange theirs, each with another row. Where that
    shows the same thing the pair stays right."""
    moved = np.random.default_rng(seed).choice(count, round(share * count), replace=False)
    taken_from = np.arange(count)
    taken_from[moved] = np.roll(moved, 1)
    return taken_from


def with_pictures_of(captions: Dataset, taken_from: np.ndarray) -> Iterator[SpokenCaption]:
    """The rows, each with the picture of another or its own."""
    pictures = captions.select_columns(["image", "image_id"])
    for row, number in zip(captions, taken_from, strict=True):
        yield {**row, **pictures[int(number)]}


if __name__ == "__main__":
    main()
