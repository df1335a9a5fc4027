from __future__ import annotations

import pytest
import torch
from speech_image_retrieval.modeling.configuration_speech_image_retrieval import (
    SpeechImageMultimodalConfig,
    SpeechImageRetrievalConfig,
)
from speech_image_retrieval.modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from speech_image_retrieval.training.momentum import MomentumTeacher
from speech_image_retrieval.training.setup import build_model
from torch import nn
from transformers import HubertConfig, ViTConfig

from .reference import SmallModel, early_momentum


class PartlyFrozenModel(SmallModel):
    """A frozen backbone, dropout, and running statistics on the way to the embeddings."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)

    def get_speech_features(self, input_values, attention_mask=None, pooled_only=False, return_dict=True):
        normed = self.norm(self.backbone(input_values).transpose(1, 2)).transpose(1, 2)
        return super().get_speech_features(self.dropout(normed), attention_mask)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return PartlyFrozenModel()


def train_a_little(student: SmallModel) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def test_frozen_parameters_are_held_once_and_trained_ones_twice(student):
    teacher = MomentumTeacher(student, 0.9)
    ours, theirs = dict(teacher.model.named_parameters()), dict(student.named_parameters())
    shared = {name for name, parameter in ours.items() if parameter.data_ptr() == theirs[name].data_ptr()}
    assert shared == {"backbone.weight", "backbone.bias"}
    assert theirs["speech_encoder.weight"].requires_grad, "the student must go on training"
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_it_starts_as_the_student_and_never_holds_the_multimodal_encoder(student):
    teacher = MomentumTeacher(student, 0.9)
    theirs = dict(student.named_parameters())
    names = {name for name, _ in teacher.model.named_parameters()}
    assert names == {name for name in theirs if not name.startswith(("multimodal_encoder", "matching_head"))}
    for name, parameter in teacher.model.named_parameters():
        assert torch.equal(parameter, theirs[name])
    assert isinstance(student.multimodal_encoder, nn.Linear), "the student keeps its own"


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.75, 0.995])
def test_it_is_the_closed_form_weighted_mean_of_all_the_students_there_were(student, momentum):
    teacher, steps = MomentumTeacher(student, momentum), 7
    history = [student.image_encoder.weight.detach().double().clone()]
    for updates in range(1, steps + 1):
        train_a_little(student)
        teacher.update(student, updates)
        history.append(student.image_encoder.weight.detach().double().clone())
    weights = []
    for born in range(steps + 1):
        weight = 1.0 if born == 0 else 1 - early_momentum(momentum, born)
        for later in range(born + 1, steps + 1):
            weight *= early_momentum(momentum, later)
        weights.append(weight)
    assert sum(weights) == pytest.approx(1)
    if momentum == 0.995:
        assert weights == pytest.approx([1 / (steps + 1)] * (steps + 1)), "early on the plain mean"
    expected = sum(weight * past for weight, past in zip(weights, history, strict=True))
    torch.testing.assert_close(teacher.model.image_encoder.weight.double(), expected, atol=1e-5, rtol=1e-5)


def test_buffers_follow_at_once(student):
    teacher = MomentumTeacher(student, 0.9)
    student.get_speech_features(torch.randn(5, 3, 4) + 2)
    assert not torch.equal(teacher.model.norm.running_mean, student.norm.running_mean)
    teacher.update(student, 1)
    assert torch.equal(teacher.model.norm.running_mean, student.norm.running_mean)
    assert teacher.model.norm.num_batches_tracked == 1
    student.get_speech_features(torch.randn(5, 3, 4))
    assert teacher.model.norm.num_batches_tracked == 1, "a copy, not the student's own"


def test_it_stays_in_evaluation_mode_inside_a_module_that_trains(student):
    teacher = MomentumTeacher(student, 0.9)
    outer = nn.ModuleDict({"student": student, "teacher": teacher}).train()
    assert student.training
    assert not any(module.training for module in teacher.modules())
    speech, images = {"input_values": torch.randn(4, 3, 4)}, torch.randn(4, 2, 4)
    first, second = (
        teacher.embed(speech, {"pixel_values": images}),
        outer["teacher"].embed(speech, {"pixel_values": images}),
    )
    assert torch.equal(first[0], second[0]), "dropout or batch statistics are on"
    assert teacher.model.norm.num_batches_tracked == 0


def test_its_embeddings_carry_no_gradient(student):
    teacher = MomentumTeacher(student, 0.9)
    for embeds in teacher.embed({"input_values": torch.randn(2, 3, 4)}, {"pixel_values": torch.randn(2, 2, 4)}):
        assert not embeds.requires_grad
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 995])
def test_a_momentum_that_is_none_is_refused(student, momentum):
    with pytest.raises(ValueError, match="momentum must be in"):
        MomentumTeacher(student, momentum)


def test_a_student_whose_encoders_are_all_frozen_has_a_teacher_that_stands_still(student):
    student.requires_grad_(False)
    student.multimodal_encoder.requires_grad_(True)
    teacher = MomentumTeacher(student, 0.9)
    teacher.update(student, 1)
    assert torch.equal(teacher.model.image_encoder.weight, student.image_encoder.weight)


def test_a_teacher_of_the_real_model_embeds_as_its_student_does_and_moves():
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    speech = HubertConfig(
        **shape, conv_dim=(4, 4), conv_kernel=(10, 4), conv_stride=(8, 4), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    vision = ViTConfig(**shape, image_size=8, patch_size=4)
    multimodal = SpeechImageMultimodalConfig(**shape, num_speech_layers=1)
    model = SpeechImageRetrievalModel(
        SpeechImageRetrievalConfig(
            speech_config=speech, vision_config=vision, multimodal_config=multimodal, projection_dim=4
        )
    )
    model.vision_backbone.requires_grad_(False)
    teacher = MomentumTeacher(model, 0.9)
    for parameter in teacher.model.vision_backbone.parameters():
        assert any(parameter is own for own in model.vision_backbone.parameters())
    waves, images = {"input_values": torch.randn(2, 400)}, torch.randn(2, 3, 8, 8)
    model.eval()
    expected = model.get_speech_features(**waves).pooler_output, model.get_image_features(images).pooler_output
    for ours, theirs in zip(teacher.embed(waves, {"pixel_values": images}), expected, strict=True):
        assert torch.equal(ours, theirs)
    train_a_little(model)
    teacher.update(model, 1)
    assert not torch.equal(teacher.embed(waves, {"pixel_values": images})[0], expected[0])
    assert not any("multimodal_encoder" in name or "matching_head" in name for name in teacher.state_dict())


def storage_bytes(*modules: nn.Module) -> int:
    """Bytes that the parameters and buffers of all modules hold together, shared ones once."""
    tensors = [part for module in modules for part in (*module.parameters(), *module.buffers())]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


LORA = {"r": 2, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainable_speech_layers": 0, "trainable_vision_layers": 0},
        {"trainable_speech_layers": 1, "trainable_vision_layers": 0},
        {"trainable_vision_layers": 2, "speech_lora": LORA},
    ],
    ids=str,
)
def test_student_and_teacher_together_hold_twice_only_what_trains(changes, make_arguments, tmp_path):
    model = build_model(make_arguments(tmp_path, **changes), torch.device("cpu"))
    alone = storage_bytes(model)
    teacher = MomentumTeacher(model, 0.9)
    without_teacher = ("multimodal_encoder", "matching_head")
    copied = sum(
        part.untyped_storage().nbytes()
        for name, part in model.named_parameters()
        if part.requires_grad and not name.startswith(without_teacher)
    )
    copied += sum(
        buffer.untyped_storage().nbytes()
        for backbone in (model.speech_backbone, model.vision_backbone)
        if any(part.requires_grad for part in backbone.parameters())
        for buffer in backbone.buffers()
    )
    assert copied < alone
    assert storage_bytes(model, teacher) == alone + copied


def test_a_backbone_that_does_not_train_is_one_module_in_both(make_arguments, tmp_path):
    model = build_model(make_arguments(tmp_path, trainable_vision_layers=0), torch.device("cpu"))
    teacher = MomentumTeacher(model, 0.9)
    assert teacher.model.vision_backbone is model.vision_backbone
    assert teacher.model.speech_backbone is not model.speech_backbone


def test_what_is_shared_embeds_as_in_evaluation_and_its_buffers_stay(student):
    student.backbone = nn.Sequential(student.backbone, nn.Dropout(0.5)).requires_grad_(False)
    student.backbone.register_buffer("statistics", torch.ones(2))
    teacher = MomentumTeacher(student, 0.9)
    speech, images = {"input_values": torch.randn(4, 3, 4)}, torch.randn(4, 2, 4)
    first = teacher.embed(speech, {"pixel_values": images})[0]
    student.train()
    assert torch.equal(teacher.embed(speech, {"pixel_values": images})[0], first)
    version = student.backbone.statistics._version
    teacher.update(student, 1)
    assert student.backbone.statistics._version == version
