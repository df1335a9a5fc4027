"""The momentum teacher: an exponential moving average of the two encoders (ALBEF section 3.3)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel


class MomentumTeacher(nn.Module):
    """A slowly moving copy of both encoders, without the multimodal encoder, which has no teacher in ALBEF either.

    What does not train is shared with the student and so held once: a part of the student without a trained parameter
    as a whole, of the other parts the frozen parameters. The teacher is always in evaluation mode: its targets are not
    disturbed by dropout or masking.
    """

    def __init__(self, student: SpeechImageRetrievalModel, momentum: float):
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        self.momentum = momentum
        shared = {id(part): part for part in (*student.parameters(), *student.children()) if is_frozen(part)}
        left_out = {id(student.multimodal_encoder): nn.Identity(), id(student.matching_head): nn.Identity()}
        self.model = copy.deepcopy(student, shared | left_out).eval()
        self._trained = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        self.model.requires_grad_(False)

    def train(self, mode: bool = True) -> MomentumTeacher:
        return super().train(False)

    @torch.no_grad()
    def update(self, student: SpeechImageRetrievalModel, updates: int) -> None:
        """Move towards the student after its optimizer step number `updates`, counted from 1.

        Early on the average covers only the steps there have been: from randomly initialised weights a fixed momentum
        would keep the teacher near them for 1 / (1 - momentum) steps.
        """
        momentum = min(self.momentum, 1 - 1 / (updates + 1))
        if not self._trained:
            return
        own, others = dict(self.model.named_parameters()), dict(student.named_parameters())
        torch._foreach_lerp_([own[n] for n in self._trained], [others[n] for n in self._trained], 1 - momentum)
        for name, buffer in self.model.named_buffers():
            current = student.get_buffer(name)
            if buffer is not current:
                buffer.copy_(current)

    @torch.no_grad()
    def embed(self, speech: dict[str, Tensor], image: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(batch, projection_dim) unit-length embeddings of the speech and of the images."""
        self.eval()  # the student's train() reaches what is shared
        speech_embeds = self.model.get_speech_features(**speech, pooled_only=True, return_dict=True).pooler_output
        image_embeds = self.model.get_image_features(**image, pooled_only=True, return_dict=True).pooler_output
        return speech_embeds, image_embeds


def is_frozen(part: nn.Parameter | nn.Module) -> bool:
    """Whether there are parameters and none of them trains."""
    parameters = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
