from __future__ import annotations

import logging

import pytest
from speech_image_retrieval.corpora.losses import refuse_or_warn
from speech_image_retrieval.corpora.schema import CorpusError

PROBLEMS = {
    "train": [f"lost{number}.wav: no such file" for number in range(7)],
    "validation": ["lost.png"],
    "test": [],
}
CAPTIONS = {"train": 9, "validation": 2, "test": 1}


def test_refusing_counts_them_and_names_the_first_of_each_part():
    with pytest.raises(CorpusError) as refusal:
        refuse_or_warn(PROBLEMS, CAPTIONS, skip_missing=False)
    message = str(refusal.value)
    assert "8 of 12 spoken captions" in message
    assert "train: 7 of 9" in message and "validation: 1 of 2" in message and "test:" not in message
    assert "lost4.wav" in message and "lost5.wav" not in message and "and 2 more" in message
    assert "lost.png" in message and "--skip-missing" in message


def test_skipping_reports_the_count(caplog):
    with caplog.at_level(logging.WARNING):
        refuse_or_warn(PROBLEMS, CAPTIONS, skip_missing=True)
    assert "8 of 12" in caplog.text and "lost0.wav" in caplog.text


@pytest.mark.parametrize("skip_missing", [True, False])
def test_without_problems_there_is_not_a_word(skip_missing, caplog):
    refuse_or_warn({"train": []}, {"train": 3}, skip_missing)
    assert not caplog.records
