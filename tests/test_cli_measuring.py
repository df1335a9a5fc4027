from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from speech_image_retrieval.cli import evaluate as evaluate_command
from speech_image_retrieval.corpora.schema import save_corpus, split_from_rows

from .evaluation.conftest import DigitModel, DigitProcessor, digit_rows
from .test_cli import refused, sir


class OddOrEven(DigitModel):
    """Its matching score is right on pictures whose first digit is even, and wrong on odd ones; its similarity is the
    same on both, and drowns the matching score where they are added."""

    rerank_temperature = 0.001

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(to_dict=dict)

    def match(self, speech_states, speech_mask, image_states, image_rows, speech_rows):
        heard, seen = speech_states[speech_rows][:, 0, 0], image_states[image_rows][:, 0, 0]
        return ((heard == seen) == (heard % 2 == 0)).float()


class Processor(DigitProcessor):
    def to_dict(self):
        return {}


def rows_of(digits: tuple[int, ...], seed: int):
    for row in digit_rows(images=10, captions_per_image=[2, 1, 3], seed=seed):
        if int(row["image_id"][1:]) % 10 in digits:
            yield {**row, "text": None, "speaker": None, "language": "en"}


ODD, EVEN = (1, 3, 5, 7, 9), (0, 2, 4, 6, 8)


def digit_corpus(folder: Path, **digits: tuple[int, ...]) -> Path:
    splits = {name: split_from_rows(rows_of, digits=own, seed=3) for name, own in digits.items()}
    save_corpus({"train": split_from_rows(rows_of, digits=EVEN, seed=8), **splits}, folder)
    return folder


@pytest.fixture
def odd_or_even(monkeypatch):
    monkeypatch.setattr(evaluate_command, "load_model", lambda name: (OddOrEven(), Processor()))


def report_of(corpus: Path, out: Path, *options: object) -> dict:
    result = sir("evaluate", "m", "--corpus", corpus, "--rerank-top-k", 4, "--json", out, *options)
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text(encoding="utf-8")) | {"text": result.stdout}


def test_the_score_rule_is_chosen_on_validation_against_what_test_would_say(odd_or_even, tmp_path: Path):
    corpus = digit_corpus(tmp_path / "corpus", validation=ODD, test=EVEN)
    on_test = {
        rule: report_of(corpus, tmp_path / "x.json", "--score-rule", rule)["mean_r1"]["reranked"]
        for rule in ("sim", "sim+sic")
    }
    assert on_test["sim"] > on_test["sim+sic"], "test must speak for the other rule: this test needs it to"
    report = report_of(corpus, tmp_path / "x.json", "--score-rule", "validation")
    choice = report["protocol"]["score_rule_chosen_on"]
    assert report["protocol"]["score_rule"] == "sim+sic"
    assert choice["split"] == "validation" and choice["mean_r1"]["sim+sic"] > choice["mean_r1"]["sim"]
    assert report["mean_r1"]["reranked"] == on_test["sim+sic"]
    assert "Score rule sim+sic chosen on split validation (5 images, " in report["text"]


def test_the_choice_does_not_depend_on_the_test_split(odd_or_even, tmp_path: Path):
    corpora = [
        digit_corpus(tmp_path / "a", validation=ODD, test=EVEN),
        digit_corpus(tmp_path / "b", validation=ODD, test=(1, 2, 5)),
    ]
    choices = [
        report_of(corpus, tmp_path / "x.json", "--score-rule", "validation")["protocol"]["score_rule_chosen_on"]
        for corpus in corpora
    ]
    assert choices[0] == choices[1]
    other = digit_corpus(tmp_path / "c", validation=EVEN, test=EVEN)
    report = report_of(other, tmp_path / "x.json", "--score-rule", "validation")
    assert report["protocol"]["score_rule"] == "sim"


def test_folds_are_averaged(odd_or_even, tmp_path: Path):
    corpus = digit_corpus(tmp_path / "spoken_coco", validation=ODD, test=EVEN)
    report = report_of(corpus, tmp_path / "x.json", "--folds", 5)
    assert [fold["images"] for fold in report["folds"]] == [1] * 5
    assert "Mean of 5 folds of 1 images" in report["text"]
    assert "Non-standard pool: the literature's is split test, 5,000 x 25,031" in report["text"]
    assert "cannot be divided into 2 equal folds" in refused("evaluate", "m", "--corpus", corpus, "--folds", 2)


def test_a_rule_that_cannot_be_chosen_is_refused_before_anything_is_loaded(tmp_path: Path):
    nothing = ["evaluate", tmp_path / "none", "--corpus", tmp_path / "none", "--score-rule", "validation"]
    assert "would flatter" in refused(*nothing, "--split", "validation")
    assert "needs --rerank-top-k" in refused(*nothing, "--rerank-top-k", 0)
