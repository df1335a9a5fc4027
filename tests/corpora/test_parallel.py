from __future__ import annotations

import math
import os

import pytest
from speech_image_retrieval.corpora.parallel import in_order
from speech_image_retrieval.corpora.schema import CorpusError

# Functions of the standard library: other processes cannot import this file.
PRELOAD = in_order.__module__


@pytest.mark.parametrize("num_proc", [1, 2])
def test_results_come_in_the_order_of_the_tasks(num_proc):
    tasks = [(20_000 if number == 0 else number,) for number in range(12)]  # the first takes longest
    with in_order(math.factorial, iter(tasks), num_proc, preload=PRELOAD) as results:
        assert list(results) == [(task, math.factorial(task[0])) for task in tasks]


@pytest.mark.parametrize("num_proc", [1, 2])
def test_tasks_are_read_as_they_are_needed(num_proc):
    read = []

    def tasks():
        for number in range(1000):
            read.append(number)
            yield (number,)

    with in_order(math.sqrt, tasks(), num_proc, preload=PRELOAD) as results:
        next(results)
        assert len(read) <= 2 * num_proc + 1


@pytest.mark.parametrize("num_proc", [1, 2])
def test_what_is_raised_is_raised_at_its_turn(num_proc):
    seen = []
    with (
        pytest.raises(ValueError, match="math domain error"),
        in_order(math.sqrt, ((1 - number,) for number in range(50)), num_proc, preload=PRELOAD) as results,
    ):
        seen += (result for _, result in results)
    assert seen == [1.0, 0.0]


def test_a_process_that_dies_is_an_error_for_people():
    with (
        pytest.raises(CorpusError, match="smaller --num-proc"),
        in_order(os._exit, [(3,), (3,)], 2, preload=PRELOAD) as results,
    ):
        list(results)
