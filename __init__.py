"""Speech-image retrieval: say what you want to see, and the picture comes back."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .modeling.configuration_speech_image_retrieval import SpeechImageRetrievalConfig
from .modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel, SpeechImageRetrievalOutput
from .modeling.pipeline_speech_image_retrieval import SpeechImageRetrievalPipeline
from .processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor

AutoConfig.register(SpeechImageRetrievalConfig.model_type, SpeechImageRetrievalConfig)
AutoModel.register(SpeechImageRetrievalConfig, SpeechImageRetrievalModel)
AutoProcessor.register(SpeechImageRetrievalConfig, SpeechImageRetrievalProcessor)

__all__ = [
    "SpeechImageRetrievalConfig",
    "SpeechImageRetrievalModel",
    "SpeechImageRetrievalOutput",
    "SpeechImageRetrievalPipeline",
    "SpeechImageRetrievalProcessor",
]
