from __future__ import annotations

import numpy as np
import pytest
from speech_image_retrieval.corpora import measuring
from speech_image_retrieval.corpora.measuring import measure_corpus

from .spoken_rows import at, corpus_with, dataset, embedded, encoded_samples, file, picture, recording, row


def unusable(*rows, decode=True) -> dict[str, list[str]]:
    return measure_corpus({"train": dataset(*rows)}, decode, num_proc=1).unusable.examples


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("column", ["image", "audio"])
@pytest.mark.parametrize(
    ("make", "kind", "reason"),
    [
        (lambda folder: at(folder / "nowhere"), "missing file", "no such file"),
        (lambda folder: at(folder), "missing file", "no such file"),
        (lambda folder: file(folder / "empty", b""), "empty file", "an empty file"),
        (lambda folder: file(folder / "garbage", b"no medium at all" * 20), "unreadable file", "unreadable"),
        (lambda folder: file(folder / "garbage.raw", b"no medium at all" * 20), "unreadable file", "unreadable"),
        (lambda folder: embedded(b""), "empty file", "an empty file"),
        (lambda folder: embedded(b"no medium at all" * 20), "unreadable file", "unreadable"),
        (lambda folder: {"bytes": None, "path": None}, "missing file", "neither bytes nor a path"),
        (lambda folder: None, "missing file", "neither bytes nor a path"),
    ],
)
def test_each_unusable_medium_is_found(tmp_path, column, make, kind, reason, decode):
    found = unusable(row(0), row(1, **{column: make(tmp_path)}), row(2), decode=decode)
    assert list(found) == [kind]
    (example,) = found[kind]
    assert example.startswith("train, train-1#0: ") and reason in example


def test_a_file_that_cannot_be_read_is_found_and_not_an_end(tmp_path, monkeypatch):
    def refuse(media):
        raise PermissionError(13, "Permission denied", media["path"])

    monkeypatch.setattr("speech_image_retrieval.corpora.media_facts.encoded", refuse)
    found = unusable(row(0, image=file(tmp_path / "secret.png", picture(0))))
    assert any("secret.png" in example and "Permission denied" in example for example in found["unreadable file"])


def test_every_caption_of_a_missing_picture_is_found(tmp_path):
    missing = at(tmp_path / "nowhere.png")
    rows = [row(0, image=missing), row(1), row(2, image=missing, audio=at(tmp_path / "nowhere.wav"))]
    measured = measure_corpus({"train": dataset(*rows)}, True, num_proc=1)
    assert list(measured.rows["train"]["usable"]) == [False, True, False]
    assert [example.split(":")[0] for example in measured.unusable.examples["missing file"]] == [
        "train, train-0#0",
        "train, train-2#0",
        "train, train-2#0",
    ]


def test_what_is_kept_of_a_row(tmp_path):
    as_file = file(tmp_path / "0.wav", recording(0, seconds=0.75, peak=0.25, rate=16_000))
    rows = [
        row(0, image=embedded(picture(5, size=(60, 30))), audio=as_file),
        row(1, image=file(tmp_path / "5.png", picture(5, size=(60, 30))), audio=as_file),
        row(2, audio=embedded(encoded_samples(np.tile([[1.0, -1.0], [0.0, 0.5]], (100, 1))))),
    ]
    first, same, loud = measure_corpus({"train": dataset(*rows)}, True, num_proc=1).rows["train"]
    assert first["seconds"] == 0.75 and first["sampling_rate"] == 16_000 and first["channels"] == 1
    assert (first["width"], first["height"]) == (60, 30)
    assert first["peak"] == pytest.approx(0.25, abs=1e-3) and first["clipped"] == 0
    assert first["picture"] == same["picture"] != loud["picture"]
    assert first["recording"] == same["recording"] != loud["recording"]
    assert loud["channels"] == 2 and loud["peak"] == pytest.approx(1) and loud["clipped"] == 0.5


def test_a_picture_is_decoded_once_a_chunk_whether_it_is_a_file_or_bytes(tmp_path, monkeypatch):
    decoded = []
    inspect = measuring.inspect_picture

    def spy(media, decode):
        decoded.append(media["path"])
        return inspect(media, decode)

    monkeypatch.setattr(measuring, "inspect_picture", spy)
    media = file(tmp_path / "1.png", picture(1)), embedded(picture(2))
    measure_corpus({"train": dataset(*(row(n, image=media[n % 2]) for n in range(8)))}, True, num_proc=1)
    assert decoded == [str(tmp_path / "1.png"), None]


def test_small_corpora_need_no_other_process(monkeypatch):
    asked = []
    in_order = measuring.in_order

    def spy(function, tasks, num_proc, preload):
        asked.append(num_proc)
        return in_order(function, tasks, 1, preload)

    monkeypatch.setattr(measuring, "in_order", spy)
    measure_corpus(corpus_with(), True, num_proc=8)
    monkeypatch.setattr(measuring, "CHUNK_ROWS", 1)
    measure_corpus(corpus_with(), True, num_proc=2)
    assert asked == [1, 2]


def test_other_processes_get_places_and_no_media(tmp_path):
    from pickle import dumps

    big = corpus_with(*(row(number, audio=embedded(recording(number, seconds=30))) for number in range(1, 5)))
    media = sum(len(one["audio"]["bytes"]) for one in big["train"])
    tasks = list(measuring._chunks(big, True))
    assert sum(len(dumps(task)) for task in tasks) < media / 50
