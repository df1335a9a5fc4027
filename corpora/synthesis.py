"""Speech from text with espeak-ng, through the shared library that the `espeakng-loader` wheel carries."""

from __future__ import annotations

import _ctypes
import ctypes
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from .schema import CorpusError

SAMPLING_RATE = 16_000
_ESPEAK_SAMPLING_RATE = 22_050

# Constants of espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_POSITION_CHARACTER = 1
_CHARACTERS_UTF8 = 1
_PARAMETER_RATE, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 3, 4

_PEAK = 0.7
_SILENCE_BELOW_PEAK = 0.02
_MARGIN_SECONDS = 0.05

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """An accent, named by its BCP-47 tag, spoken by one of espeak-ng's voice variants."""

    language: str
    variant: str

    @property
    def name(self) -> str:
        return f"{self.language}+{self.variant}"


# Accent to espeak-ng's voice file.
ACCENTS = {
    "en-US": "gmw/en-US",
    "en-US-x-nyc": "gmw/en-US-nyc",
    "en-GB": "gmw/en",
    "en-GB-x-rp": "gmw/en-GB-x-rp",
    "en-GB-x-gbclan": "gmw/en-GB-x-gbclan",
    "en-GB-x-gbcwmd": "gmw/en-GB-x-gbcwmd",
    "en-GB-scotland": "gmw/en-GB-scotland",
    "en-029": "gmw/en-029",
}

# No variant speaks in two splits. Variants and accents that a speech recogniser could not follow are left out.
SPEAKERS = {
    "train": (
        Voice("en-GB", "f1"),
        Voice("en-GB-x-rp", "f1"),
        Voice("en-US", "f3"),
        Voice("en-GB", "f3"),
        Voice("en-GB-x-rp", "f3"),
        Voice("en-US", "belinda"),
        Voice("en-GB", "belinda"),
        Voice("en-GB-x-gbclan", "belinda"),
        Voice("en-US", "linda"),
        Voice("en-GB", "linda"),
        Voice("en-US", "m1"),
        Voice("en-GB", "m4"),
        Voice("en-US", "m5"),
        Voice("en-GB-x-rp", "m7"),
        Voice("en-GB-x-gbcwmd", "m8"),
        Voice("en-US", "Henrique"),
        Voice("en-GB", "max"),
        Voice("en-US-x-nyc", "max"),
        Voice("en-GB", "klatt"),
        Voice("en-GB-x-gbclan", "victor"),
        Voice("en-US", "robert"),
        Voice("en-GB-x-rp", "Nguyen"),
        Voice("en-US", "adam"),
        Voice("en-GB", "benjamin"),
    ),
    "validation": (
        Voice("en-US", "steph2"),
        Voice("en-GB", "Annie"),
        Voice("en-US", "sandro"),
        Voice("en-GB-x-rp", "m6"),
    ),
    "test": (
        Voice("en-US", "f2"),
        Voice("en-GB", "f5"),
        Voice("en-GB-x-rp", "aunty"),
        Voice("en-US", "edward"),
        Voice("en-GB", "Alex"),
        Voice("en-GB-x-gbcwmd", "m3"),
    ),
}


def require_espeak() -> tuple[str, Path]:
    """The shared library and the data of espeak-ng; a CorpusError that says how to install it if it is not there."""
    try:
        import espeakng_loader
    except ImportError:
        raise CorpusError(
            "Speech synthesis needs espeak-ng, which is not installed: pip install speech-image-retrieval[demo]"
        ) from None
    return espeakng_loader.get_library_path(), Path(espeakng_loader.get_data_path())


def synthesize(text: str, voice: Voice, *, rate: int = 170, pitch: int = 50, pitch_range: int = 50) -> np.ndarray:
    """Speak `text`. The same arguments always give the same samples, but for the variants `Reed` and `caleb`, whose
    breath is noise from the C library's random numbers.

    Args:
        rate: words a minute, 80 to 450.
        pitch, pitch_range: 0 to 100, relative to the voice's own (50).

    Returns:
        `(samples,)` float32 at 16 kHz, peak 0.7, with at most 50 ms of silence before and after the speech.

    Raises:
        CorpusError: espeak-ng is not installed, does not know the voice, or gave no sound.
    """
    with _espeak() as (library, pieces):
        _select_voice(library, voice)
        for parameter, value in ((_PARAMETER_RATE, rate), (_PARAMETER_PITCH, pitch), (_PARAMETER_RANGE, pitch_range)):
            _check(library.espeak_SetParameter(parameter, value, 0), f"parameter {parameter} = {value}")
        encoded = text.encode() + b"\0"
        _check(
            library.espeak_Synth(encoded, len(encoded), 0, _POSITION_CHARACTER, 0, _CHARACTERS_UTF8, None, None),
            f"text {text!r}",
        )
    samples = np.frombuffer(b"".join(pieces), np.int16).astype(np.float32)
    if not samples.any():
        raise CorpusError(f"espeak-ng gave no sound for {text!r} in the voice {voice.name}. Use other words or voice.")
    return finish(samples, _ESPEAK_SAMPLING_RATE)


def finish(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """A synthesiser's `(samples,)` float32, not all zero, in the form that :func:`synthesize` returns."""
    speech = _trim(soxr.resample(samples, sampling_rate, SAMPLING_RATE))
    return speech * (_PEAK / np.abs(speech).max())


def flac(speech: np.ndarray) -> bytes:
    """`(samples,)` float at 16 kHz as 16-bit FLAC."""
    buffer = io.BytesIO()
    soundfile.write(buffer, speech, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _trim(speech: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(speech) > _SILENCE_BELOW_PEAK * np.abs(speech).max())
    margin = int(_MARGIN_SECONDS * SAMPLING_RATE)
    return speech[max(loud[0] - margin, 0) : loud[-1] + margin + 1]


@contextmanager
def _espeak() -> Iterator[tuple[ctypes.CDLL, list[bytes]]]:
    """A freshly loaded espeak-ng and the list that its 16-bit samples arrive in.

    espeak-ng keeps the phases of its wave generator and of its flutter in static variables that neither
    `espeak_Terminate` nor `espeak_Initialize` resets, so an utterance depends on those before it. Loading the library
    anew resets them all and takes about 2 ms.
    """
    pieces: list[bytes] = []

    @_Callback
    def receive(samples, count, _events) -> int:
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    path, data = require_espeak()
    library = ctypes.CDLL(path)
    try:
        sampling_rate = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), _DO_NOT_EXIT)
        if sampling_rate != _ESPEAK_SAMPLING_RATE:
            raise CorpusError(f"espeak-ng did not start from {data} (it answered {sampling_rate}). Reinstall it.")
        library.espeak_SetSynthCallback(receive)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        yield library, pieces
    finally:
        library.espeak_Terminate()
        _unload(library)


def _unload(library: ctypes.CDLL) -> None:
    unload = _ctypes.FreeLibrary if os.name == "nt" else _ctypes.dlclose
    unload(library._handle)


def _select_voice(library: ctypes.CDLL, voice: Voice) -> None:
    # espeak-ng ignores a variant that it does not have and speaks in the plain voice.
    variant = require_espeak()[1] / "voices" / "!v" / voice.variant
    if voice.language not in ACCENTS or not variant.is_file():
        raise CorpusError(
            f"espeak-ng has no voice {voice.name}. Accents: {', '.join(ACCENTS)}; variants: {variant.parent}"
        )
    _check(library.espeak_SetVoiceByName(f"{ACCENTS[voice.language]}+{voice.variant}".encode()), f"voice {voice.name}")


def _check(status: int, what: str) -> None:
    if status:
        raise CorpusError(f"espeak-ng refused the {what} (status {status}).")
