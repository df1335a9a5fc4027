"""Speech from text with flite, a second family of synthesisers, through its command."""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

import numpy as np
import soundfile

from .schema import CorpusError
from .synthesis import finish

# What the voices murmur when there is nothing to say stays below 0.003; speech is above 0.1.
_SILENCE = 0.01


@dataclass(frozen=True)
class FliteVoice:
    """One of flite's voices and its accent, named by its BCP-47 tag."""

    language: str
    voice: str

    @property
    def name(self) -> str:
        return f"flite+{self.voice}"


# `kal` is the speaker of `kal16` at half the sampling rate; `awb_time` tells the time only.
FLITE_SPEAKERS = (
    FliteVoice("en-GB-scotland", "awb"),
    FliteVoice("en-US", "kal16"),
    FliteVoice("en-US", "rms"),
    FliteVoice("en-US", "slt"),
)


def require_flite() -> str:
    """The path of the `flite` command; a CorpusError that says how to install it if it is not there."""
    command = shutil.which("flite")
    if command is None:
        raise CorpusError("Speech by a second synthesiser needs flite, which is not installed: apt-get install flite")
    return command


def synthesize(text: str, voice: FliteVoice, *, duration_stretch: float = 1.0) -> np.ndarray:
    """Speak `text`, a `duration_stretch` times as long as the voice would. The same arguments always give the same
    samples, in the form of :func:`synthesis.synthesize`: 16 kHz, same peak and margins.

    Raises:
        CorpusError: flite is not installed, does not have the voice, or gave no sound.
    """
    command = require_flite()
    if voice.voice not in _voices(command):
        raise CorpusError(f"flite has no voice {voice.voice!r}. Voices: {', '.join(sorted(_voices(command)))}.")
    stretch = f"duration_stretch={duration_stretch}"
    arguments = [command, "-voice", voice.voice, "--setf", stretch, "-o", "/dev/stdout", "-t", text]
    spoken = subprocess.run(arguments, capture_output=True)
    try:
        samples, sampling_rate = soundfile.read(io.BytesIO(spoken.stdout), dtype="float32")
    except soundfile.SoundFileError:
        samples, sampling_rate = np.zeros(0, np.float32), 0
    if spoken.returncode or np.abs(samples).max(initial=0) < _SILENCE:
        raise CorpusError(f"flite gave no sound for {text!r} in the voice {voice.name}. Use other words or voice.")
    return finish(samples, sampling_rate)


@cache
def _voices(command: str) -> frozenset[str]:
    # flite speaks in its default voice when it does not have the one named.
    listed = subprocess.run([command, "-lv"], capture_output=True, text=True).stdout
    return frozenset(listed.partition(":")[2].split())
