"""How much each part of a recording and of a picture adds to their matching logit: integrated gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..evaluation.embedding import inference

STEPS = 4  # between mean and truth; the benchmark finds no more with 8


@dataclass(frozen=True)
class MatchedPair:
    """One recording and one picture as the two backbones give them, and what their matching logit rests on.

    Relevance is integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) along the straight line from "every
    token is the mean of all" to what there is: how much a token's difference from the mean adds to the logit, negative
    where it speaks against a match. Over all tokens it adds up to what the logit gains on that line.

    It is that of the backbones' tokens and not, as Grad-CAM of ALBEF has it, of attention between the states that the
    multimodal encoder is given: by then each state knows of all others, and attention to one says little of its place.
    `benchmarks/explanation.py` measures both.

    Attributes:
        model: a :class:`..modeling.modeling_speech_image_retrieval.SpeechImageRetrievalModel`.
        speech: (1, tokens, layers, width), of :meth:`model.get_speech_backbone_features`, without padding.
        image: (1, tokens, width) or (1, width, rows, columns), of :meth:`model.get_image_backbone_features`.
        placeless: how many image tokens at the beginning stand for no place ([CLS], registers). They stay as they are.
    """

    model: nn.Module
    speech: Tensor
    image: Tensor
    placeless: int = 0

    def __post_init__(self):
        if not len(self.model.multimodal_encoder.layers):
            raise ValueError(
                "This model has no multimodal layer (multimodal_config.num_hidden_layers is 0): its matching score "
                "does not depend on the picture, so there is nothing to explain."
            )

    def matching_score(self) -> float:
        """The matching logit."""
        with inference(self.model):
            return self._logits(self.speech, self.image).item()

    def speech_relevance(self) -> Tensor:
        """(tokens,) float32 on the CPU."""
        with _differentiable(self.model):
            speech, image = self.speech.clone(), self.image.clone()
            mean = speech.mean(1, keepdim=True).expand_as(speech)
            return self._integrated(speech, mean, lambda steps: self._logits(steps, image)).sum((1, 2)).cpu()

    def image_relevance(self) -> Tensor:
        """(cells,) float32 on the CPU: of the image tokens that have a place, row by row."""
        with _differentiable(self.model):
            speech, image = self.speech.clone(), self.image.clone()
            if image.dim() == 4:
                mean = image.mean((2, 3), keepdim=True).expand_as(image)
                return self._integrated(image, mean, lambda steps: self._logits(speech, steps)).sum(0).flatten().cpu()
            mean = image.clone()
            mean[:, self.placeless :] = image[:, self.placeless :].mean(1, keepdim=True)
            relevance = self._integrated(image, mean, lambda steps: self._logits(speech, steps)).sum(1)
            return relevance[self.placeless :].cpu()

    def without(self, first: int, end: int) -> MatchedPair:
        """The same pair, but the speech tokens from `first` up to `end` say nothing: they are the mean of all."""
        speech = self.speech.clone()
        speech[:, first:end] = speech.mean(1, keepdim=True)
        return replace(self, speech=speech)

    def _logits(self, speech: Tensor, image: Tensor) -> Tensor:
        """Of one recording with several pictures, or of several recordings with one picture."""
        everywhere = torch.ones(speech.shape[:2], dtype=torch.bool, device=speech.device)
        heard = self.model.get_speech_features(backbone_features=speech, attention_mask=everywhere)
        seen = self.model.get_image_features(backbone_features=image).last_hidden_state
        pairs = torch.arange(max(len(speech), len(image)), device=seen.device)
        rows = {"image_rows": pairs % len(seen), "speech_rows": pairs % len(speech)}
        return self.model.match(heard.last_hidden_state, heard.attention_mask, seen, **rows)

    def _integrated(self, truth: Tensor, mean: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
        """Integrated gradients of one input, float32 in its shape without the first dimension."""
        shares = (torch.arange(STEPS, device=truth.device) + 0.5) / STEPS
        shares = shares.to(truth.dtype).view(-1, *[1] * (truth.dim() - 1))
        steps = (mean + shares * (truth - mean)).requires_grad_()
        (gradients,) = torch.autograd.grad(logits(steps).sum(), steps)
        relevance = gradients.float().mean(0) * (truth - mean)[0].float()
        if not relevance.isfinite().all():
            raise ValueError("The gradients of the matching score are not finite. Look for a diverged checkpoint.")
        return relevance


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with autograd, also where the caller has none; nothing is left on the model."""
    with inference(model), torch.inference_mode(False), torch.enable_grad():
        yield
