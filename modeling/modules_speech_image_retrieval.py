"""Modules of sentence-transformers: an exported folder as its SentenceTransformer or its CrossEncoder.

`modules.json` in the folder names one of the two classes. Nothing else imports this file, so that all else works
without sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin


class SpeechImageModule(InputModule):
    """What both share: the model and its processor, in the folder's root."""

    forward_kwargs = {"sampling_rate"}  # noqa: RUF012 - of bare arrays; the base class reads a plain set

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        super().__init__()
        self.model = model
        self.processor = processor

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> SpeechImageModule:
        """Called by sentence-transformers, with the arguments that its user gave."""
        hub = {
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        model = AutoModel.from_pretrained(model_name_or_path, **{**hub, **(model_kwargs or {})})
        processor = AutoProcessor.from_pretrained(model_name_or_path, **{**hub, **(processor_kwargs or {})})
        return cls(model, processor)

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Weights as safetensors, configuration and processor."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    def speech_features(self, features: Mapping[str, Tensor], **options: Any) -> Any:
        """The encoder's output for the speech of a batch."""
        names = ("input_values", "input_features", "attention_mask", "chunk_clips")
        return self.model.get_speech_features(
            **{name: self._typed(features[name]) for name in names if name in features}, **options
        )

    def image_features(self, features: Mapping[str, Tensor], **options: Any) -> Any:
        """The encoder's output for the pictures of a batch."""
        return self.model.get_image_features(self._typed(features["pixel_values"]), **options)

    def _typed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor


class SpeechImageEmbedder(SpeechImageModule):
    """Recordings or pictures to embeddings of unit length: for SentenceTransformer."""

    @property
    def modalities(self) -> list[str]:
        """What `encode` takes; one call takes one of the two."""
        return ["audio", "image"]

    def get_embedding_dimension(self) -> int:
        """Width of an embedding."""
        return self.model.config.projection_dim

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, sampling_rate: int | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Features of recordings (paths, `{"array", "sampling_rate"}`, `{"audio": ...}`) or of pictures (paths, PIL
        images, arrays, `{"image": ...}`). `sampling_rate` is that of bare arrays in Hz; a prompt means nothing.

        Raises:
            ValueError: an input is neither, or the two are mixed.
        """
        kinds = {_kind(item) for item in inputs}
        if len(kinds) > 1:
            raise ValueError("Recordings and pictures are mixed: encode them in two calls.")
        items = [_content(item) for item in inputs]
        arguments = {"audio": items} if kinds == {"audio"} else {"images": items}
        return dict(self.processor(**arguments, sampling_rate=sampling_rate, return_tensors="pt"))

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Adds `sentence_embedding` (batch, projection) float32."""
        encode = self.image_features if "pixel_values" in features else self.speech_features
        features["sentence_embedding"] = encode(features, pooled_only=True).pooler_output
        return features


class SpeechImagePairScorer(SpeechImageModule):
    """Pairs of a recording and a picture, in either order, to matching logits: for CrossEncoder."""

    @property
    def modalities(self) -> list[str]:
        """What may stand in a pair."""
        return ["audio", "image"]

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, sampling_rate: int | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Features of the distinct recordings and pictures of the pairs, and which of them each pair has.

        Raises:
            ValueError: a pair is not of a recording and a picture.
        """
        sides: dict[str, list[Any]] = {"audio": [], "image": []}
        for pair in inputs:
            by_kind = {_kind(item): item for item in pair}
            if by_kind.keys() != sides.keys():
                raise ValueError("A pair is one recording and one picture; here both are of one kind.")
            for kind, item in by_kind.items():
                sides[kind].append(_content(item))
        recordings, speech_rows = _distinct(sides["audio"])
        pictures, image_rows = _distinct(sides["image"])
        features = self.processor(audio=recordings, images=pictures, sampling_rate=sampling_rate, return_tensors="pt")
        return {**features, "speech_rows": speech_rows, "image_rows": image_rows}

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Adds `scores` (pairs, 1) float32."""
        speech, image = self.speech_features(features), self.image_features(features)
        logits = self.model.match(
            speech.last_hidden_state,
            speech.attention_mask,
            image.last_hidden_state,
            image_rows=features["image_rows"],
            speech_rows=features["speech_rows"],
        )
        features["scores"] = logits.unsqueeze(1)
        return features


def _kind(item: Any) -> str:
    kind = infer_modality(item)
    if kind not in ("audio", "image"):
        raise ValueError(
            f"This model hears recordings and sees pictures, but {item!r:.80} is taken for {kind}. A file must exist "
            'and have a known suffix; {"audio": path} or {"image": path} says what it is.'
        )
    return kind


def _content(item: Any) -> Any:
    """The item for the processor, out of `{"audio": ...}` or `{"image": ...}`."""
    if isinstance(item, Mapping) and len(item) == 1:
        (item,) = item.values()
    return item


def _distinct(items: list[Any]) -> tuple[list[Any], Tensor]:
    """Each object once, and (items,) int64, the place of every item among them. `rank` pairs one query with all."""
    places: dict[int, int] = {}
    for item in items:
        places.setdefault(id(item), len(places))
    first = {id(item): item for item in reversed(items)}
    return [first[key] for key in places], torch.tensor([places[id(item)] for item in items])


__all__ = ["SpeechImageEmbedder", "SpeechImagePairScorer"]
