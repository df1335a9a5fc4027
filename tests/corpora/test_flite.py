from __future__ import annotations

import shutil

import numpy as np
import pytest
from speech_image_retrieval.corpora.flite import FLITE_SPEAKERS, FliteVoice, require_flite, synthesize
from speech_image_retrieval.corpora.schema import CorpusError
from speech_image_retrieval.corpora.synthesis import ACCENTS, SAMPLING_RATE

SENTENCE = "red apple, fruit"

needs_flite = pytest.mark.skipif(not shutil.which("flite"), reason="flite is not installed: apt-get install flite")


@needs_flite
@pytest.mark.parametrize("voice", FLITE_SPEAKERS, ids=lambda voice: voice.name)
def test_a_voice_repeats_itself_and_has_the_form_of_espeak_speech(voice: FliteVoice):
    speech = synthesize(SENTENCE, voice)
    np.testing.assert_array_equal(synthesize(SENTENCE, voice), speech)
    assert speech.dtype == np.float32
    assert 0.7 < len(speech) / SAMPLING_RATE < 2
    assert np.abs(speech).max() == pytest.approx(0.7)
    heard = np.flatnonzero(np.abs(speech) > 0.02 * 0.7 * 1.001)
    assert max(heard[0], len(speech) - heard[-1]) <= 0.051 * SAMPLING_RATE
    assert voice.language in ACCENTS


@needs_flite
def test_every_voice_sounds_different():
    assert len({synthesize(SENTENCE, voice).tobytes() for voice in FLITE_SPEAKERS}) == len(FLITE_SPEAKERS)


@needs_flite
def test_stretched_speech_lasts_longer():
    voice = FLITE_SPEAKERS[-1]
    assert len(synthesize(SENTENCE, voice, duration_stretch=1.5)) > 1.3 * len(synthesize(SENTENCE, voice))


@needs_flite
def test_text_that_looks_like_an_option_or_a_command_is_spoken():
    assert len(synthesize("-v; exit", FLITE_SPEAKERS[0])) > 0.3 * SAMPLING_RATE


@needs_flite
def test_an_unknown_voice_is_refused_and_the_voices_are_named():
    with pytest.raises(CorpusError, match=r"no voice 'nobody'. Voices: .*slt"):
        synthesize(SENTENCE, FliteVoice("en-US", "nobody"))


@needs_flite
@pytest.mark.parametrize("text", ["", "  ", ","])
def test_text_without_sound_is_refused(text: str):
    with pytest.raises(CorpusError, match=r"no sound .* flite\+slt"):
        synthesize(text, FliteVoice("en-US", "slt"))


def test_without_flite_the_error_names_the_debian_package(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusError, match=r"apt-get install flite$"):
        require_flite()
    with pytest.raises(CorpusError, match=r"apt-get install flite$"):
        synthesize(SENTENCE, FLITE_SPEAKERS[0])
