"""Processor: speech and images to the tensors of a SpeechImageRetrievalModel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, ProcessorMixin

from .media import MediaError, load_image, load_speech


class SpeechImageRetrievalProcessor(ProcessorMixin):
    """Joins a speech feature extractor and an image processor.

    Args:
        feature_extractor: the speech backbone's, for instance `Wav2Vec2FeatureExtractor` for HuBERT.
        image_processor: the vision backbone's, for instance `BlipImageProcessor` for BLIP-2.
        min_seconds: shorter speech is padded with silence to this length, which counts as speech.
        max_seconds: longer speech is refused, so that nothing is cut without being asked; `truncation=True` cuts.
        per_feature_normalization: give every mel bin zero mean and unit variance over each clip, which takes away
            loudness and the colour of voice and channel. Not for pretrained backbones that were trained without it.

    Raises:
        ValueError: per-feature normalisation of anything but a (bins, frames) spectrogram.
    """

    def __init__(
        self,
        feature_extractor,
        image_processor,
        min_seconds: float = 0.1,
        max_seconds: float = 30.0,
        per_feature_normalization: bool = False,
    ):
        super().__init__(feature_extractor, image_processor)
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.per_feature_normalization = per_feature_normalization
        if per_feature_normalization and self.time_axis == 0:
            raise ValueError(
                f"per_feature_normalization needs a log-mel spectrogram of (bins, frames), as WhisperFeatureExtractor "
                f"gives it; {type(feature_extractor).__name__} has a normalisation of its own."
            )

    @property
    def sampling_rate(self) -> int:
        """Samples a second that the model hears."""
        return self.feature_extractor.sampling_rate

    @property
    def time_axis(self) -> int:
        """Which axis of one clip's features is time: 1 for a (bins, frames) spectrogram, 0 for all others."""
        return 1 if hasattr(self.feature_extractor, "hop_length") else 0

    def __call__(
        self,
        audio: Any = None,
        images: Any = None,
        *,
        sampling_rate: int | None = None,
        truncation: bool = False,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Prepare speech, images or both.

        Args:
            audio: one recording or a list: paths, encoded bytes, arrays, or `datasets` audio dictionaries.
            images: one picture or a list: PIL images, paths, encoded bytes, arrays, or `datasets` image dictionaries.
            sampling_rate: rate of bare arrays in Hz; they are resampled from it.
            truncation: cut speech after `max_seconds` instead of refusing it.

        Returns:
            `input_values` (batch, samples) or `input_features`, `attention_mask`; `pixel_values` (batch, 3, h, w).

        Raises:
            MediaError: an item cannot be used; the message names it by its place in the batch.
        """
        if audio is None and images is None:
            raise ValueError("Nothing to process: pass audio=..., images=..., or both.")
        batch = {}
        if audio is not None:
            clips = [self._clip(item, i, sampling_rate, truncation) for i, item in enumerate(_as_list(audio))]
            batch.update(self._speech_features(clips, return_tensors))
        if images is not None:
            pictures = [_named(load_image, f"images[{i}]", item) for i, item in enumerate(_as_list(images))]
            batch.update(self.image_processor(pictures, return_tensors=return_tensors))
        return BatchFeature(batch)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that calls return."""
        return [*self.feature_extractor.model_input_names, "attention_mask", *self.image_processor.model_input_names]

    def _clip(self, item: Any, index: int, sampling_rate: int | None, truncation: bool) -> np.ndarray:
        clip = _named(load_speech, f"audio[{index}]", item, sampling_rate, self.sampling_rate)
        longest = round(self.max_seconds * self.sampling_rate)
        if len(clip) > longest and not truncation:
            raise MediaError(
                f"audio[{index}] lasts {len(clip) / self.sampling_rate:.1f} s; the limit is {self.max_seconds:g} s."
                " Pass truncation=True to cut it, or set processor.max_seconds."
            )
        clip = clip[:longest]
        return np.pad(clip, (0, max(0, round(self.min_seconds * self.sampling_rate) - len(clip))))

    def _speech_features(self, clips: list[np.ndarray], return_tensors: str | None) -> BatchFeature:
        if self.time_axis == 0:
            return self.feature_extractor(
                clips,
                sampling_rate=self.sampling_rate,
                padding=True,
                return_attention_mask=True,
                return_tensors=return_tensors,
            )
        # A spectrogram reflects the signal at its end. Half a window of silence behind every clip, masked, keeps the
        # reflection away from speech, so that a clip gives the same frames alone and in a batch.
        hop = self.feature_extractor.hop_length
        longest = max(map(len, clips)) + self.feature_extractor.n_fft // 2
        length = -(-longest // hop) * hop
        features = self.feature_extractor(
            [np.pad(clip, (0, length - len(clip))) for clip in clips],
            sampling_rate=self.sampling_rate,
            padding="longest",
            truncation=False,
            return_tensors="np",
        )
        frames = np.array([-(-len(clip) // hop) for clip in clips])
        mask = (np.arange(frames.max()) < frames[:, None]).astype(np.int64)
        # The frames of the added silence go again: with them, 30 s would exceed the positions of Whisper.
        features = {name: values[..., : frames.max()] for name, values in features.items()}
        if self.per_feature_normalization:
            features = {name: _normalize_per_feature(values, mask) for name, values in features.items()}
        return BatchFeature({**features, "attention_mask": mask}, tensor_type=return_tensors)


def _normalize_per_feature(features: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance for every bin of (batch, bins, frames), over the frames in the mask; 0 beyond."""
    mask = mask[:, None]
    count = mask.sum(axis=2, keepdims=True)
    centred = (features - (features * mask).sum(axis=2, keepdims=True) / count) * mask
    deviation = np.sqrt((centred**2).sum(axis=2, keepdims=True) / count)
    return (centred / (deviation + 1e-3)).astype(np.float32)  # a silent bin must not become noise


def _as_list(items: Any) -> Sequence[Any]:
    if isinstance(items, (list, tuple)) and not (
        items and np.isscalar(items[0]) and not isinstance(items[0], (str, bytes))
    ):
        if not items:
            raise ValueError("The list of items to process is empty.")
        return items
    return [items]


def _named(load, name: str, item: Any, *args: Any) -> Any:
    try:
        return load(item, *args)
    except MediaError as error:
        raise MediaError(f"{name}: {error}") from error


__all__ = ["SpeechImageRetrievalProcessor"]
