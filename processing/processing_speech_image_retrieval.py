"""Processor: speech and images to the tensors of a SpeechImageRetrievalModel."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BatchFeature, ProcessorMixin

from .media import MediaError, load_image, load_speech
from .pretrained import load_config, load_feature_extractor, load_image_processor, seconds_of_positions

# A longer recording is no caption of a picture, but would fill the memory. Flickr8k Audio has one of 323.5 s, which is
# 41 chunks of 8 s.
MAX_CHUNKS = 64


class SpeechImageRetrievalProcessor(ProcessorMixin):
    """Joins a speech feature extractor and an image processor.

    A clip of more than `max_seconds` is split into the fewest consecutive chunks that are not longer, of nearly equal
    length. Rows of the speech tensors are then chunks, and `chunk_clips` says which clip each belongs to; the model
    hears the chunks one by one and joins their frames again. A clip is normalised as a whole, also where it is split:
    the chunks of a clip are parts of the features that the whole has. More than 64 chunks are refused.

    Args:
        feature_extractor: the speech backbone's: `Wav2Vec2FeatureExtractor` (HuBERT, wav2vec 2.0, WavLM, data2vec),
            `WhisperFeatureExtractor`, or `SeamlessM4TFeatureExtractor` (wav2vec2-BERT).
        image_processor: the vision backbone's, for instance `BlipImageProcessor` for BLIP-2.
        min_seconds: shorter speech is padded with silence to this length, which counts as speech. HuBERT's masking in
            training needs 10 frames, 0.205 s.
        max_seconds: longer speech is split. Whisper has positions for 30 s.
        per_feature_normalization: give every mel bin zero mean and unit variance over each clip, which takes away
            loudness and the colour of voice and channel. Not for pretrained backbones that were trained without it.

    Raises:
        ValueError: per-feature normalisation of anything but a (bins, frames) spectrogram, or chunks could become
            shorter than `min_seconds`.
    """

    def __init__(
        self,
        feature_extractor,
        image_processor,
        min_seconds: float = 0.25,
        max_seconds: float = 30.0,
        per_feature_normalization: bool = False,
    ):
        super().__init__(feature_extractor, image_processor)
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.per_feature_normalization = per_feature_normalization
        if max_seconds < 2 * min_seconds:
            raise ValueError(
                f"max_seconds={max_seconds:g} must be at least twice min_seconds={min_seconds:g}, so that no chunk of "
                "a longer clip is shorter than that."
            )
        if per_feature_normalization and self.time_axis == 0:
            raise ValueError(
                f"per_feature_normalization needs a log-mel spectrogram of (bins, frames), as WhisperFeatureExtractor "
                f"gives it; {type(feature_extractor).__name__} has a normalisation of its own."
            )

    @classmethod
    def from_backbones(
        cls,
        speech: str | Path,
        vision: str | Path,
        *,
        feature_extractor: dict[str, Any] | None = None,
        image_processor: dict[str, Any] | None = None,
        speech_hub_options: dict[str, Any] | None = None,
        vision_hub_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> SpeechImageRetrievalProcessor:
        """The processor that two pretrained backbones need.

        Args:
            speech, vision: Hub names or local folders. One without a preprocessor configuration gets what is usual
                for its model type.
            feature_extractor, image_processor: other values of their options, for instance
                `image_processor={"size": {"height": 112, "width": 112}, "do_center_crop": False}`; with `type`, a
                class name of transformers, all the options of that class, which then replaces the backbone's own.
            speech_hub_options, vision_hub_options: passed to `from_pretrained`, for instance `revision` or `token`.
            **options: those of the constructor. `max_seconds` is what the speech backbone has positions for, and at
                most 30.

        Raises:
            ValueError: an option does not exist; or a backbone cannot be read, is no speech or image encoder, or
                cannot take what the processor would give it: the number of mel bins, the size of pictures (a multiple
                of its patches), or clips of `max_seconds`.
        """
        known = list(inspect.signature(cls.__init__).parameters)[1:]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(
                    f"{cls.__name__} has no option {name!r}." + (f" Did you mean {near[0]!r}?" if near else "")
                )
        speech, vision = str(speech), str(vision)
        speech_hub, vision_hub = speech_hub_options or {}, vision_hub_options or {}
        speech_config, vision_config = load_config(speech, **speech_hub), load_config(vision, **vision_hub)
        extractor = load_feature_extractor(speech, speech_config, feature_extractor, **speech_hub)
        longest = seconds_of_positions(speech_config, extractor)
        options.setdefault("max_seconds", min(30.0, longest))
        if options["max_seconds"] > longest:
            raise ValueError(
                f"max_seconds={options['max_seconds']:g} is more than the {longest:g} s that {speech} has positions "
                f"for: pass max_seconds={longest:g} or less; longer speech is split."
            )
        return cls(extractor, load_image_processor(vision, vision_config, image_processor, **vision_hub), **options)

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
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Prepare speech, images or both.

        Args:
            audio: one recording or a list: paths, encoded bytes, arrays, or `datasets` audio dictionaries.
            images: one picture or a list: PIL images, paths, encoded bytes, arrays, or `datasets` image dictionaries.
            sampling_rate: rate of bare arrays in Hz; they are resampled from it.

        Returns:
            `input_values` (chunks, samples) or `input_features` (chunks, bins, frames) or (chunks, frames, features),
            and `attention_mask` (chunks, samples or frames) int64, 1 on speech and 0 on padding; a clip is one chunk
            unless it was split. If any was, `chunk_clips` (chunks,) int64, the place of each chunk's clip in `audio`,
            ascending. `pixel_values` (images, 3, height, width).

        Raises:
            MediaError: an item cannot be used, or speech is too long; the message names it by its place in the batch.
        """
        if audio is None and images is None:
            raise ValueError("Nothing to process: pass audio=..., images=..., or both.")
        batch = {}
        if audio is not None:
            clips = [self._clip(item, i, sampling_rate) for i, item in enumerate(_as_list(audio))]
            batch.update(self._speech_features(clips, return_tensors))
        if images is not None:
            pictures = [_named(load_image, f"images[{i}]", item) for i, item in enumerate(_as_list(images))]
            batch.update(self.image_processor(pictures, return_tensors=return_tensors))
        return BatchFeature(batch)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that calls return; `chunk_clips` is one more where a clip was split."""
        speech = self.feature_extractor.model_input_names[0]
        return [speech, "attention_mask", *self.image_processor.model_input_names]

    def _clip(self, item: Any, index: int, sampling_rate: int | None) -> np.ndarray:
        clip = _named(load_speech, f"audio[{index}]", item, sampling_rate, self.sampling_rate)
        if self._chunk_count(clip) > MAX_CHUNKS:
            raise MediaError(
                f"audio[{index}] lasts {len(clip) / self.sampling_rate:.1f} s; the limit is "
                f"{MAX_CHUNKS * self.max_seconds:g} s ({MAX_CHUNKS} times max_seconds). Cut it into shorter ones."
            )
        return np.pad(clip, (0, max(0, round(self.min_seconds * self.sampling_rate) - len(clip))))

    def _chunk_count(self, clip: np.ndarray) -> int:
        return -(-len(clip) // round(self.max_seconds * self.sampling_rate))

    def _speech_features(self, clips: list[np.ndarray], return_tensors: str | None) -> BatchFeature:
        # Clip by clip: padding never enters a clip's features, so it gives the same ones alone and in a batch.
        axis = self.time_axis
        chunks, owners = [], []
        for index, clip in enumerate(clips):
            parts = np.array_split(self._features(clip), self._chunk_count(clip), axis=axis)
            chunks += parts
            owners += [index] * len(parts)
        lengths = np.array([chunk.shape[axis] for chunk in chunks])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        batch = {self.feature_extractor.model_input_names[0]: _stack(chunks, axis), "attention_mask": mask}
        if len(chunks) > len(clips):
            batch["chunk_clips"] = np.array(owners, dtype=np.int64)
        return BatchFeature(batch, tensor_type=return_tensors)

    def _features(self, clip: np.ndarray) -> np.ndarray:
        """(samples,), (bins, frames) or (frames, features) of one whole clip, without padding."""
        name = self.feature_extractor.model_input_names[0]
        if self.time_axis == 0:
            output = self.feature_extractor(
                [clip],
                sampling_rate=self.sampling_rate,
                padding=True,
                return_attention_mask=True,
                return_tensors="np",
            )
            # SeamlessM4TFeatureExtractor joins two frames to one, and masks the one that an odd frame makes.
            return output[name][0][output["attention_mask"][0].astype(bool)]
        # A spectrogram reflects the signal at its end. Half a window of silence keeps the reflection away from speech;
        # its frames go again: with them, 30 s would exceed the positions of Whisper.
        hop = self.feature_extractor.hop_length
        length = -(-(len(clip) + self.feature_extractor.n_fft // 2) // hop) * hop
        features = self.feature_extractor(
            [np.pad(clip, (0, length - len(clip)))],
            sampling_rate=self.sampling_rate,
            padding="longest",
            truncation=False,
            return_tensors="np",
        )[name][0, :, : -(-len(clip) // hop)]
        return _normalize_per_feature(features) if self.per_feature_normalization else features


def _normalize_per_feature(features: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance for every bin of (bins, frames)."""
    centred = features - features.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True))
    return (centred / (deviation + 1e-3)).astype(np.float32)  # a silent bin must not become noise


def _stack(chunks: list[np.ndarray], axis: int) -> np.ndarray:
    """(chunks, ...) with zeros behind the shorter ones."""
    longest = max(chunk.shape[axis] for chunk in chunks)
    padding = [[(0, longest - chunk.shape[axis] if i == axis else 0) for i in range(chunk.ndim)] for chunk in chunks]
    return np.stack([np.pad(chunk, pad) for chunk, pad in zip(chunks, padding, strict=True)])


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
