"""How a run ends before its time: a scheduler's SIGTERM, losses that are not finite, and data workers that die."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from safetensors.torch import save_file

from ..corpora.schema import CorpusError
from .objective import Batch


class SigtermWatch:
    """While it is entered, SIGTERM leaves a note only: the step at hand ends, and a checkpoint can be written."""

    def __enter__(self) -> SigtermWatch:
        self._received = False
        self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def received(self) -> bool:
        """Whether any process was told to end; all processes ask, and are told the same."""
        if PartialState().num_processes == 1:
            return self._received
        return bool(reduce(torch.tensor(int(self._received), device=PartialState().device), "sum"))


def ignore_sigterm(worker: int) -> None:
    """For the data workers, whom schedulers signal too: the step at hand needs them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def data_workers_ended() -> Iterator[None]:
    """Where this is left by an error, data workers end, and an error of theirs is told in words for people: PyTorch
    tells it in tracebacks.

    Raises:
        ChildProcessError: one was killed.
        CorpusError: one came upon an example that cannot be used.
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
                "A data worker was killed, most likely by the system for want of memory. The last checkpoint is "
                "whole: start the same command again, with a lower num_workers (0 reads in the training process)."
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


__all__ = ["SigtermWatch", "data_workers_ended", "ignore_sigterm", "save_for_inspection"]
