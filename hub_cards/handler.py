"""Answers requests of an Inference Endpoint. Lies in the model's repository as `handler.py`, beside the pipeline.

Whatever is raised here, the endpoint's server answers as status 400 with `{"error": message}`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

TASK = "speech-image-retrieval"
_MOST_ANSWERS = 100
_MOST_RERANKED = 128
_DEFAULTS = {"task": "retrieve", "top_k": 5, "rerank_top_k": 32, "function_to_apply": "softmax"}
_TASKS = ("retrieve", "embed", "match")
_MEDIA = ("audio", "image")
_GALLERIES = {"image": "gallery/images", "speech": "gallery/speech"}
# What audio and image classification may do to logits, by the names that they give it.
_FUNCTIONS = {"softmax": partial(torch.softmax, dim=0), "sigmoid": torch.sigmoid, "none": torch.clone}


class BadRequest(ValueError):
    """A request that cannot be answered; the message says why, to the person who sent it."""


class EndpointHandler:
    """Searches the galleries that the model ships, embeds, and scores pairs.

    Three contracts, told apart by `inputs`:

    - bytes, base64 or a picture: that of audio and image classification. A recording is answered with the pictures of
      `gallery/images`, a picture with the recordings of `gallery/speech`: `[{"label", "score"}, ...]`, labels being
      captions or names and scores adding up to 1 over all that were compared; unless `parameters.function_to_apply` is
      "sigmoid" or "none" instead of "softmax".
    - `{"audio": base64}` or `{"image": base64}`: `parameters.task` "retrieve" gives the pipeline's answers, "embed"
      `{"audio": [...]}` or `{"image": [...]}`, or both.
    - both, with "match": `{"score", "match"}`, similarity and matching logit, the higher the better they fit.

    Files are given by content, never by path or address, of at most 10 MB, 30 s and 40 megapixels. Parameters are
    `task`, `top_k` (1 to 100), `rerank_top_k` (0 to 128) and `function_to_apply`; null is as if one were not given.

    Raises:
        ValueError: a gallery that lies in the folder is damaged, or another model's.
    """

    def __init__(self, path: str = ""):
        folder = path or str(Path(__file__).parent)
        # The code of this repository is trusted already: this file is part of it.
        self._pipe = pipeline(TASK, model=folder, trust_remote_code=True)
        self._limits = get_class_from_dynamic_module("uploads.UploadLimits", folder)()
        self._read_recording = get_class_from_dynamic_module("uploads.read_recording", folder)
        self._read_picture = get_class_from_dynamic_module("uploads.read_picture", folder)
        self._modality_of = get_class_from_dynamic_module("pipeline_inputs.modality_of", folder)
        # Read now, so that whoever starts the endpoint hears of damage, and no visitor that there is nothing to find.
        self._galleries = {
            modality: self._pipe.shipped_gallery(modality)
            for modality, place in _GALLERIES.items()
            if Path(folder, place).is_dir()
        }

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]] | dict[str, Any]:
        """
        Args:
            data: `inputs` and, optionally, `parameters`; see the class.

        Raises:
            ValueError: not a request that can be answered; the message is for the person who sent it.
        """
        if not isinstance(data, Mapping) or data.get("inputs") is None:
            raise BadRequest("The request needs 'inputs': bytes, base64, or {'audio': base64} or {'image': base64}.")
        parameters = _parameters(data.get("parameters"))
        task, ranking = parameters["task"], {name: parameters[name] for name in ("top_k", "rerank_top_k")}
        inputs = data["inputs"]
        if not isinstance(inputs, Mapping):
            if task != "retrieve":
                raise BadRequest(f"The task {task!r} needs inputs like {{'audio': base64, 'image': base64}}.")
            return self._classify(self._read(inputs), _FUNCTIONS[parameters["function_to_apply"]], **ranking)
        media = self._media(inputs)
        if task == "embed":
            return {name: self._embed(medium) for name, medium in media.items()}
        if task == "match":
            if len(media) != 2:
                raise BadRequest("The task 'match' compares a recording and a picture: give 'audio' and 'image'.")
            (answer,) = self._pipe(media["audio"], candidates=[media["image"]], top_k=1, rerank_top_k=1)
            return {name: answer[name] for name in ("score", "match")}
        if len(media) != 1:
            raise BadRequest("The task 'retrieve' has one query: give 'audio' or 'image'. Pairs are for 'match'.")
        (medium,) = media.values()
        answers = self._retrieve(medium, **ranking)
        return [{name: answer[name] for name in ("id", "label", "score", "match")} for answer in answers]

    def _retrieve(self, query: Any, top_k: int, rerank_top_k: int) -> list[dict[str, Any]]:
        can_rerank = self._gallery_for(query).states is not None
        return self._pipe(query, top_k=top_k, rerank_top_k=rerank_top_k if can_rerank else 0)

    def _gallery_for(self, query: Any) -> Any:
        wanted = "image" if self._modality_of(query) == "speech" else "speech"
        if wanted not in self._galleries:
            kind, sent = ("pictures", "a recording") if wanted == "image" else ("recordings", "a picture")
            raise BadRequest(f"This model ships no gallery of {kind}. Of {sent} it answers 'embed' and 'match'.")
        return self._galleries[wanted]

    def _classify(
        self, query: Any, function: Callable[[Tensor], Tensor], top_k: int, rerank_top_k: int
    ) -> list[dict[str, Any]]:
        gallery = self._gallery_for(query)
        answers = self._retrieve(query, len(gallery), rerank_top_k)
        # Those that were not re-ranked have no score to be compared with those that were.
        answers = [answer for answer in answers if answer["match"] is not None] or answers
        logits = torch.tensor([self._logit(answer, gallery.score_rule) for answer in answers])
        scores = function(logits).tolist()
        return [{"label": answer["label"], "score": score} for answer, score in zip(answers, scores, strict=True)][
            :top_k
        ]

    def _logit(self, answer: Mapping[str, Any], score_rule: str) -> float:
        """What the answer was ordered by, as a loss reads it."""
        similarity, model = answer["score"], self._pipe.model
        if answer["match"] is None:
            return similarity / model.temperature.item()
        return answer["match"] + (similarity / model.rerank_temperature if score_rule == "sim+sic" else 0)

    def _embed(self, medium: Any) -> list[float]:
        return self._pipe.encode([medium], keep_states=False).embeddings[0].tolist()

    def _media(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        unknown = sorted(str(name) for name in inputs if name not in _MEDIA)
        if unknown or not inputs:
            raise BadRequest(f"'inputs' has 'audio', 'image' or both; this one has {unknown or 'nothing'}.")
        media = {name: self._read(inputs[name]) for name in _MEDIA if name in inputs}
        for name, medium in media.items():
            if self._modality_of(medium) != ("speech" if name == "audio" else "image"):
                raise BadRequest(f"What 'inputs' has as {name!r} is none.")
        return media

    def _read(self, sent: Any) -> Any:
        """A recording or a picture within the limits, told apart by content."""
        if isinstance(sent, Image.Image):  # the endpoint's server opens what is sent as image/*
            if sent.width * sent.height > self._limits.max_megapixels * 1e6:
                raise BadRequest(f"At most {self._limits.max_megapixels:g} megapixels are taken. Make it smaller.")
            return sent
        if isinstance(sent, str):
            if len(sent) > self._limits.max_bytes * 4 / 3 + 4:
                raise BadRequest(f"At most {self._limits.max_megabytes:g} MB are taken.")
            try:
                sent = base64.b64decode("".join(sent.split()), validate=True)
            except (binascii.Error, ValueError):
                raise BadRequest(
                    "What was sent is no base64. Files are sent by content, not by path, and without 'data:...,'."
                ) from None
        if not isinstance(sent, bytes):
            raise BadRequest(f"A recording or a picture is sent as bytes or base64, not as {type(sent).__name__}.")
        return (self._read_picture if self._modality_of(sent) == "image" else self._read_recording)(sent, self._limits)


def _parameters(given: Any) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise BadRequest("'parameters' must be an object.")
    values = {**_DEFAULTS, **{name: value for name, value in (given or {}).items() if value is not None}}
    unknown = sorted(str(name) for name in values if name not in _DEFAULTS)
    if unknown:
        raise BadRequest(f"There is no parameter {unknown[0]!r}; there are {', '.join(_DEFAULTS)}.")
    for name, known in (("task", _TASKS), ("function_to_apply", tuple(_FUNCTIONS))):
        if values[name] not in known:
            raise BadRequest(f"There is no {name} {values[name]!r}; there are {', '.join(known)}.")
    for name, low, high in (("top_k", 1, _MOST_ANSWERS), ("rerank_top_k", 0, _MOST_RERANKED)):
        if type(values[name]) is not int or not low <= values[name] <= high:
            raise BadRequest(f"{name!r} must be a whole number from {low} to {high}.")
    return values
