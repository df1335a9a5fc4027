from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from PIL import Image
from rich.console import Console
from speech_image_retrieval.corpora.media_check import drop_or_refuse, print_summary, summary, unusable_rows
from speech_image_retrieval.corpora.schema import FEATURES, CorpusError, split_from_rows

RATE = 8000


def picture(path: Path, red: int) -> Path:
    Image.new("RGB", (4, 4), (red, 0, 0)).save(path)
    return path


def recording(path: Path, seconds: float = 0.5) -> Path:
    soundfile.write(path, np.zeros(int(seconds * RATE), dtype=np.float32), RATE)
    return path


def at(path: Path | None) -> dict:
    return {"bytes": None, "path": path and str(path)}


def embedded(encoded: bytes) -> dict:
    return {"bytes": encoded, "path": None}


def row(image: dict, audio: dict, image_id: str = "a", **others: str | None) -> dict:
    blank = {"caption_id": f"{image_id}-1", "text": None, "speaker": None, "language": None}
    return {"image": image, "audio": audio, "image_id": image_id, **blank, **others}


def dataset(*rows: dict) -> Dataset:
    return split_from_rows(_yield_rows, captions=list(rows))


def _yield_rows(captions):
    yield from captions


@pytest.fixture
def good(tmp_path: Path) -> tuple[dict, dict]:
    return at(picture(tmp_path / "good.png", 1)), at(recording(tmp_path / "good.wav"))


def file_with(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("column", ["image", "audio"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: at(folder / "nowhere"), "no such file"),
        (lambda folder: at(folder), "no such file"),
        (lambda folder: at(file_with(folder / "empty", b"")), "an empty file"),
        (lambda folder: at(file_with(folder / "garbage", b"no medium at all" * 20)), "unreadable"),
        (lambda folder: at(file_with(folder / "garbage.raw", b"no medium at all" * 20)), "unreadable"),
        (lambda folder: embedded(b""), "an empty file"),
        (lambda folder: embedded(b"no medium at all" * 20), "unreadable"),
        (lambda folder: at(None), "neither bytes nor a path"),
    ],
)
def test_each_unusable_medium_is_found(tmp_path, good, column, make, reason):
    broken = dict(zip(("image", "audio"), good, strict=True)) | {column: make(tmp_path)}
    found = unusable_rows(dataset(row(*good), row(**broken), row(*good)))
    assert list(found) == [1]
    assert reason in found[1]


def test_a_recording_without_samples_is_unusable(tmp_path, good):
    silent = at(recording(tmp_path / "none.wav", seconds=0))
    assert "without samples" in unusable_rows(dataset(row(good[0], silent)))[0]


def test_paths_and_embedded_bytes_are_both_usable(good):
    bytes_of = [embedded(Path(media["path"]).read_bytes()) for media in good]
    assert unusable_rows(dataset(row(*good), row(*bytes_of))) == {}


def test_every_caption_of_a_missing_picture_is_found(tmp_path, good):
    missing = at(tmp_path / "nowhere.png")
    found = unusable_rows(dataset(row(missing, good[1]), row(*good), row(missing, at(tmp_path / "nowhere.wav"))))
    assert list(found) == [0, 2]
    assert "nowhere.png" in found[2] and "nowhere.wav" in found[2]


def splits_with_faults(tmp_path: Path, good: tuple[dict, dict]) -> dict[str, Dataset]:
    faults = [row(good[0], at(tmp_path / f"lost{number}.wav"), image_id="lost") for number in range(7)]
    return {
        "train": dataset(row(*good, image_id="kept"), *faults, row(*good, image_id="also kept")),
        "validation": dataset(row(*good), row(at(tmp_path / "lost.png"), good[1])),
        "test": dataset(row(*good)),
    }


def test_refusing_counts_them_and_names_the_first_of_each_split(tmp_path, good):
    with pytest.raises(CorpusError) as refusal:
        drop_or_refuse(splits_with_faults(tmp_path, good), skip_missing=False)
    message = str(refusal.value)
    assert "8 of 12 spoken captions" in message
    assert "train: 7 of 9" in message and "validation: 1 of 2" in message and "test:" not in message
    assert "lost4.wav" in message and "lost5.wav" not in message and "and 2 more" in message
    assert str(tmp_path / "lost.png") in message
    assert "--skip-missing" in message


def test_skipping_keeps_the_others_in_order_and_reports_the_count(tmp_path, good, caplog):
    with caplog.at_level(logging.WARNING):
        kept = drop_or_refuse(splits_with_faults(tmp_path, good), skip_missing=True)
    assert {name: list(split["image_id"]) for name, split in kept.items()} == {
        "train": ["kept", "also kept"],
        "validation": ["a"],
        "test": ["a"],
    }
    assert kept["train"].features == FEATURES
    assert "8 of 12" in caplog.text


@pytest.mark.parametrize("skip_missing", [True, False])
def test_a_whole_corpus_passes_without_a_word(good, caplog, skip_missing):
    splits = {"train": dataset(row(*good), row(*good))}
    kept = drop_or_refuse(splits, skip_missing)
    assert kept["train"].to_list() == splits["train"].to_list()
    assert not caplog.records


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, Dataset]:
    red = picture(tmp_path / "red.png", 255)
    same_as_red = embedded(red.read_bytes())
    dark, black = at(picture(tmp_path / "dark.png", 9)), at(picture(tmp_path / "black.png", 0))
    half, quarter = at(recording(tmp_path / "half.wav", 0.5)), at(recording(tmp_path / "quarter.wav", 0.25))
    return {
        "train": dataset(
            row(at(red), half, "red", speaker="ann", language="en"),
            row(at(red), half, "red", speaker="bob", language="pt-BR"),
            row(at(red), quarter, "red", speaker="bob", language="en"),
            row(dark, at(tmp_path / "lost.wav"), "dark"),
        ),
        "validation": dataset(row(black, half, "black", speaker="bob"), row(dark, half, "dark")),
        "test": dataset(row(same_as_red, quarter, "scarlet", speaker="eve")),
    }


def test_summary_counts_each_split(corpus):
    train = summary(corpus)["splits"]["train"]
    assert train.pop("hours") == pytest.approx(1.25 / 3600)
    assert train == {
        "rows": 4,
        "unusable": 1,
        "pictures": 2,
        "picture_contents": 2,
        "captions_per_picture": {"min": 1, "mean": 2.0, "max": 3},
        "speakers": 2,
        "rows_without_speaker": 1,
        "languages": {"en": 2, "pt-BR": 1, "und": 1},
    }


def test_summary_counts_several_pictures_of_one_thing(tmp_path, good):
    pictures = [at(picture(tmp_path / f"{red}.png", red)) for red in (1, 2)]
    counts = summary({"train": dataset(*(row(one, good[1], "heart") for one in pictures))})["splits"]["train"]
    assert (counts["pictures"], counts["picture_contents"]) == (1, 2)


def test_summary_finds_leaked_pictures_by_id_and_by_content(corpus):
    shared = {tuple(pair.pop("splits")): pair for pair in summary(corpus)["shared"]}
    assert shared == {
        ("train", "validation"): {"image_ids": 1, "picture_contents": 1, "speakers": 1},
        ("train", "test"): {"image_ids": 0, "picture_contents": 1, "speakers": 0},
        ("validation", "test"): {"image_ids": 0, "picture_contents": 0, "speakers": 0},
    }


def test_an_unreadable_picture_is_no_shared_content(tmp_path, good):
    splits = {name: dataset(row(at(tmp_path / "lost.png"), good[1], image_id=name)) for name in ("train", "test")}
    assert summary(splits)["shared"][0]["picture_contents"] == 0


def test_summary_survives_json_and_prints(corpus):
    facts = json.loads(json.dumps(summary(corpus)))
    printed = io.StringIO()
    print_summary(facts, Console(file=printed, width=120))
    lines = {line.strip("│ ").split("│")[0].strip(): line for line in printed.getvalue().splitlines()}
    assert "1 / 2.00 / 3" in lines["captions per picture"]
    assert [cell.strip() for cell in lines["pt-BR"].strip("│").split("│")] == ["pt-BR", "1", "0", "0"]
    assert [cell.strip() for cell in lines["train and test"].strip("│").split("│")] == [
        "train and test",
        "0",
        "1",
        "0",
    ]
