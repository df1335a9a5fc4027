"""Work shared out between processes, with the results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, TypeVar

from .schema import CorpusError

Task = TypeVar("Task", bound=tuple[Any, ...])
Result = TypeVar("Result")


@contextmanager
def in_order(
    function: Callable[..., Result], tasks: Iterable[Task], num_proc: int, preload: str
) -> Iterator[Iterator[tuple[Task, Result]]]:
    """Each task with what `function(*task)` gave, while later tasks are under way; leaving it drops what is not begun.

    Tasks are read as they are needed, two ahead for each process, so they may be many and hold data.

    Args:
        num_proc: processes; 1 works in this one.
        preload: the module that new processes should have imported already: the one that `function` is from.

    Raises:
        CorpusError: a process was killed. What `function` raises is raised here, at its task's turn.
    """
    if num_proc == 1:
        yield ((task, function(*task)) for task in tasks)
        return
    # Forking a process that has threads, of torch or of the progress bar, can hang it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    pool = ProcessPoolExecutor(num_proc, mp_context=context, initializer=_end_with_parent)
    try:
        yield _results(pool, function, tasks, ahead=2 * num_proc)
    except BrokenProcessPool:
        raise CorpusError(
            "A process that read the corpus was killed: for want of memory (then pass a smaller --num-proc), "
            "or by a file that crashes its decoder."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A parent that is killed tells nobody, and its workers would wait for ever."""

    def watch() -> None:
        connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _results(
    pool: ProcessPoolExecutor, function: Callable[..., Result], tasks: Iterable[Task], ahead: int
) -> Iterator[tuple[Task, Result]]:
    waiting: deque[tuple[Task, Future[Result]]] = deque()
    for task in tasks:
        waiting.append((task, pool.submit(function, *task)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()
