"""Pictures or recordings indexed in a second, beside the bare model on inputs that are ready, paired in one run.

python -m benchmarks.indexing MODEL FOLDER [--modality image] [--rounds 3] [--batch-size 64]

Indexing reads, decodes and preprocesses the files, encodes them, makes previews, and writes rows with token states.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from speech_image_retrieval.cli.app import load_model
from speech_image_retrieval.evaluation.embedding import inference, inputs_for
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from speech_image_retrieval.retrieval.sources import FolderSource
from torch import nn


def main() -> None:
    """Time both, round by round, and print items a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--modality", choices=("image", "speech"), default="image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    model, processor = load_model(options.model)
    source = FolderSource(options.folder, options.modality)
    bare = _bare(model, processor, source, options.batch_size)

    def indexing() -> None:
        with tempfile.TemporaryDirectory() as folder:
            index = SpeechImageIndex.create(Path(folder, "index"), model, processor, options.modality)
            report = index.update_from(source, batch_size=options.batch_size)
            assert report.added == len(source), report.unreadable[:3]

    seconds: dict[str, list[float]] = {"bare model": [], "indexing": []}
    bare()
    for _ in range(options.rounds):
        for name, work in {"bare model": bare, "indexing": indexing}.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    for name, taken in seconds.items():
        rates = ", ".join(f"{len(source) / time_taken:.1f}" for time_taken in taken)
        print(f"{name:<10} {options.rounds * len(source) / sum(taken):8.1f} a second ({rates})")
    print(f"ratio      {sum(seconds['bare model']) / sum(seconds['indexing']):8.2f}")


def _bare(model: nn.Module, processor: Callable, source: FolderSource, batch_size: int) -> Callable[[], None]:
    # Recordings of similar length share a batch, as they do in an index.
    items = sorted(source, key=lambda item: item.size) if source.modality == "speech" else list(source)
    argument = "images" if source.modality == "image" else "audio"
    ready = []
    for start in range(0, len(items), batch_size):
        media = [item.medium for item in items[start : start + batch_size]]
        ready.append(inputs_for(model, processor(**{argument: media}, return_tensors="pt")))
    encode = model.get_image_features if source.modality == "image" else model.get_speech_features

    def run() -> None:
        with inference(model):
            for inputs in ready:
                torch.as_tensor(encode(**inputs).pooler_output.sum()).item()  # waits for an accelerator

    return run


if __name__ == "__main__":
    main()
