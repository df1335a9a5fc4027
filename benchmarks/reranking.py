"""Pairs of speech and picture re-ranked in a second, beside the loop of ALBEF's evaluation, paired in one run.

python -m benchmarks.reranking MODEL --corpus spoken_shapes [--rerank-top-k 32] [--queries 500] [--rounds 3]

ALBEF's loop (`Retrieval.py`, `evaluation`) takes one query at a time and one direction after the other: it repeats the
query's states for each of its candidates, pads all speech to the longest clip of the corpus, and computes every token
of every layer. Both score the same candidates in float32; logits are compared. The first round warms up.
"""

from __future__ import annotations

import argparse

import torch
from speech_image_retrieval.cli.app import load_model
from speech_image_retrieval.cli.corpus import load_split
from speech_image_retrieval.evaluation import distinct_images, encode_images, encode_speech, rerank, score_pairs
from speech_image_retrieval.evaluation.embedding import inference
from torch import Tensor, nn

from benchmarks.timing import timed


def main() -> None:
    """Time single directions and the whole of both, and print pairs a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--rerank-top-k", type=int, default=32)
    parser.add_argument("--queries", type=int, default=500, help="captions of the test split, with their pictures")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model, processor = load_model(options.model)
    rows = load_split(options.corpus, "test")
    rows = rows.select(range(min(options.queries, len(rows))))
    first_rows, _ = distinct_images(rows["image_id"][:])
    speech = encode_speech(model, processor, rows["audio"])
    images = encode_images(model, processor, rows.select(first_rows)["image"])
    coarse = speech.embeddings @ images.embeddings.T
    padded, mask = speech.states.padded(torch.arange(len(speech.states)))
    lengths = speech.states.lengths
    print(
        f"{len(padded)} captions of {lengths.float().mean():.1f} tokens, {int(lengths.max())} at most; "
        f"{len(images.states)} pictures of {images.states.shape[1]} tokens"
    )
    directions = _directions(coarse, options.rerank_top_k)

    def albef(speech_places: Tensor, image_places: Tensor) -> Tensor:
        of_queries = zip(speech_places, image_places, strict=True)
        with inference(model):
            return torch.stack([_one_query(model, padded[s], mask[s], images.states[i]) for s, i in of_queries])

    def ours(speech_places: Tensor, image_places: Tensor) -> Tensor:
        logits = score_pairs(model, speech.states, images.states, speech_places.flatten(), image_places.flatten())
        return logits.view(speech_places.shape)

    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in (*directions, "both directions")}
    for number in range(options.rounds + 1):
        whole = 0.0
        for name, pairs in directions.items():
            slow, reference = timed(albef, *pairs)
            fast, logits = timed(ours, *pairs)
            whole += slow
            taken[name].append((slow, fast))
            if not number:
                print(f"{name}: logits at most {float((logits - reference).abs().max()):.1e} apart")
        fast, _ = timed(rerank, model, coarse, speech.states, images.states, options.rerank_top_k)
        taken["both directions"].append((whole, fast))
    count = {name: pairs[0].numel() for name, pairs in directions.items()}
    count["both directions"] = sum(count.values())
    for name, rounds in taken.items():
        slow, fast = (count[name] * options.rounds / sum(seconds) for seconds in zip(*rounds[1:], strict=True))
        print(f"{name}: {fast:.0f} pairs/s against {slow:.0f} one query at a time, ratio {fast / slow:.2f}")


def _directions(coarse: Tensor, top_k: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each direction the places of speech and of pictures, (queries, candidates) both."""
    top = {name: of.topk(min(top_k, of.shape[1]), dim=1).indices for name, of in (("s", coarse), ("i", coarse.T))}
    own = {name: torch.arange(len(of))[:, None].expand_as(of) for name, of in top.items()}
    return {"speech to image": (own["s"], top["s"]), "image to speech": (top["i"], own["i"])}


def _one_query(model: nn.Module, speech: Tensor, mask: Tensor, images: Tensor) -> Tensor:
    """(candidates,) logits; each argument has a row for each candidate."""
    states, _ = model.multimodal_encoder(speech, mask, model.project_images(images))
    return model.matching_head(states[:, 0]).squeeze(-1).float()


if __name__ == "__main__":
    main()
