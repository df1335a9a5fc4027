from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock
from speech_image_retrieval.app import temporary_folder as temporary_folder_module
from speech_image_retrieval.app.temporary_folder import temporary_folder

HOLD = """
import runpy, sys
with runpy.run_path(sys.argv[1])["temporary_folder"]() as folder:  # without the package, which takes seconds
    (folder / "upload.wav").touch()
    print(folder, flush=True)
    input()
    print("goes on", flush=True)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return tmp_path


def signalled(number: signal.Signals, temporary: Path, *launcher: str) -> str:
    """What another process, which holds a folder, still says after a signal."""
    command = [*launcher, sys.executable, "-c", HOLD, temporary_folder_module.__file__]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        folder = Path(process.stdout.readline().strip())
        assert (folder / "upload.wav").is_file()
        process.send_signal(number)
        return process.communicate("\n")[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_deletes_it(number: signal.Signals, temporary: Path):
    # Whatever started the tests may ignore them: nohup SIGHUP, a shell SIGINT of what it runs in the background.
    assert signalled(number, temporary, "env", "--default-signal=HUP,INT") == ""
    assert not list(temporary.iterdir())


def test_what_nohup_started_goes_on_when_its_terminal_is_closed(temporary: Path):
    assert "goes on" in signalled(signal.SIGHUP, temporary, "nohup")


def test_a_killed_process_is_cleaned_up_after(temporary: Path):
    signalled(signal.SIGKILL, temporary)
    (left,) = temporary.iterdir()
    with temporary_folder() as folder:  # so soon its owner may be about to take the lock
        assert sorted(temporary.iterdir()) == sorted([left, folder.parent])
    os.utime(left, (0, 0))
    with temporary_folder() as folder:
        assert list(temporary.iterdir()) == [folder.parent] and left != folder.parent


def test_nothing_but_what_was_left_behind_is_deleted(temporary: Path, monkeypatch):
    elsewhere = temporary / "elsewhere"
    living, unknown = temporary / "sir-app-living", temporary / "sir-app-unknown"
    for path in (elsewhere, living):
        path.mkdir()
        (path / "lock").touch()
    unknown.mkdir()
    (temporary / "sir-app-link").symlink_to(elsewhere)
    (temporary / "sir-app-file").touch()
    before = sorted(temporary.iterdir())
    for path in (elsewhere, living, unknown):
        os.utime(path, (0, 0))
    with FileLock(living / "lock"), temporary_folder() as folder:
        assert sorted(temporary.iterdir()) == sorted([*before, folder.parent])
    monkeypatch.setattr(os, "getuid", lambda: -1)  # all of them are another user's
    with temporary_folder():
        assert (living / "lock").is_file() and (elsewhere / "lock").is_file()
    monkeypatch.undo()
