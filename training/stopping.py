"""How a run ends before its time: SIGTERM and Ctrl-C, losses that are not finite, workers and processes that die."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import torch
from accelerate import PartialState
from accelerate.utils import gather
from safetensors.torch import save_file
from torch.distributed import DistError

from ..corpora.schema import CorpusError
from .objective import Batch

_ENDING = (signal.SIGTERM, signal.SIGINT)


class EndWatch:
    """While it is entered, SIGTERM and Ctrl-C leave a note only: the step at hand ends, and a checkpoint can be
    written. A Ctrl-C after either interrupts. A signal that is ignored, as in the background of a shell, stays so."""

    def __enter__(self) -> EndWatch:
        self._received = 0
        heard = [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received:
            raise KeyboardInterrupt
        self._received = self._received or number
        if number == signal.SIGINT and PartialState().is_main_process:
            # Not print, for the signal may come while something is printed; and whoever reads may end by it, too.
            with suppress(OSError):
                os.write(2, b"\nThe step or validation at hand ends, then a checkpoint. Ctrl-C again: at once.\n")

    def received(self) -> signal.Signals | None:
        """What any process was told to end by; all processes ask, and are told the same."""
        number = self._received
        if PartialState().num_processes > 1:
            number = int(gather(torch.tensor([number], device=PartialState().device)).max())
        return signal.Signals(number) if number else None


def ignore_signals(worker: int) -> None:
    """For the data workers, whom schedulers and terminals signal too: the step at hand needs them."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def told_in_words() -> Iterator[None]:
    """For all that a process of a run does. Where it is left by an error, data workers end, and what befell them or
    another process is told in words for people: PyTorch tells it in tracebacks.

    Raises:
        ChildProcessError: a data worker was killed.
        ConnectionAbortedError: another process of the run ended.
        CorpusError: a data worker came upon an example that cannot be used.
    """
    try:
        yield
    except BaseException as error:
        # The frames hold the loader, and it the workers. Python would send them SIGTERM at its end, which they ignore,
        # and wait for them.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, CorpusError):
            raise CorpusError(str(error).rpartition("CorpusError: ")[2].strip()) from error
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            raise ChildProcessError(
                "A data worker was killed, most likely by the system for want of memory. The same command goes on "
                "from the last checkpoint, if there is one; lower num_workers with it (0: the training process reads)."
            ) from error
        of_gloo = isinstance(error, RuntimeError) and "third_party/gloo" in str(error)
        if of_gloo or isinstance(error, DistError):
            raise ConnectionAbortedError(
                f"Process {PartialState().process_index} cannot reach the others: {str(error).splitlines()[0]} If one "
                "of them ended, it says why, unless it was killed, most likely by the system for want of memory. The "
                "same command goes on from the last checkpoint, if there is one."
            ) from error
        raise


def save_for_inspection(micro_batches: Sequence[Batch], folder: Path) -> Path:
    """Keep a batch as it reached the model: `speech.*`, `image.*`, `image_ids` and `rows`, which are those of the
    training split, of each micro-batch by number. Every process writes its own share."""
    tensors = {}
    for number, batch in enumerate(micro_batches):
        parts = {f"speech.{name}": part for name, part in batch.speech.items()}
        parts |= {f"image.{name}": part for name, part in batch.image.items()}
        parts |= {"image_ids": batch.image_ids, "rows": batch.rows}
        tensors |= {f"{number}.{name}": part.cpu().contiguous() for name, part in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"not-finite-{PartialState().process_index}.safetensors"
    save_file(tensors, path)
    return path


__all__ = ["EndWatch", "ignore_signals", "save_for_inspection", "told_in_words"]
