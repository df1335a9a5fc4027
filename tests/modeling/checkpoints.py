"""Tiny checkpoints in the key layout of the real ones, as they lie on the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    OPTConfig,
    PreTrainedModel,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    UniSpeechConfig,
    UniSpeechModel,
    UniSpeechSatConfig,
    UniSpeechSatModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperForConditionalGeneration,
)

from .tiny import IMAGE_SIZE, WIDTH, blip2_vision, resnet, wav2vec2_bert, whisper

_LAYERS = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
_WAVEFORM = {
    **_LAYERS,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
    "vocab_size": 8,
}
_STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_TEXT = {**_LAYERS, "vocab_size": 32, "max_position_embeddings": 16}
_VIT = {**_LAYERS, "image_size": IMAGE_SIZE, "patch_size": 8}
_OPT = {**_LAYERS, "ffn_dim": WIDTH, "word_embed_proj_dim": WIDTH, "vocab_size": 32, "max_position_embeddings": 16}


def _blip2_config(**qformer) -> Blip2Config:
    return Blip2Config(
        vision_config=blip2_vision().to_dict(),
        qformer_config={**_LAYERS, "encoder_hidden_size": WIDTH, "vocab_size": 32, **qformer},
        text_config=OPTConfig(**_OPT).to_dict(),
        num_query_tokens=3,
        image_text_hidden_size=8,
    )


SPEECH: dict[str, Callable[[], PreTrainedModel]] = {
    "hubert-base": lambda: HubertModel(HubertConfig(**_WAVEFORM)),
    "hubert-large": lambda: HubertModel(HubertConfig(**_WAVEFORM, **_STABLE)),
    "hubert-ctc": lambda: HubertForCTC(HubertConfig(**_WAVEFORM, **_STABLE)),
    "hubert-batch-norm": lambda: HubertModel(HubertConfig(**_WAVEFORM, conv_pos_batch_norm=True)),
    "wav2vec2-base": lambda: Wav2Vec2Model(Wav2Vec2Config(**_WAVEFORM)),
    "wav2vec2-large": lambda: Wav2Vec2ForPreTraining(
        Wav2Vec2Config(**_WAVEFORM, **_STABLE, codevector_dim=8, proj_codevector_dim=8)
    ),
    "wavlm-base": lambda: WavLMModel(WavLMConfig(**_WAVEFORM)),
    "wavlm-large": lambda: WavLMModel(WavLMConfig(**_WAVEFORM, **_STABLE)),
    "data2vec-audio": lambda: Data2VecAudioModel(Data2VecAudioConfig(**_WAVEFORM, conv_pos_kernel_size=5)),
    "unispeech": lambda: UniSpeechModel(UniSpeechConfig(**_WAVEFORM)),
    "unispeech-sat": lambda: UniSpeechSatModel(UniSpeechSatConfig(**_WAVEFORM)),
    "wav2vec2-bert": lambda: Wav2Vec2BertModel(Wav2Vec2BertConfig(**wav2vec2_bert().to_dict())),
    "whisper": lambda: WhisperForConditionalGeneration(whisper()),
}
VISION: dict[str, Callable[[], PreTrainedModel]] = {
    "blip2": lambda: Blip2ForConditionalGeneration(_blip2_config()),
    "blip2-itm": lambda: Blip2ForImageTextRetrieval(_blip2_config(use_qformer_text_input=True)),
    "vit": lambda: ViTModel(ViTConfig(**_VIT)),
    "deit": lambda: DeiTModel(DeiTConfig(**_VIT)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**_VIT)),
    "dinov2-registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**_VIT, num_register_tokens=2)),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**_VIT, num_register_tokens=2)),
    "clip": lambda: CLIPModel(CLIPConfig(vision_config=_VIT, text_config=_TEXT, projection_dim=8)),
    "siglip": lambda: SiglipModel(SiglipConfig(vision_config=_VIT, text_config=_TEXT)),
}
NETWORKS: dict[str, Callable[[], PreTrainedModel]] = {
    "resnet": lambda: ResNetModel(resnet()),
    "convnext": lambda: ConvNextModel(
        ConvNextConfig(hidden_sizes=[8, 8, 8, WIDTH], depths=[1, 1, 1, 1], patch_size=2)
    ),
}


def write(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Save a checkpoint of random weights, norms and biases included; returns the model in evaluation mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    model.save_pretrained(folder)
    return model.eval()
