"""Whether explanations tell the truth, on the trained demo.

python -m benchmarks.explanation [outputs/spoken_shapes/model] [outputs/spoken_shapes/corpus] [--pairs 200]

Three questions to explanations of test captions with their own pictures, beside Grad-CAM over the cross-attention as
ALBEF has it (Li et al. 2021, section 6.1):

deletion    How much does the matching logit fall when the most relevant quarter of the tokens is replaced by the mean
            token of all captions or pictures? And when a random or the least relevant quarter is?
pointing    Does the hottest cell of the picture lie in the box around a figure?
stretches   Does what a stretch of the first third of the speech made count lie in the half of the picture where the
            figure is that is named first, and of the last third where the other one is? A coin would be right in half.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track
from speech_image_retrieval import SpeechImageRetrievalModel, SpeechImageRetrievalProcessor
from speech_image_retrieval.corpora.scenes import RELATIONS
from speech_image_retrieval.corpora.schema import load_corpus
from speech_image_retrieval.evaluation.embedding import inference
from speech_image_retrieval.processing.media import load_image
from speech_image_retrieval.retrieval.explain_pair import explain_pair
from speech_image_retrieval.retrieval.explanation import Explanation
from speech_image_retrieval.retrieval.match_relevance import MatchedPair
from torch import Tensor

DELETED = 0.25
OFF_BACKGROUND = 40  # levels of the three channels together by which pixels of a figure differ from the background
THIRD = 1 / 3


class Relevance(NamedTuple):
    """Of one pair by one method: (tokens,) and (rows, columns)."""

    speech: np.ndarray
    image: np.ndarray


def main() -> None:
    """Explain, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="outputs/spoken_shapes/model")
    parser.add_argument("corpus", nargs="?", default="outputs/spoken_shapes/corpus")
    parser.add_argument("--pairs", type=int, default=200)
    options = parser.parse_args()
    # Grad-CAM needs attention that returns its weights.
    model = SpeechImageRetrievalModel.from_pretrained(options.model, attn_implementation="eager").requires_grad_(False)
    processor = SpeechImageRetrievalProcessor.from_pretrained(options.model)
    rows = load_corpus(Path(options.corpus))["test"].select(range(options.pairs))
    measure(model, processor, rows)


def measure(model: SpeechImageRetrievalModel, processor: SpeechImageRetrievalProcessor, rows: Any) -> None:
    """Print the three measures of both methods."""
    features = [_features(model, processor, row) for row in track(rows, "Encoding")]
    blank = (
        torch.cat([heard[0] for heard, _ in features]).mean(0),
        torch.cat([seen for _, seen in features]).mean((0, 2, 3)),
    )
    drops, pointed, placed = defaultdict(list), defaultdict(list), defaultdict(list)
    random = np.random.default_rng(0)
    for row, (heard, seen) in zip(track(rows, "Explaining"), features, strict=True):
        explanation = explain_pair(model, processor, row["audio"], row["image"])
        pair, cam = MatchedPair(model, heard, seen), _grad_cam(model, heard, seen)
        methods = {
            "integrated gradients": Relevance(explanation.speech, explanation.image),
            "Grad-CAM": Relevance(cam.sum((1, 2)), cam.sum(0)),
        }
        for name, relevance in methods.items():
            for side in Relevance._fields:
                ranked = getattr(relevance, side).ravel().argsort()[::-1]
                orders = {"most": ranked, "random": random.permutation(len(ranked)), "least": ranked[::-1]}
                for which, order in orders.items():
                    left = _without(pair, side, order, blank).matching_score()
                    drops[name, side, which].append(explanation.matching_score - left)
            pointed[name].append(_in_a_box(_hottest(relevance.image, explanation), _boxes(row)))
        for stretch in explanation.stretches:
            expected = _expected_half(row, (stretch.start + stretch.end) / 2 / explanation.edges[-1])
            if expected is None:
                continue
            within = (explanation.edges[:-1] >= stretch.start - 1e-6) & (explanation.edges[1:] <= stretch.end + 1e-6)
            for name, image in {"integrated gradients": stretch.image, "Grad-CAM": cam[within].sum(0)}.items():
                placed[name].append(_half(_hottest(image, explanation), row) == expected)
    _print(drops, pointed, placed, fmean(_share_of_boxes(row) for row in rows))


def _print(drops: dict, pointed: dict, placed: dict, chance: float) -> None:
    print(
        f"{'':<22}{'deletion: fall of the logit, most / random / least relevant':>62}{'pointing':>10}{'stretches':>11}"
    )
    for name in pointed:
        falls = "   ".join(
            f"{side} " + " / ".join(f"{fmean(drops[name, side, which]):.2f}" for which in ("most", "random", "least"))
            for side in Relevance._fields
        )
        print(f"{name:<22}{falls:>62}{100 * fmean(pointed[name]):>8.0f} %{100 * fmean(placed[name]):>9.0f} %")
    print(f"{'chance':<22}{'':>62}{100 * chance:>8.0f} %{50:>9} %   ({len(placed['Grad-CAM'])} stretches)")


def _features(
    model: SpeechImageRetrievalModel, processor: SpeechImageRetrievalProcessor, row: dict
) -> tuple[Tensor, Tensor]:
    inputs = processor(audio=[row["audio"]], images=[row["image"]])
    with inference(model):
        seen = model.get_image_backbone_features(inputs.pop("pixel_values"))
        return model.get_speech_backbone_features(**inputs)[0], seen


def _grad_cam(model: SpeechImageRetrievalModel, heard: Tensor, seen: Tensor) -> np.ndarray:
    """(tokens, rows, columns): positive products of cross-attention and its gradient, a mean over heads, over layers
    added up."""
    speech = model.get_speech_features(
        backbone_features=heard.clone(), attention_mask=torch.ones(heard.shape[:2], dtype=torch.bool)
    )
    image = model.get_image_features(backbone_features=seen.clone()).last_hidden_state
    states = speech.last_hidden_state.requires_grad_()
    encoded, weights = model.multimodal_encoder(states, speech.attention_mask, model.project_images(image))
    gradients = torch.autograd.grad(model.matching_head(encoded[0, 0]).squeeze(), weights)
    products = [(weight * gradient)[0].relu().mean(0) for weight, gradient in zip(weights, gradients, strict=True)]
    joint = torch.stack(products).sum(0)[1:, 1:].detach()  # without the [CLS] of both
    return joint.unflatten(1, tuple(seen.shape[2:])).numpy()


def _without(pair: MatchedPair, side: str, order: np.ndarray, blank: tuple[Tensor, Tensor]) -> MatchedPair:
    """The pair without the first quarter of its tokens in this order."""
    deleted = torch.from_numpy(order[: max(1, round(DELETED * len(order)))].copy())
    if side == "speech":
        speech = pair.speech.clone()
        speech[:, deleted] = blank[0]
        return replace(pair, speech=speech)
    image = pair.image.clone()
    image.flatten(2)[:, :, deleted] = blank[1][:, None]
    return replace(pair, image=image)


def _hottest(image: np.ndarray, explanation: Explanation) -> tuple[float, float]:
    """Across and down in the picture, the middle of the hottest cell."""
    row, column = np.unravel_index(image.argmax(), image.shape)
    left, top, right, bottom = explanation.cells
    return (
        left + (column + 0.5) * (right - left) / image.shape[1],
        top + (row + 0.5) * (bottom - top) / image.shape[0],
    )


def _vertical(row: dict) -> bool:
    return f"-{RELATIONS['vertical'][0]}-" in row["image_id"]


def _boxes(row: dict) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of the figure in either half of the picture."""
    pixels = np.asarray(load_image(row["image"])).astype(int)
    figures = np.abs(pixels - pixels[0, 0]).sum(2) > OFF_BACKGROUND
    boxes = []
    for half in np.array_split(np.arange(len(figures)), 2):
        alone = np.zeros_like(figures)
        kept = (half, slice(None)) if _vertical(row) else (slice(None), half)
        alone[kept] = figures[kept]
        down, across = alone.any(1).nonzero()[0], alone.any(0).nonzero()[0]
        boxes.append((across[0], down[0], across[-1] + 1, down[-1] + 1))
    return boxes


def _in_a_box(place: tuple[float, float], boxes: list[tuple[int, int, int, int]]) -> bool:
    return any(box[0] <= place[0] < box[2] and box[1] <= place[1] < box[3] for box in boxes)


def _share_of_boxes(row: dict) -> float:
    width, height = load_image(row["image"]).size
    return sum((right - left) * (bottom - top) for left, top, right, bottom in _boxes(row)) / (width * height)


def _half(place: tuple[float, float], row: dict) -> int:
    """0 for the upper or left half, 1 for the other."""
    return int(place[_vertical(row)] >= load_image(row["image"]).width / 2)


def _expected_half(row: dict, moment: float) -> int | None:
    """The half of the figure that is spoken of at this share of the speech; None between the two figures."""
    if THIRD < moment < 1 - THIRD:
        return None
    relation = RELATIONS["vertical" if _vertical(row) else "horizontal"][0].replace(" ", "-")
    first, second = (part.replace("-", " ") for part in row["image_id"].split(f"-{relation}-"))
    named_first = int(row["text"].index(first) > row["text"].index(second))
    return named_first if moment <= THIRD else 1 - named_first


if __name__ == "__main__":
    main()
