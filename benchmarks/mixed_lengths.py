"""Clips of mixed lengths encoded in a second: batches of similar length beside batches in the order of arrival.

python -m benchmarks.mixed_lengths MODEL --corpus spoken_shapes [--clips 512] [--batch-size 64] [--rounds 3]

The clips are recordings of the corpus joined and cut to lengths drawn evenly between one second and the longest that
the processor takes. The reference pads each batch of the order of arrival to its longest clip. Both include what the
processor does; embeddings are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch
from datasets import Dataset
from speech_image_retrieval.cli.app import load_model
from speech_image_retrieval.cli.corpus import load_split
from speech_image_retrieval.evaluation import encode_speech
from speech_image_retrieval.evaluation.embedding import inference, inputs_for
from speech_image_retrieval.processing.media import load_speech
from torch import Tensor, nn


def main() -> None:
    """Time both in turns, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model, processor = load_model(options.model)
    clips = _mixed_clips(load_split(options.corpus, "test"), processor.sampling_rate, processor.max_seconds, options)
    seconds = np.array([len(clip["array"]) for clip in clips]) / processor.sampling_rate
    print(f"{len(clips)} clips of {seconds.min():.1f} to {seconds.max():.1f} s, {seconds.mean():.1f} s on average")
    taken: list[tuple[float, float]] = []
    for number in range(options.rounds + 1):
        started = time.perf_counter()
        naive = _naive(model, processor, clips, options.batch_size)
        middle = time.perf_counter()
        ours = encode_speech(model, processor, clips, batch_size=options.batch_size).embeddings
        ended = time.perf_counter()
        if number:  # the first round warms up
            taken.append((middle - started, ended - middle))
    slow, fast = (median(seconds) for seconds in zip(*taken, strict=True))
    ratio = median(of_naive / own for of_naive, own in taken)
    apart = float((ours - naive).abs().max())
    print(
        f"{len(clips) / fast:.0f} clips/s against {len(clips) / slow:.0f} in the order of arrival: {ratio:.2f} times "
        f"over {len(taken)} rounds; embeddings at most {apart:.1e} apart"
    )


def _mixed_clips(rows: Dataset, rate: int, longest: float, options: argparse.Namespace) -> list[dict[str, object]]:
    generator = np.random.default_rng(0)
    spoken = [load_speech(rows[row]["audio"], None, rate) for row in range(min(len(rows), 200))]
    clips = []
    for seconds in generator.uniform(1.0, longest, options.clips):
        parts, samples = [], round(seconds * rate)
        while sum(map(len, parts)) < samples:
            parts.append(spoken[generator.integers(len(spoken))])
        clips.append({"array": np.concatenate(parts)[:samples], "sampling_rate": rate})
    return clips


def _naive(model: nn.Module, processor: object, clips: Sequence[dict[str, object]], batch_size: int) -> Tensor:
    embeddings = []
    with inference(model):
        for start in range(0, len(clips), batch_size):
            inputs = processor(audio=list(clips[start : start + batch_size]), return_tensors="pt")
            embeddings.append(model.get_speech_features(**inputs_for(model, inputs)).pooler_output.float().cpu())
    return torch.cat(embeddings)


if __name__ == "__main__":
    main()
