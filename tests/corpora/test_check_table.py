from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from speech_image_retrieval.corpora.check import inspect_corpus
from speech_image_retrieval.corpora.check_table import print_check
from speech_image_retrieval.corpora.problems import SHARED_ID, SHORT

from .spoken_rows import at, dataset, embedded, picture, recording, row, sound_corpus


def printed(corpus, **options) -> str:
    report = json.loads(json.dumps(inspect_corpus(corpus, num_proc=1, **options).to_dict()))
    console = Console(file=io.StringIO(), width=400)
    print_check(report, console)
    return console.file.getvalue()


def cells(text: str) -> dict[str, list[str]]:
    rows = ([cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│"))
    return {name: values for name, *values in rows}


@pytest.fixture
def corpus(tmp_path):
    red = {"image": embedded(picture(1)), "image_id": "red"}
    return {
        "train": dataset(
            row(0, **red),
            row(1, **red, language="pt-BR", audio=embedded(recording(1, rate=16_000))),
            row(2, **red, speaker=None, audio=embedded(recording(2, seconds=0.1))),
            row(3, image=at(tmp_path / "[red]lost[/].png"), speaker=None),
        ),
        "validation": dataset(row(4, "validation")),
        "test": dataset(row(5, "test", **red)),
    }


def test_counts_stand_in_the_column_of_their_split(corpus):
    table = cells(printed(corpus))
    assert table["rows"] == ["4", "1", "1"]
    assert table["unusable"] == ["1", "0", "0"]
    assert table["captions per picture"] == ["1 / 2.00 / 3", "1 / 1.00 / 1", "1 / 1.00 / 1"]
    assert table["rows without speaker"] == ["2", "0", "0"]
    assert table["sampling rates, Hz"] == ["8000: 3", "8000", "8000"]
    assert table["duration, s"][1] == "0.50 / 0.50 / 0.50"
    assert table["pt-BR"] == ["1", "0", "0"]
    assert table["train and test"] == ["1", "1", "0", "0"]


def test_problems_are_named_and_markup_in_names_is_text(corpus):
    text = printed(corpus)
    assert "[red]lost[/].png: no such file" in text
    problems = [line for line in text.splitlines() if SHARED_ID in line or SHORT in line]
    assert ["error" in line for line in problems] == [True, False]


def test_a_sound_corpus_has_no_table_of_problems():
    assert "To look at" not in printed(sound_corpus())


def test_what_was_not_looked_at_is_not_a_zero():
    assert cells(printed(sound_corpus(), decode=False))["recording contents"] == ["–"] * 3


def test_a_corpus_of_one_split_and_one_without_usable_media(tmp_path):
    nothing = {"image": at(tmp_path / "none.png"), "audio": at(tmp_path / "none.wav"), "language": None}
    table = cells(printed({"train": dataset(row(0, **nothing))}))
    assert table["duration, s"] == table["picture width"] == ["–"]
    assert table["und"] == ["1"]
