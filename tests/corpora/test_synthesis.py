from __future__ import annotations

import hashlib
import io
import sys

import numpy as np
import pytest
import soundfile
from speech_image_retrieval.corpora.schema import CorpusError
from speech_image_retrieval.corpora.synthesis import (
    ACCENTS,
    SAMPLING_RATE,
    SPEAKERS,
    Voice,
    flac,
    require_espeak,
    synthesize,
)

from ..fresh_process import run_script

SENTENCE = "a red circle above a blue square"
VOICES = [voice for group in SPEAKERS.values() for voice in group]


def _hash(speech: np.ndarray) -> str:
    return hashlib.sha256(speech.tobytes()).hexdigest()


def _hashes_of_first_utterances(voices: list[Voice]) -> list[str]:
    """Each voice's utterance from a process that has said nothing before."""
    script = f"""
        import hashlib, os, sys
        from speech_image_retrieval.corpora.synthesis import Voice, synthesize
        for name in sys.argv[1:]:
            if not os.fork():
                speech = synthesize({SENTENCE!r}, Voice(*name.split("+")), rate=160, pitch=45, pitch_range=60)
                os.write(1, (hashlib.sha256(speech.tobytes()).hexdigest() + "\\n").encode())
                os._exit(0)
            assert os.wait()[1] == 0
    """
    done = run_script(script, *(voice.name for voice in voices))
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_an_utterance_sounds_the_same_alone_and_after_others():
    # f1 is rough and flutters, aunty flutters more, m2 has an echo, klatt is another synthesiser.
    voices = [Voice("en-US", variant) for variant in ("f1", "aunty", "m2", "klatt")]
    alone = _hashes_of_first_utterances(voices)
    for voice, expected in zip(voices, alone, strict=True):
        synthesize("there is a white star to the left of an orange heart", Voice("en-GB", "f4"), rate=190, pitch=70)
        assert _hash(synthesize(SENTENCE, voice, rate=160, pitch=45, pitch_range=60)) == expected


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.name)
def test_every_speaker_repeats_itself_exactly(voice: Voice):
    first = _hash(synthesize(SENTENCE, voice))
    synthesize("the purple ring", VOICES[0], rate=185)
    assert _hash(synthesize(SENTENCE, voice)) == first


def test_every_speaker_sounds_different():
    assert len({_hash(synthesize(SENTENCE, voice)) for voice in VOICES}) == len(VOICES)


@pytest.mark.parametrize("language", ACCENTS)
def test_every_accent_speaks_and_differs_from_the_first(language: str):
    speech = synthesize(SENTENCE, Voice(language, "m1"))
    assert 1.3 < len(speech) / SAMPLING_RATE < 3
    if language != "en-US":
        assert _hash(speech) != _hash(synthesize(SENTENCE, Voice("en-US", "m1")))


def test_speech_has_one_peak_level_and_at_most_50_ms_of_silence_around_it():
    for voice in VOICES[::5]:
        speech = synthesize(SENTENCE, voice)
        assert speech.dtype == np.float32
        assert np.abs(speech).max() == pytest.approx(0.7)
        heard = np.flatnonzero(np.abs(speech) > 0.02 * 0.7 * 1.001)
        assert heard[0] <= 0.051 * SAMPLING_RATE
        assert len(speech) - heard[-1] <= 0.051 * SAMPLING_RATE


def test_rate_and_pitch_are_heard():
    voice = VOICES[0]
    plain = synthesize(SENTENCE, voice, rate=160)
    assert len(synthesize(SENTENCE, voice, rate=240)) < 0.8 * len(plain)
    assert _hash(synthesize(SENTENCE, voice, rate=160, pitch=60)) != _hash(plain)
    assert _hash(synthesize(SENTENCE, voice, rate=160, pitch_range=20)) != _hash(plain)


def test_flac_is_mono_16_bit_at_16_khz_and_keeps_the_samples():
    speech = synthesize(SENTENCE, VOICES[0])
    encoded = flac(speech)
    info = soundfile.info(io.BytesIO(encoded))
    assert (info.format, info.subtype, info.channels, info.samplerate) == ("FLAC", "PCM_16", 1, 16_000)
    decoded, _ = soundfile.read(io.BytesIO(encoded), dtype="float32")
    np.testing.assert_allclose(decoded, speech, atol=1 / 32768)


@pytest.mark.parametrize("voice", [Voice("en-US", "nobody"), Voice("en-AU", "f1")], ids=lambda voice: voice.name)
def test_an_unknown_voice_is_refused_and_named(voice: Voice):
    with pytest.raises(CorpusError, match=f"no voice {voice.language}.{voice.variant}"):
        synthesize(SENTENCE, voice)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_text_without_sound_is_refused(text: str):
    with pytest.raises(CorpusError, match="no sound"):
        synthesize(text, VOICES[0])


def test_without_espeak_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(CorpusError, match=r"pip install speech-image-retrieval\[demo\]"):
        require_espeak()
    with pytest.raises(CorpusError, match=r"pip install speech-image-retrieval\[demo\]"):
        synthesize(SENTENCE, VOICES[0])
