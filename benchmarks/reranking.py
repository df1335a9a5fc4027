"""Pairs of speech and picture re-ranked in a second, beside the loop of ALBEF's evaluation, paired in one run.

python -m benchmarks.reranking MODEL --corpus spoken_shapes [--rerank-top-k 32] [--blocks 6]

ALBEF's loop (`Retrieval.py`, `evaluation`) takes one query at a time: it repeats the query's states for each of its
candidates, pads all speech to the longest clip of the corpus, and computes every token of every layer. Both score the
same candidates of the same queries, a block of queries in turn; their logits are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from speech_image_retrieval.cli.app import load_model
from speech_image_retrieval.cli.corpus import load_split
from speech_image_retrieval.evaluation import distinct_images, encode_images, encode_speech, score_pairs
from speech_image_retrieval.evaluation.embedding import inference
from torch import Tensor, nn

_BLOCK = 64  # queries


def main() -> None:
    """Time both directions of both and print pairs a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--rerank-top-k", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=6, help=f"blocks of {_BLOCK} queries")
    options = parser.parse_args()
    model, processor = load_model(options.model)
    rows = load_split(options.corpus, "test")
    first_rows, _ = distinct_images(rows["image_id"][:])
    speech = encode_speech(model, processor, rows["audio"])
    images = encode_images(model, processor, rows.select(first_rows)["image"])
    padded, mask = speech.states.padded(torch.arange(len(speech.states)))
    coarse = speech.embeddings @ images.embeddings.T

    def one_query_at_a_time(speech_places: Tensor, image_places: Tensor) -> Tensor:
        of_queries = zip(speech_places, image_places, strict=True)
        return torch.stack([_albef(model, padded[s], mask[s], images.states[i]) for s, i in of_queries])

    def all_pairs(speech_places: Tensor, image_places: Tensor) -> Tensor:
        logits = score_pairs(model, speech.states, images.states, speech_places.flatten(), image_places.flatten())
        return logits.view(speech_places.shape)

    shape = f"{padded.shape[1]} speech tokens at most, {images.states.shape[1]} image tokens"
    print(f"{len(padded)} captions, {len(images.states)} pictures; {shape}")
    for direction, scores in {"speech to image": coarse, "image to speech": coarse.T}.items():
        candidates = scores.topk(min(options.rerank_top_k, scores.shape[1]), dim=1).indices
        queries = torch.arange(len(scores))[:, None].expand_as(candidates)
        pairs = (queries, candidates) if direction == "speech to image" else (candidates, queries)
        _compare(direction, one_query_at_a_time, all_pairs, pairs, options.blocks)


def _albef(model: nn.Module, speech: Tensor, mask: Tensor, images: Tensor) -> Tensor:
    """(candidates,) logits of one query; each argument has a row for each candidate."""
    with inference(model):
        states, _ = model.multimodal_encoder(speech, mask, model.project_images(images))
        return model.matching_head(states[:, 0]).squeeze(-1).float()


def _compare(
    direction: str,
    reference: Callable[[Tensor, Tensor], Tensor],
    ours: Callable[[Tensor, Tensor], Tensor],
    pairs: tuple[Tensor, Tensor],
    blocks: int,
) -> None:
    seconds, count, apart = {reference: 0.0, ours: 0.0}, 0, 0.0
    for number, block in enumerate(zip(*(places.split(_BLOCK) for places in pairs), strict=True)):
        if number > blocks:
            break
        logits = []
        for method in seconds:
            started = time.perf_counter()
            logits.append(method(*block))
            if number:  # the first block warms up
                seconds[method] += time.perf_counter() - started
        count += block[0].numel() if number else 0
        apart = max(apart, float((logits[0] - logits[1]).abs().max()))
    slow, fast = count / seconds[reference], count / seconds[ours]
    print(f"{direction}: {fast:.0f} pairs/s against {slow:.0f} one query at a time, ratio {fast / slow:.2f}")
    print(f"{'':17}logits at most {apart:.1e} apart")


if __name__ == "__main__":
    main()
