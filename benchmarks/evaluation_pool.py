"""Time and memory of a whole evaluation on a pool of the field's size, 1,000 pictures with 5,000 captions.

python -m benchmarks.evaluation_pool MODEL --corpus spoken_shapes [--images 1000] [--captions 5] [--rerank-top-k 32]

Rows are those of the training split, whose captions are repeated where a picture has fewer than are asked for: the
work is that of a pool of this size, the recall means nothing and is not printed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from speech_image_retrieval.cli.app import load_model
from speech_image_retrieval.cli.corpus import load_split
from speech_image_retrieval.evaluation import evaluate_retrieval


def main() -> None:
    """Evaluate once, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=5, help="of each picture")
    parser.add_argument("--rerank-top-k", type=int, default=32)
    options = parser.parse_args()
    model, processor = load_model(options.model)
    rows = pool(load_split(options.corpus, "train"), options.images, options.captions)
    started = time.perf_counter()
    report = evaluate_retrieval(
        model, processor, rows, corpus=options.corpus, split="train", rerank_top_k=options.rerank_top_k, progress=True
    )
    seconds = time.perf_counter() - started
    protocol = report["protocol"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{protocol['images']:,} pictures, {protocol['captions']:,} captions, {protocol['rerank_top_k']} re-ranked in "
        f"both directions: {seconds:.0f} s, peak memory {peak:,.0f} MB"
    )


def pool(rows: Dataset, images: int, captions: int) -> Sequence[dict[str, Any]]:
    """The first pictures of a split with equally many captions each, repeated where there are fewer."""
    places: dict[str, list[int]] = {}
    for place, image_id in enumerate(rows["image_id"][:]):
        places.setdefault(image_id, []).append(place)
    if len(places) < images:
        sys.exit(f"error: the split has {len(places):,} pictures, {images:,} were asked for")
    chosen = [of[number % len(of)] for of in list(places.values())[:images] for number in range(captions)]
    drawn = rows.select(chosen).remove_columns("caption_id")
    return drawn.add_column("caption_id", [str(number) for number in range(len(chosen))])


if __name__ == "__main__":
    main()
