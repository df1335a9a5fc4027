from __future__ import annotations

import io
import json
import sys
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from speech_image_retrieval.cli import app
from speech_image_retrieval.cli import microphone as microphone_module
from speech_image_retrieval.cli.microphone import _enter_pressed, record_speech
from typer.testing import CliRunner, Result

from .retrieval.tiny_gallery import picture_folder, save_tiny

RATE = 48_000


class FakeDevice(SimpleNamespace):
    """Stands for the module sounddevice: a microphone that gives one tone as soon as it is opened."""

    PortAudioError = OSError

    def query_devices(self, kind: str) -> dict:
        if self.seconds == 0:
            raise self.PortAudioError("Error querying device -1")
        return {"default_samplerate": float(RATE)}

    def InputStream(self, samplerate: int, channels: int, dtype: str, callback):
        tone = self.loudness * np.sin(np.arange(int(self.seconds * samplerate)) / 20)
        for block in np.array_split(tone.astype(dtype)[:, None].repeat(channels, 1), 7):
            reused = block.copy()
            callback(reused, len(block), None, None)
            reused[:] = np.nan  # PortAudio's buffer is only valid during the call
        return io.BytesIO()  # any context manager


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def microphone(monkeypatch):
    device = FakeDevice(seconds=0.5, loudness=0.1)
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))
    return device


def test_all_blocks_are_kept_in_order(microphone):
    recorded = record_speech(max_seconds=8)
    expected = 0.1 * np.sin(np.arange(RATE // 2) / 20)
    assert recorded["sampling_rate"] == RATE
    np.testing.assert_allclose(recorded["array"], expected, atol=1e-6)


def test_no_more_than_the_model_hears_is_kept(microphone):
    assert len(record_speech(max_seconds=0.25)["array"]) == RATE // 4


@pytest.mark.parametrize("stdin", [io.StringIO(""), None])
def test_without_a_terminal_nobody_has_pressed_enter(microphone, monkeypatch, stdin, capsys):
    record_speech(max_seconds=0.25)
    assert "press Enter when you are done (at most 0.25 seconds)" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", stdin)
    assert not _enter_pressed().wait(0.2)
    assert len(record_speech(max_seconds=0.25)["array"]) == RATE // 4
    assert capsys.readouterr().err == "Speak now; you have 0.25 seconds.\n"


def test_what_cannot_be_recorded_is_explained(microphone, monkeypatch):
    microphone.loudness = 0
    with pytest.raises(ValueError, match="gave silence"):
        record_speech(1)
    microphone.seconds = 0
    with pytest.raises(ValueError, match="cannot be used: Error querying device"):
        record_speech(1)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ValueError, match=r"pip install 'speech-image-retrieval\[microphone\]'"):
        record_speech(1)


def test_a_spoken_query_finds_what_its_recording_finds(microphone, monkeypatch, tmp_path):
    pressed = Event()
    pressed.set()
    monkeypatch.setattr(microphone_module, "_enter_pressed", lambda: pressed)  # the runner's input is no terminal
    model, pictures = save_tiny(tmp_path / "model"), picture_folder(tmp_path / "pictures", 8)
    tone = 0.1 * np.sin(np.arange(RATE // 2) / 20)
    soundfile.write(tmp_path / "tone.wav", tone, RATE, subtype="FLOAT")
    found = tmp_path / "index", tmp_path / "found.json"
    sir("index", model, pictures, "--out", found[0])
    said = sir("search", found[0], tmp_path / "tone.wav", "--mic", "--json", found[1], "--sheet", tmp_path / "s.png")
    by_file, by_microphone = json.loads(found[1].read_text(encoding="utf-8"))["queries"]
    assert by_microphone["query"] == "microphone" and "Speak now" in said.stderr
    assert [row["id"] for row in by_file["results"]] == [row["id"] for row in by_microphone["results"]]
    assert "microphone" in sir("search", model, pictures, "--mic").stdout


def sir(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input="\n")
    assert result.exit_code == 0, result.output
    return result
