from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speech_image_retrieval.training import feature_cache
from speech_image_retrieval.training.arguments import ArgumentError
from speech_image_retrieval.training.feature_cache import filled_cache, missing_rows

KEY = {"weights": "abc", "corpus": "def"}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(feature_cache, "ROWS_PER_PART", 4)


def tensor(row: int) -> torch.Tensor:
    return torch.randn(1 + row % 3, 2, 5, generator=torch.Generator().manual_seed(row))


def compute(rows: range) -> Iterator[dict[int, torch.Tensor]]:
    """Batches of two, the last rows first."""
    for start in reversed(range(rows.start, rows.stop, 2)):
        yield {row: tensor(row) for row in range(start, min(start + 2, rows.stop))}


def missing(folder: Path, rows: int) -> int:
    return sum(map(len, missing_rows(folder, rows)))


def refuse(rows: range) -> Iterator[dict[int, torch.Tensor]]:
    raise AssertionError(f"{rows} were computed again")


@given(count=st.integers(1, 13))
def test_what_goes_in_comes_out_as_bfloat16(count, tmp_path_factory):
    cache = filled_cache(tmp_path_factory.mktemp("cache"), KEY, count, compute)
    assert len(cache) == count
    for row in range(count):
        assert torch.equal(cache[row], tensor(row).bfloat16())
    assert cache.lengths.tolist() == [1 + row % 3 for row in range(count)]


def test_a_second_opening_computes_nothing(tmp_path):
    filled_cache(tmp_path, KEY, 9, compute)
    assert missing(tmp_path, 9) == 0
    assert torch.equal(filled_cache(tmp_path, KEY, 9, refuse)[8], tensor(8).bfloat16())


def killed(fill: Callable[[], None]) -> None:
    """Run something in a process of its own until it kills itself."""
    process = multiprocessing.get_context("fork").Process(target=fill)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def kill(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_is_continued(tmp_path):
    killed(lambda: filled_cache(tmp_path, KEY, 9, lambda rows: kill() if rows.start == 4 else compute(rows)))
    assert missing(tmp_path, 9) == 5
    computed = []
    cache = filled_cache(tmp_path, KEY, 9, lambda rows: computed.extend(rows) or compute(rows))
    assert computed == [4, 5, 6, 7, 8]
    assert all(torch.equal(cache[row], tensor(row).bfloat16()) for row in range(9))


def test_of_a_part_that_is_killed_while_it_is_written_nothing_is_visible_and_nothing_stays(tmp_path):
    filled_cache(tmp_path, KEY, 4, compute)

    def fill() -> None:
        os.fsync = kill
        filled_cache(tmp_path, KEY, 9, compute)

    killed(fill)
    assert [path.name for path in tmp_path.glob("part*")] == ["part-00000000-00000004.arrow"]
    assert missing(tmp_path, 9) == 5
    assert len(list(tmp_path.glob(".part*"))) == 1
    filled_cache(tmp_path, KEY, 9, compute)
    assert not list(tmp_path.glob(".*"))


def test_what_a_running_process_or_another_machine_writes_is_left_alone(tmp_path):
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    host = feature_cache.socket.gethostname()
    kept = {f".part-00000000-00000004.arrow.{host}.{running.pid}", ".part-00000000-00000004.arrow.elsewhere.1"}
    for name in kept:
        (tmp_path / name).touch()
    filled_cache(tmp_path, KEY, 9, compute)
    assert {path.name for path in tmp_path.glob(".*")} == kept
    running.communicate(b"\n")


def test_a_part_is_written_batch_by_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "ROWS_PER_PART", 512)
    sizes = []

    def watched(rows: range) -> Iterator[dict[int, torch.Tensor]]:
        for row in rows:
            sizes.extend(path.stat().st_size for path in tmp_path.glob(".part*"))
            yield {row: torch.zeros(100, 1000)}

    filled_cache(tmp_path, KEY, 6, watched)
    assert len(sizes) == 6 and all(after - before >= 200_000 for before, after in pairwise(sizes[1:]))


def test_parts_of_large_rows_have_fewer(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "PART_BYTES", 100)
    cache = filled_cache(tmp_path, KEY, 9, compute, row_bytes=50)
    assert sorted(path.stem for path in tmp_path.glob("part*"))[-1] == "part-00000008-00000009"
    (tmp_path / "part-00000002-00000004.arrow").unlink()
    assert missing_rows(tmp_path, 9) == [range(2, 4)]
    again = filled_cache(tmp_path, KEY, 9, compute, row_bytes=1e9)
    assert all(torch.equal(again[row], cache[row]) for row in range(9))


def test_tensors_for_other_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 tensors were computed for the 3 rows"):
        filled_cache(tmp_path, KEY, 3, lambda rows: iter([{0: tensor(0)}]))
    assert not list(tmp_path.glob("*part*"))


def test_a_part_that_fails_half_way_leaves_nothing_of_it(tmp_path):
    def half(rows: range):
        yield {0: tensor(0)}
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        filled_cache(tmp_path, KEY, 3, half)
    assert not list(tmp_path.glob("*part*"))


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_truncated_part_is_named(tmp_path, kept):
    filled_cache(tmp_path, KEY, 9, compute)
    part = tmp_path / "part-00000004-00000008.arrow"
    content = part.read_bytes()
    part.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ArgumentError, match=r"part-00000004-00000008\.arrow is cut off or damaged\. Remove") as error:
        filled_cache(tmp_path, KEY, 9, refuse)
    assert "\n" not in str(error.value)


def test_a_cache_of_other_weights_is_refused(tmp_path):
    filled_cache(tmp_path, KEY, 3, compute)
    with pytest.raises(ArgumentError, match=r"computed with other weights\. Remove the folder"):
        filled_cache(tmp_path, {**KEY, "weights": "xyz"}, 3, refuse)


def test_a_part_of_fewer_rows_and_a_cache_of_more_are_refused(tmp_path):
    filled_cache(tmp_path, KEY, 3, compute)
    with pytest.raises(ArgumentError, match=r"holds rows up to 3, of 2\. Remove the folder"):
        filled_cache(tmp_path, KEY, 2, refuse)
    (tmp_path / "part-00000000-00000003.arrow").rename(tmp_path / "part-00000000-00000004.arrow")
    with pytest.raises(ArgumentError, match="has 3 rows instead of 4"):
        filled_cache(tmp_path, KEY, 4, refuse)
