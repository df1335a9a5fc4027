from __future__ import annotations

import multiprocessing
import os
import signal
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


def compute(rows: range) -> list[torch.Tensor]:
    return [tensor(row) for row in rows]


def refuse(rows: range) -> list[torch.Tensor]:
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
    assert missing_rows(tmp_path, 9) == 0
    assert torch.equal(filled_cache(tmp_path, KEY, 9, refuse)[8], tensor(8).bfloat16())


def _killed_in_the_second_part(folder: Path) -> None:
    feature_cache.ROWS_PER_PART = 4

    def until_killed(rows: range):
        if rows.start == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(rows)

    filled_cache(folder, KEY, 9, until_killed)


def test_a_killed_run_is_continued(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_killed_in_the_second_part, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert missing_rows(tmp_path, 9) == 5
    computed = []
    cache = filled_cache(tmp_path, KEY, 9, lambda rows: computed.extend(rows) or compute(rows))
    assert computed == [4, 5, 6, 7, 8]
    assert all(torch.equal(cache[row], tensor(row).bfloat16()) for row in range(9))


def test_a_part_that_fails_half_way_leaves_nothing_of_it(tmp_path):
    def half(rows: range):
        yield tensor(0)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        filled_cache(tmp_path, KEY, 3, half)
    assert not list(tmp_path.glob("*part*"))


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_truncated_part_is_named(tmp_path, kept):
    filled_cache(tmp_path, KEY, 9, compute)
    part = tmp_path / "part-00001.arrow"
    content = part.read_bytes()
    part.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ArgumentError, match=r"part-00001\.arrow is cut off or damaged\. Remove") as error:
        filled_cache(tmp_path, KEY, 9, refuse)
    assert "\n" not in str(error.value)


def test_a_cache_of_other_weights_is_refused(tmp_path):
    filled_cache(tmp_path, KEY, 3, compute)
    with pytest.raises(ArgumentError, match=r"computed with other weights\. Remove the folder"):
        filled_cache(tmp_path, {**KEY, "weights": "xyz"}, 3, refuse)


def test_a_cache_of_fewer_rows_is_refused(tmp_path):
    filled_cache(tmp_path, KEY, 3, compute)
    with pytest.raises(ArgumentError, match="has 3 rows instead of 4"):
        filled_cache(tmp_path, KEY, 4, refuse)
