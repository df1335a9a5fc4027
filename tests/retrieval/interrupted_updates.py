"""Run by the tests in a process of its own: indexing that is killed, or done twice at once.

Processes are forked from one that has imported the slow libraries and has not started LanceDB's threads.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from speech_image_retrieval.retrieval import compaction, update
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from speech_image_retrieval.retrieval.sources import FolderSource
from tiny_gallery import tiny_model, tiny_processor, write_picture


def index_folder(uri: str, folder: str, started: int | None = None) -> None:
    """Write a byte to `started` when the index is open, and another at every write."""
    index = SpeechImageIndex.create(uri, tiny_model(), tiny_processor())
    if started is not None:
        os.write(started, b"!")
        write = update.Update._write

        def noted(self: update.Update, pending: list) -> None:
            write(self, pending)
            os.write(started, b"!")

        update.Update._write = noted
    index.update_from(FolderSource(folder, "image"), batch_size=2, num_workers=1)


def forked(uri: str, folder: str, started: int | None = None) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            index_folder(uri, folder, started)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def seconds_after(uri: str, folder: str, signs: int) -> float:
    """How long a whole update goes on after that many signs of it."""
    reading, writing = os.pipe()
    child = forked(uri, folder, writing)
    os.close(writing)
    for _ in range(signs):
        os.read(reading, 1)
    began = time.monotonic()
    os.waitpid(child, 0)
    os.close(reading)
    return time.monotonic() - began


def kill_repeatedly(uri: str, folder: str, times: int) -> int:
    """Kill processes while they open the index, while they index, and after their first write, by turns.

    Every round has pictures to write and rows to delete. Returns how many were killed between a write and their end.
    """
    draw, interrupted = random.Random(0), 0
    whole = f"{uri}-not"
    os.waitpid(forked(whole, folder), 0)
    lasts = []
    for signs in range(3):
        renew(Path(folder), -1 - signs)
        lasts.append(seconds_after(whole, folder, signs))
    for number in range(times):
        renew(Path(folder), number)
        signs = number % 3
        reading, writing = os.pipe()
        child = forked(uri, folder, writing)
        os.close(writing)
        for _ in range(signs):
            os.read(reading, 1)
        time.sleep(draw.uniform(0, lasts[signs]))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        interrupted += signs == 2 and os.WIFSIGNALED(status)
        os.close(reading)
    return interrupted


def renew(folder: Path, number: int) -> None:
    """Five new pictures in place of the five that come first."""
    for path in sorted(folder.rglob("*.png"))[:5]:
        path.unlink()
    for place in range(5):
        write_picture(folder / "new" / f"{number:+04}-{place}.png", seed=1_000 + 5 * number + place)


def index_at_once(uri: str, folders: list[str]) -> None:
    children = [forked(uri, folder) for folder in folders]
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        sys.exit(f"writers ended with {codes}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "lancedb fork support")  # nothing of it ran before the fork
    update._BYTES_PER_WRITE = 1  # every batch is a write
    killed, shared, one, two = sys.argv[1:]
    compaction._SMALL_FRAGMENTS = 2  # and nearly every update compacts
    interrupted = kill_repeatedly(killed, one, times=21)
    if interrupted < 4:
        sys.exit(f"only {interrupted} of 21 processes were killed between a write and their end")
    index_at_once(shared, [one, one, two])
