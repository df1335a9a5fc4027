"""Pipeline: a recording finds pictures, a picture finds recordings.

pipe = pipeline("speech-image-retrieval", model=..., trust_remote_code=True)
pipe("query.wav", candidates=["a.png", "b.png"])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save

from .pair_scores import match_pairs
from .pipeline_inputs import as_processor_reads, common_modality, is_one, name_of
from .shipped_gallery import PLURAL, Gallery, Modality, find_gallery
from .token_states import PackedStates, join

TASK = "speech-image-retrieval"
RERANK_TOP_K = 32
_BATCH_SIZE = 16
_OTHER: dict[Modality, Modality] = {"image": "speech", "speech": "image"}


class SpeechImageRetrievalPipeline(Pipeline):
    """Coarse-to-fine retrieval: similarity of embeddings ranks all candidates, the multimodal encoder re-orders the
    best. See :meth:`__call__`; its options can be given to `transformers.pipeline` too, as defaults."""

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model.eval()
        self._shipped: dict[Modality, Gallery] = {}

    def __call__(
        self,
        inputs: Any,
        candidates: Iterable[Any] | Gallery | None = None,
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """What fits the query, the best first.

        Args:
            inputs: a recording or a picture, or several of one kind: paths, encoded bytes, PIL images, `datasets`
                dictionaries, `{"array": ..., "sampling_rate": ...}` (`raw` for `array` too), or arrays: uint8
                (height, width[, channels]) is a picture. Addresses are not fetched: download them first.
            candidates: pictures for recordings and recordings for pictures, or what :meth:`encode` made of them.
                Without them the gallery that the model ships is searched.
            batch_size: recordings or pictures encoded at a time; 16 if not given.
            top_k: answers for each query, 5 if not given.
            rerank_top_k: the most similar candidates that the multimodal encoder re-orders; 32 if not given, 0 for
                none.
            score_rule: what re-orders them, "sim" (the matching logit) or "sim+sic" (with the similarity divided by
                the model's `rerank_temperature` added). That of the gallery if not given, for candidates "sim".
            sampling_rate: of arrays that come without one, in Hz.

        Returns:
            For each query, without the list around it for a single one, answers with `score` (cosine similarity),
            `match` (matching logit, the higher the better the two fit; None if not re-ranked), `id` (of a candidate
            its place), `label` (caption or name) and, from a shipped gallery, `file` (thumbnail or recording).
            Re-ranked answers come first, in the order of the rule, and the others by similarity.

        Raises:
            ValueError: an input cannot be read or an option is out of range, there are no candidates, or they are of
                the kind of the query.
        """
        preprocess, _, postprocess = self._sanitize_parameters(**options)
        preprocess, postprocess = (
            {**self._preprocess_params, **preprocess},
            {**self._postprocess_params, **postprocess},
        )
        single = is_one(inputs)
        keep_states = postprocess.get("rerank_top_k") != 0
        encoding = {"batch_size": batch_size, "keep_states": keep_states, **preprocess}
        queries = self.encode([inputs] if single else inputs, what="inputs", **encoding)
        gallery = self._gallery(candidates, _OTHER[queries.modality], encoding)
        answers = self.postprocess((queries, gallery), **postprocess)
        return answers[0] if single else answers

    def encode(
        self,
        items: Iterable[Any],
        labels: Sequence[str] | None = None,
        *,
        batch_size: int | None = None,
        keep_states: bool = True,
        sampling_rate: int | None = None,
        what: str = "items",
    ) -> Gallery:
        """Encode recordings or pictures once, to be candidates of many calls.

        Args:
            items: all pictures or all recordings, as for :meth:`__call__`.
            labels: what answers call them; without them the names of their files, or their places.
            keep_states: keep what re-ranking needs: tokens x width numbers for each item.
            what: what errors call them.

        Raises:
            ValueError: one cannot be read, they are of both kinds, or there is none.
        """
        items = list(items)
        modality = common_modality(items, what)
        size = batch_size or self._batch_size or _BATCH_SIZE
        embeddings, states, lengths = [], [], []
        for start in range(0, len(items), size):
            batch = self.preprocess(items[start : start + size], modality, sampling_rate, what=what, first=start)
            output = self.forward(batch, keep_states=keep_states)
            embeddings.append(output["embeddings"])
            if keep_states and modality == "image":
                states.append(output["states"])
            elif keep_states:
                states.append(output["states"][output["mask"]])
                lengths.append(output["mask"].sum(dim=1))
        names = [name_of(item, place) for place, item in enumerate(items)] if labels is None else list(labels)
        if len(names) != len(items):
            raise ValueError(f"{len(names)} labels were given for {len(items)} {PLURAL[modality]}")
        packed = None
        if keep_states:
            packed = join(states) if modality == "image" else PackedStates.from_tokens(join(states), join(lengths))
        return Gallery(
            modality=modality,
            embeddings=torch.cat(embeddings),
            states=packed,
            ids=range(len(items)),
            labels=names,
            files=[None] * len(items),
        )

    def shipped_gallery(self, modality: Modality) -> Gallery:
        """What is searched without candidates.

        Raises:
            ValueError: the model ships none of this modality, or another model's.
        """
        if modality not in self._shipped:
            # Of the revision that the weights are of.
            gallery = find_gallery(self.model.name_or_path, modality, **self.model.hub_options)
            width = self.model.config.projection_dim
            if gallery.embeddings.shape[1] != width:
                raise ValueError(
                    f"The shipped gallery has embeddings of {gallery.embeddings.shape[1]} numbers and the model makes "
                    f"{width}: it is another model's. Write it again from an index of this model."
                )
            self._shipped[modality] = gallery
        return self._shipped[modality]

    def preprocess(
        self,
        input_: Sequence[Any],
        modality: Modality,
        sampling_rate: int | None = None,
        what: str = "items",
        first: int = 0,
    ) -> dict[str, Tensor]:
        """Inputs of the model for some recordings or some pictures; `first` is the place of the first among all."""
        options = {} if modality == "image" else {"sampling_rate": sampling_rate}
        argument = "images" if modality == "image" else "audio"
        media = [as_processor_reads(item) for item in input_]
        try:
            return dict(self.processor(**{argument: media}, **options, return_tensors="pt"))
        except ValueError:
            for place, medium in enumerate(media, start=first):  # the processor knows places in the batch only
                try:
                    self.processor(**{argument: [medium]}, **options, return_tensors="pt")
                except ValueError as error:
                    reason = str(error).removeprefix(f"{argument}[0]: ")
                    raise ValueError(f"{what}[{place}]: {reason}") from error
            raise

    def _forward(self, input_tensors: dict[str, Tensor], keep_states: bool = True) -> dict[str, Tensor]:
        inputs = {
            name: tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in input_tensors.items()
        }
        encode = self.model.get_image_features if "pixel_values" in inputs else self.model.get_speech_features
        output = encode(**inputs, pooled_only=not keep_states)
        if not keep_states:
            return {"embeddings": output.pooler_output.float()}
        found = {"embeddings": output.pooler_output.float(), "states": output.last_hidden_state}
        return found if "pixel_values" in inputs else {**found, "mask": output.attention_mask}

    def postprocess(
        self,
        model_outputs: tuple[Gallery, Gallery],
        top_k: int = 5,
        rerank_top_k: int | None = None,
        score_rule: str | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The answers to each encoded query from encoded candidates; see :meth:`__call__`."""
        queries, gallery = model_outputs
        rule = score_rule or gallery.score_rule
        rerank_top_k = _checked_options(gallery, top_k, rerank_top_k, rule)
        coarse = queries.embeddings @ gallery.embeddings.T
        if not coarse.isfinite().all():
            raise ValueError("A similarity is not finite. Look for a diverged checkpoint.")
        order = coarse.argsort(dim=1, descending=True, stable=True)
        reranked = order[:, :rerank_top_k]
        match = self._match(queries, gallery, reranked) if rerank_top_k else torch.empty(len(order), 0)
        added = coarse.gather(1, reranked) / self.model.rerank_temperature if rule == "sim+sic" else 0
        by_fine = (match + added).argsort(dim=1, descending=True, stable=True)
        others = torch.arange(reranked.shape[1], order.shape[1]).expand(len(order), -1)
        return [
            [_answer(gallery, int(order[query, rank]), coarse[query], match[query, rank : rank + 1]) for rank in ranks]
            for query, ranks in enumerate(torch.cat([by_fine, others], dim=1)[:, :top_k].tolist())
        ]

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Model, processor and code, without a gallery."""
        # The base class would write feature extractor and image processor over each other, and no processor.
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
        custom_object_save(self, save_directory)

    def _sanitize_parameters(
        self,
        sampling_rate: int | None = None,
        top_k: int | None = None,
        rerank_top_k: int | None = None,
        score_rule: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {} if sampling_rate is None else {"sampling_rate": sampling_rate}
        ranking = {"top_k": top_k, "rerank_top_k": rerank_top_k, "score_rule": score_rule}
        return preprocess, {}, {name: value for name, value in ranking.items() if value is not None}

    def _gallery(self, candidates: Any, modality: Modality, encoding: dict[str, Any]) -> Gallery:
        if candidates is None:
            return self.shipped_gallery(modality)
        if not isinstance(candidates, Gallery):
            listed = [candidates] if is_one(candidates) else candidates
            candidates = self.encode(listed, what="candidates", **encoding)
        if candidates.modality != modality:
            raise ValueError(
                f"Inputs and candidates are both {PLURAL[candidates.modality]}. Search {PLURAL[modality]} with them: "
                "recordings find pictures, and pictures find recordings."
            )
        return candidates

    def _match(self, queries: Gallery, gallery: Gallery, places: Tensor) -> Tensor:
        """Matching logits (queries, candidates) of every query with the candidates at its `places`."""
        query, candidate = torch.arange(len(places)).repeat_interleave(places.shape[1]), places.flatten()
        if gallery.modality == "image":
            logits = match_pairs(self.model, queries.states, gallery.states, query, candidate)
        else:
            logits = match_pairs(self.model, gallery.states, queries.states, candidate, query)
        if logits.isnan().any():
            raise ValueError("A matching logit is NaN. Look for a diverged checkpoint, or states that overflow.")
        return logits.view(places.shape)


def _checked_options(gallery: Gallery, top_k: int, rerank_top_k: int | None, score_rule: str) -> int:
    """How many to re-rank."""
    if score_rule not in ("sim", "sim+sic"):
        raise ValueError(f"score_rule must be 'sim' or 'sim+sic', not {score_rule!r}")
    if top_k < 1:
        raise ValueError(f"top_k must be 1 or more, not {top_k}")
    if rerank_top_k is None:
        return RERANK_TOP_K if gallery.states is not None else 0
    if rerank_top_k < 0:
        raise ValueError(f"rerank_top_k must be 0 (by similarity only) or more, not {rerank_top_k}")
    if rerank_top_k and gallery.states is None:
        raise ValueError("These candidates keep no token states, which re-ranking needs. Pass rerank_top_k=0.")
    return rerank_top_k


def _answer(gallery: Gallery, place: int, coarse: Tensor, match: Tensor) -> dict[str, Any]:
    """`coarse` (candidates,) are similarities; `match` holds the matching logit, or nothing if not re-ranked."""
    scores = {"score": float(coarse[place]), "match": float(match) if len(match) else None}
    answer = {**scores, "id": gallery.ids[place], "label": gallery.labels[place]}
    return answer if gallery.files[place] is None else {**answer, "file": str(gallery.files[place])}


__all__ = ["SpeechImageRetrievalPipeline"]
