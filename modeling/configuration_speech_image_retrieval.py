"""Configuration of the speech-image retrieval model."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, Blip2QFormerConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class SpeechImageMultimodalConfig(PreTrainedConfig):
    """Shape of the speech transformer and of the multimodal encoder, which share one width.

    Args:
        hidden_size: width of both, and of the states that the two encoders return.
        num_speech_layers: layers of the speech transformer that stands on the speech backbone.
        num_image_layers: layers of an image transformer with its own `[CLS]` on the vision backbone; needed by
            convolutional backbones, which have no `[CLS]`. With 0 the backbone's first token is the `[CLS]`.
        num_hidden_layers: layers of the multimodal encoder (self-attention, cross-attention, feed-forward).
        num_attention_heads: heads of every attention.
        intermediate_size: width of the feed-forward networks.
        hidden_act: activation of the feed-forward networks.
        hidden_dropout, attention_dropout: dropout on layer outputs and on attention weights.
        layer_norm_eps: epsilon of the layer norms.
        initializer_range: standard deviation of the initial weights.
    """

    model_type = "speech_image_multimodal"
    base_config_key = "multimodal_config"

    hidden_size: int = 768
    num_speech_layers: int = 2
    num_image_layers: int = 0
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02

    def validate_heads(self) -> None:
        """Refuse a width that the heads cannot share."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )


@strict
class SpeechImageRetrievalConfig(PreTrainedConfig):
    """Configuration of a [`SpeechImageRetrievalModel`].

    The default is the composition of Zhou & Li (arXiv 2408.13119): HuBERT speech and BLIP-2 image encoders and a
    multimodal encoder. Their widths and depths are not public; the multimodal encoder follows ALBEF's.

    Args:
        speech_config: configuration, or its dictionary with `model_type`, of any supported speech encoder.
        vision_config: the same for the image encoder.
        qformer_config: the Q-Former of a BLIP-2 image encoder; None takes the image tokens as they are.
        num_query_tokens: image tokens that the Q-Former leaves; without it not used.
        multimodal_config: shape of the speech transformer and of the multimodal encoder.
        projection_dim: width of the embeddings that are compared by cosine similarity.
        temperature: initial value of the learnable temperature that divides the cosine similarities.
        rerank_temperature: what similarities are divided by where they are added to matching logits, see
            [`SpeechImageRetrievalModel.rerank_temperature`]. None for the learned temperature.
        speech_pooling: how many consecutive backbone frames are averaged into one speech token.
        speech_layers: which hidden states of the speech backbone enter the weighted sum: 0 is the input of its first
            layer, k the output of its k-th. None for all.
        vision_feature_layer: which hidden states of the vision backbone are the image tokens, counted in the same way.
            None for its output. The last layers of a pretrained encoder serve the task that it was trained for; lower
            ones may carry over better.
    """

    model_type = "speech_image_retrieval"

    speech_config: PreTrainedConfig | dict | None = None
    vision_config: PreTrainedConfig | dict | None = None
    multimodal_config: PreTrainedConfig | dict | None = None
    qformer_config: PreTrainedConfig | dict | None = None
    num_query_tokens: int = 32
    projection_dim: int = 256
    temperature: float | int = 0.07
    rerank_temperature: float | int | None = None
    speech_pooling: int = 1
    speech_layers: list[int] | None = None
    vision_feature_layer: int | None = None

    sub_configs_defaults = {  # noqa: RUF012 - the base class reads a plain dict
        "speech_config": SubConfigSpec(config_class=AutoConfig, model_type="hubert"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="blip_2_vision_model"),
        "multimodal_config": SpeechImageMultimodalConfig,
        "qformer_config": SubConfigSpec(config_class=Blip2QFormerConfig, optional=True),
    }

    def validate_numbers(self) -> None:
        """Refuse values that cannot be trained."""
        if self.projection_dim < 1 or self.speech_pooling < 1:
            raise ValueError("projection_dim and speech_pooling must be at least 1")
        if self.speech_layers is not None and (not self.speech_layers or min(self.speech_layers) < 0):
            raise ValueError(
                f"speech_layers must name at least one hidden state, counted from 0: {self.speech_layers}"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if self.rerank_temperature is not None and self.rerank_temperature <= 0:
            raise ValueError(f"rerank_temperature must be positive, not {self.rerank_temperature}")


__all__ = ["SpeechImageMultimodalConfig", "SpeechImageRetrievalConfig"]
