"""Equal folds of a gallery, as figures on a thousand pictures of COCO are reported: each by itself, then the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .embedding import EncodedImages, EncodedSpeech


class Fold(NamedTuple):
    """Some pictures of a gallery with all their captions.

    Attributes:
        captions: (captions of the fold,) int64, their places among all captions.
        image_of_caption: (captions of the fold,) int64, places in the pictures of the fold.
    """

    captions: Tensor
    speech: EncodedSpeech
    images: EncodedImages
    image_of_caption: Tensor


def equal_folds(speech: EncodedSpeech, images: EncodedImages, image_of_caption: Tensor, folds: int) -> list[Fold]:
    """Divide pictures in their order into so many equal folds.

    Raises:
        ValueError: that many equal folds cannot be had.
    """
    pictures = len(images.embeddings)
    check_folds(folds, pictures)
    if folds == 1:
        return [Fold(torch.arange(len(image_of_caption)), speech, images, image_of_caption)]
    size = pictures // folds
    return [_fold(speech, images, image_of_caption, start, start + size) for start in range(0, pictures, size)]


def check_folds(folds: int, pictures: int) -> None:
    """Refuse a number of folds that does not divide the pictures equally."""
    if folds < 1 or pictures % folds:
        raise ValueError(
            f"{pictures:,} pictures cannot be divided into {folds} equal folds: a larger fold would be a harder one."
        )


def mean_figures(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each number over the figures of folds; of `rerank_top_k`, a setting, the largest."""
    return {
        name: mean_figures([fold[name] for fold in figures])
        if isinstance(value, Mapping)
        else max(fold[name] for fold in figures)
        if name == "rerank_top_k"
        else sum(fold[name] for fold in figures) / len(figures)
        for name, value in figures[0].items()
    }


def _fold(speech: EncodedSpeech, images: EncodedImages, image_of_caption: Tensor, start: int, stop: int) -> Fold:
    captions = ((image_of_caption >= start) & (image_of_caption < stop)).nonzero().flatten()
    return Fold(
        captions,
        EncodedSpeech(speech.embeddings[captions], None if speech.states is None else speech.states.select(captions)),
        EncodedImages(images.embeddings[start:stop], None if images.states is None else images.states[start:stop]),
        image_of_caption[captions] - start,
    )
