from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from datasets import load_from_disk
from filelock import FileLock
from PIL import Image
from speech_image_retrieval.corpora import building, parts
from speech_image_retrieval.corpora.building import REPORT, Reading, build_from_files
from speech_image_retrieval.corpora.media_facts import (
    BROKEN_OFF,
    EMPTY,
    HIDDEN_SAMPLES,
    MISSING,
    NO_SAMPLES,
    UNREADABLE,
)
from speech_image_retrieval.corpora.parts import LONG, REPAIRED
from speech_image_retrieval.corpora.schema import FEATURES, CorpusError, Media, SpokenCaption

from ..fresh_process import run_script

ROOT = Path(__file__).parents[2]
RATE = 16_000
SPLITS = ("train", "validation", "test")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (40, 30), (number * 20, 0, 0)).save(folder / f"{number}.jpg")
        soundfile.write(folder / f"{number}.wav", np.full(RATE // 4 + number, 0.1), RATE)
    return folder


def captions(folder: Path, count: int = 12) -> Iterator[tuple[str, SpokenCaption]]:
    for number in range(count):
        row = SpokenCaption(
            image=Media(bytes=None, path=str(folder / f"{number}.jpg")),
            audio=Media(bytes=None, path=str(folder / f"{number}.wav")),
            image_id=f"picture {number}",
            caption_id=f"caption {number}",
            text=f"text {number}",
            speaker="someone",
            language="en",
        )
        yield SPLITS[number % 3], row


def build(folder: Path, out: Path, reading: Reading | None = None, **options):
    return build_from_files(reading or Reading(captions(folder)), out, num_proc=1, **options)


def test_rows_keep_their_order_and_the_paths_of_their_media(media: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(building, "PART_ROWS", 3)
    monkeypatch.chdir(media)
    relative = Reading(captions(Path()))
    corpus = build(media, tmp_path / "corpus", relative).corpus
    assert corpus["validation"]["caption_id"][:] == ["caption 1", "caption 4", "caption 7", "caption 10"]
    assert corpus["train"][1]["image"] == {"bytes": None, "path": str(media / "3.jpg")}
    assert corpus["train"].features == FEATURES
    assert sorted(path.name for path in (tmp_path / "corpus" / "test").glob("*.arrow")) == [
        "data-00000-of-00002.arrow",
        "data-00001-of-00002.arrow",
    ]
    assert not list(tmp_path.glob("corpus.building*"))


def test_media_are_copied_only_when_asked(media: Path, tmp_path: Path):
    corpus = build(media, tmp_path / "corpus", embed=True).corpus
    content = (media / "4.wav").read_bytes()
    for file in media.iterdir():
        file.unlink()
    assert corpus["validation"][1]["audio"] == {"bytes": content, "path": "4.wav"}


def test_processes_change_nothing(media: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(building, "PART_ROWS", 2)
    one = build(media, tmp_path / "one").corpus
    two = build_from_files(Reading(captions(media)), tmp_path / "two", num_proc=2).corpus
    assert {split: rows.to_list() for split, rows in one.items()} == {
        split: rows.to_list() for split, rows in two.items()
    }


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        (MISSING, "3.jpg", None),
        (MISSING, "3.wav", None),
        (EMPTY, "3.jpg", b""),
        (EMPTY, "3.wav", b""),
        (UNREADABLE, "3.jpg", b"not a picture"),
        (UNREADABLE, "3.wav", b"not a recording"),
        (NO_SAMPLES, "3.wav", "header"),
        (HIDDEN_SAMPLES, "3.wav", "short header"),
        (BROKEN_OFF, "3.wav", "first half"),
    ],
)
def test_every_defect_is_refused_by_name_or_left_out_if_asked(
    media: Path, tmp_path: Path, kind: str, file: str, content: bytes | str | None
):
    whole = (media / file).read_bytes()
    if content is None:
        (media / file).unlink()
    elif content == "header":
        (media / file).write_bytes(whole[:40] + bytes(4))
    elif content == "first half":
        (media / file).write_bytes(whole[: len(whole) // 2])
    elif content == "short header":
        (media / file).write_bytes(whole[:40] + (100).to_bytes(4, "little") + whole[44:])
    else:
        (media / file).write_bytes(content)
    with pytest.raises(CorpusError, match=rf"1 of 12 spoken captions(.|\n)*1 x {kind}:\n  caption 3: .*{file}"):
        build(media, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()
    built = build(media, tmp_path / "corpus", skip_missing=True)
    assert built.report["left_out"][kind]["count"] == 1
    assert built.report["rows"] == {"train": 3, "validation": 4, "test": 4}
    assert json.loads((tmp_path / "corpus" / REPORT).read_text()) == built.report


def test_known_defects_are_left_out_without_asking(media: Path, tmp_path: Path):
    (media / "3.wav").write_bytes(b"")
    known = frozenset([EMPTY])
    built = build(media, tmp_path / "corpus", Reading(captions(media), known_defects=known))
    (media / "4.jpg").write_bytes(b"")
    with pytest.raises(CorpusError, match="1 of 12 spoken captions"):  # of recordings, not of pictures
        build(media, tmp_path / "other", Reading(captions(media), known_defects=known))
    assert built.report["left_out"] == {EMPTY: {"count": 1, "first": [f"caption 3: {media / '3.wav'}: an empty file"]}}


@pytest.mark.parametrize("size", [0, 100, 40_000, 4_000_000_000])
def test_a_broken_header_is_rebuilt_where_the_samples_are_known(media: Path, tmp_path: Path, size: int):
    samples = np.arange(-2000, 2000, dtype=np.int16)
    soundfile.write(media / "3.wav", samples, RATE, subtype="PCM_16")
    whole = (media / "3.wav").read_bytes()
    (media / "3.wav").write_bytes(whole[:40] + size.to_bytes(4, "little") + whole[44:])
    built = build(media, tmp_path / "corpus", Reading(captions(media), bare_sampling_rate=RATE))
    audio = built.corpus["train"][1]["audio"]
    if size == 4_000_000_000:  # as programs write it that do not know the length yet
        assert audio["bytes"] is None
        return
    assert built.report["kept"][REPAIRED]["count"] == 1
    (tmp_path / "rebuilt.wav").write_bytes(audio["bytes"])
    heard, rate = soundfile.read(tmp_path / "rebuilt.wav", dtype="int16")
    assert rate == RATE
    assert np.array_equal(heard, samples)


def test_chunks_behind_the_samples_are_no_lost_samples(media: Path, tmp_path: Path):
    with (media / "3.wav").open("ab") as file:
        file.write(b"LIST" + (12).to_bytes(4, "little") + b"INFOISFTLavf")
    assert build(media, tmp_path / "corpus").report["left_out"] == {}


def test_long_recordings_are_kept_and_named(media: Path, tmp_path: Path):
    soundfile.write(media / "5.wav", np.zeros(61 * 8000), 8000)
    report = build(media, tmp_path / "corpus").report
    assert report["kept"] == {LONG: {"count": 1, "first": ["caption 5: 61.0 s"]}}


def test_a_split_without_captions_is_refused(media: Path, tmp_path: Path):
    rows = (pair for pair in captions(media) if pair[0] != "test")
    with pytest.raises(CorpusError, match=r"split test\. Captions by split: train 4, validation 4"):
        build(media, tmp_path / "corpus", Reading(rows))


def test_what_is_no_corpus_is_not_replaced(media: Path, tmp_path: Path):
    with pytest.raises(CorpusError, match="is not a corpus"):
        build(media, media)


def test_two_builds_do_not_write_to_one_place(media: Path, tmp_path: Path):
    with (
        FileLock(tmp_path / "corpus.building.lock").acquire(),
        pytest.raises(CorpusError, match="Another build"),
    ):
        build(media, tmp_path / "corpus")


def test_a_build_goes_on_where_another_was_killed(media: Path, tmp_path: Path, monkeypatch):
    script = f"""
        import os, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from tests.corpora import test_building as test
        from speech_image_retrieval.corpora import building
        building.PART_ROWS = 1
        def rows():
            for number, pair in enumerate(test.captions(Path({str(media)!r}))):
                if number == 7:
                    os.kill(os.getpid(), 9)
                yield pair
        building.build_from_files(building.Reading(rows()), {str(tmp_path / "corpus")!r}, num_proc=1)
    """
    killed = run_script(script)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "corpus").exists()
    done = {path.name for path in (tmp_path / "corpus.building").glob("*.arrow")}
    assert len(done) == 7
    monkeypatch.setattr(building, "PART_ROWS", 1)
    checked = []
    original = parts._checked_recording
    monkeypatch.setattr(parts, "_checked_recording", lambda row, *rest: checked.append(row) or original(row, *rest))
    corpus = build(media, tmp_path / "corpus").corpus
    assert [row["caption_id"] for row in checked] == [f"caption {number}" for number in range(7, 12)]
    assert sum(map(len, corpus.values())) == 12


def test_a_build_that_was_killed_while_it_put_the_corpus_in_place_is_done_again(
    media: Path, tmp_path: Path, monkeypatch
):
    build(media, tmp_path / "corpus")
    rename = Path.rename

    def killed(path: Path, target: Path):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            build(media, tmp_path / "corpus")
    checked = []
    original = parts._checked_recording
    monkeypatch.setattr(parts, "_checked_recording", lambda row, *rest: checked.append(row) or original(row, *rest))
    assert sum(map(len, build(media, tmp_path / "corpus").corpus.values())) == 12
    assert not checked


def test_a_file_that_changed_since_is_looked_at_again(media: Path, tmp_path: Path):
    folder = tmp_path / "corpus.building"
    folder.mkdir()
    for samples in (100, 4000):
        soundfile.write(media / "0.wav", np.zeros(samples), RATE)
        rows = [row for split, row in captions(media) if split == "train"]
        part = parts.write_part(folder, True, frozenset(), None, "train", rows)
        assert part.rows == 4
    assert len(list(folder.glob("*.arrow"))) == 2


def test_too_many_known_defects_are_none(media: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(building, "_KNOWN_AT_MOST", 1)
    for number in (3, 6):
        (media / f"{number}.wav").write_bytes(b"")
    with pytest.raises(CorpusError, match="2 of 12 spoken captions"):
        build(media, tmp_path / "corpus", Reading(captions(media), known_defects=frozenset([EMPTY])))


def test_no_process_outlives_a_build_that_is_killed():
    script = """
        import os, time
        import psutil
        from speech_image_retrieval.corpora import parallel
        tasks = [(seconds,) for seconds in [0.0] * 4 + [60.0] * 4]
        with parallel.in_order(time.sleep, tasks, 2, preload=parallel.__name__) as results:
            next(results)
            print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
            os.kill(os.getpid(), 9)
    """
    killed = run_script(script)
    children = [int(pid) for pid in killed.stdout.split()]
    assert len(children) >= 2
    for _ in range(300):
        alive = [pid for pid in children if _runs(pid)]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_files_that_were_broken_are_looked_at_again(media: Path, tmp_path: Path):
    whole = (media / "3.wav").read_bytes()
    (media / "3.wav").write_bytes(b"")
    with pytest.raises(CorpusError, match="empty"):
        build(media, tmp_path / "corpus")
    (media / "3.wav").write_bytes(whole)
    assert sum(map(len, build(media, tmp_path / "corpus").corpus.values())) == 12


def test_the_corpus_loads_with_datasets_alone(media: Path, tmp_path: Path):
    build(media, tmp_path / "corpus")
    loaded = load_from_disk(str(tmp_path / "corpus"))
    assert loaded["test"].features == FEATURES
    assert loaded["test"][0]["audio"]["path"] == str(media / "2.wav")
