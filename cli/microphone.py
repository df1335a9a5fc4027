"""Record a spoken query from the microphone."""

from __future__ import annotations

import sys
from threading import Event, Thread
from typing import Any

import numpy as np
import typer

from ..processing.media import is_silent

MAX_SECONDS = 30.0


def record_speech(max_seconds: float = MAX_SECONDS) -> dict[str, Any]:
    """Record until Enter is pressed, for at most `max_seconds`.

    Returns:
        A mapping as the processor reads it: `array` (samples,) float32 and `sampling_rate` in Hz, the device's own.

    Raises:
        ValueError: sounddevice is not installed, there is no microphone, or it gives silence.
    """
    sounddevice = _sounddevice()
    blocks: list[np.ndarray] = []

    def keep(block: np.ndarray, *_: object) -> None:
        blocks.append(block[:, 0].copy())

    try:
        rate = int(sounddevice.query_devices(kind="input")["default_samplerate"])
        with sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32", callback=keep):
            until = f"press Enter when you are done (at most {max_seconds:g} seconds)"
            typer.echo(f"Speak now; {until if _has_terminal() else f'you have {max_seconds:g} seconds'}.", err=True)
            _enter_pressed().wait(max_seconds)
    except sounddevice.PortAudioError as error:
        raise ValueError(
            f"The microphone cannot be used: {error}. Check that one is connected and allowed."
        ) from error
    samples = np.concatenate(blocks) if blocks else np.empty(0, dtype=np.float32)
    if is_silent(samples):
        raise ValueError("The microphone gave silence. Check that it is the right one and not muted.")
    return {"array": samples[: int(max_seconds * rate)], "sampling_rate": rate}


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise ValueError(
            "--mic needs sounddevice. Install it: pip install 'speech-image-retrieval[microphone]'"
        ) from None
    except OSError as error:  # the wheel for Linux comes without PortAudio
        raise ValueError(f"--mic needs PortAudio ({error}). On Debian: apt-get install libportaudio2") from None
    return sounddevice


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _enter_pressed() -> Event:
    pressed = Event()
    if not _has_terminal():  # nobody can press it
        return pressed

    def wait() -> None:
        sys.stdin.readline()
        pressed.set()

    Thread(target=wait, daemon=True).start()
    return pressed
