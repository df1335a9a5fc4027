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

import torch
from speech_image_retrieval.retrieval import update
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from speech_image_retrieval.retrieval.sources import FolderSource
from tiny_gallery import tiny_model, tiny_processor


def index_folder(uri: str, folder: str, started: int | None = None) -> None:
    index = SpeechImageIndex.create(uri, tiny_model(), tiny_processor())
    if started is not None:
        os.write(started, b"!")
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


def kill_repeatedly(uri: str, folder: str, times: int, longest: float) -> None:
    """Every other process is killed while it opens or creates the index, the others while they index."""
    draw = random.Random(0)
    for number in range(times):
        reading, writing = os.pipe()
        child = forked(uri, folder, writing)
        os.close(writing)
        if number % 2:
            os.read(reading, 1)
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


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
    kill_repeatedly(killed, one, times=20, longest=0.3)
    index_at_once(shared, [one, one, two])
