from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import settings
from speech_image_retrieval import SpeechImageRetrievalProcessor
from transformers import (
    BlipImageProcessor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

FEATURE_EXTRACTORS = {
    "waveform": lambda: Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True),
    "whisper": lambda: WhisperFeatureExtractor(feature_size=16),
    "seamless": lambda: SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16),
}


@pytest.fixture(params=[*FEATURE_EXTRACTORS, "normalized whisper"])
def processor(request: pytest.FixtureRequest) -> SpeechImageRetrievalProcessor:
    normalized = request.param.startswith("normalized")
    extractor = FEATURE_EXTRACTORS[request.param.removeprefix("normalized ")]()
    return SpeechImageRetrievalProcessor(extractor, images(), per_feature_normalization=normalized)


@pytest.fixture
def waveform_processor() -> SpeechImageRetrievalProcessor:
    return SpeechImageRetrievalProcessor(FEATURE_EXTRACTORS["waveform"](), images())


@pytest.fixture
def whisper_processor() -> SpeechImageRetrievalProcessor:
    return SpeechImageRetrievalProcessor(FEATURE_EXTRACTORS["whisper"](), images())


@pytest.fixture
def seamless_processor() -> SpeechImageRetrievalProcessor:
    return SpeechImageRetrievalProcessor(FEATURE_EXTRACTORS["seamless"](), images())


@pytest.fixture
def tone() -> np.ndarray:
    """A second of 440 Hz at 16 kHz, on the grid of 16-bit PCM so that every container holds it exactly."""
    return np.round(0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) * 32768).astype(np.float32) / 32768


@pytest.fixture
def wav(tone: np.ndarray) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, tone, 16_000, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def images() -> BlipImageProcessor:
    return BlipImageProcessor(size={"height": 16, "width": 16})
