"""A copy of a corpus in which a share of the training captions has a wrong picture: such pairs are what momentum
distillation is for (ALBEF, section 3.3). The other splits stay as they are.

python -m benchmarks.noisy_pairs CORPUS --share 0.3 --out FOLDER
"""

from __future__ import annotations

import argparse

import numpy as np
from datasets import Dataset, concatenate_datasets
from speech_image_retrieval.corpora.schema import FEATURES, load_corpus, save_corpus

_PICTURE = ["image", "image_id"]


def main() -> None:
    """Copy a corpus with noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder of a corpus")
    parser.add_argument("--share", type=float, required=True, help="of the training captions, between 0 and 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="folder of the copy")
    options = parser.parse_args()
    corpus = load_corpus(options.corpus)
    corpus["train"] = with_wrong_pictures(corpus["train"], options.share, options.seed)
    save_corpus(corpus, options.out)


def with_wrong_pictures(rows: Dataset, share: float, seed: int) -> Dataset:
    """Exchange the pictures of a share of the rows among these; each keeps the number of its captions."""
    generator = np.random.default_rng(seed)
    moved = generator.choice(len(rows), round(share * len(rows)), replace=False)
    taken_from = np.arange(len(rows))
    taken_from[moved] = np.roll(moved, 1)
    pictures = rows.select_columns(_PICTURE).select(taken_from)
    mixed = concatenate_datasets([pictures, rows.remove_columns(_PICTURE)], axis=1)
    return mixed.select_columns(list(FEATURES))


if __name__ == "__main__":
    main()
