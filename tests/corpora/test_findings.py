from __future__ import annotations

import json

import pytest
from speech_image_retrieval.corpora.findings import Findings, refuse_losses
from speech_image_retrieval.corpora.schema import CorpusError


def missing(count: int) -> Findings:
    losses = Findings()
    for number in range(count):
        losses.add("missing file", f"lost{number}.wav")
    return losses


def test_refusing_counts_them_and_names_the_first_of_each_kind():
    losses = missing(7)
    losses.add("empty file", "lost.png")
    with pytest.raises(CorpusError) as refusal:
        refuse_losses(losses, 12)
    message = str(refusal.value)
    assert "8 of 12 spoken captions" in message and "7 x missing file" in message and "1 x empty file" in message
    assert "lost4.wav" in message and "lost5.wav" not in message and "and 2 more" in message
    assert "lost.png" in message and "--skip-missing" in message


def test_without_losses_nothing_is_refused():
    refuse_losses(Findings(), 3)


def test_a_report_has_more_names_than_a_message():
    assert len(missing(2000).to_dict()["missing file"]["first"]) == 1000


def test_findings_survive_json_and_add_up():
    one, other = Findings(), Findings()
    for number in range(4):
        one.add("missing file", f"a{number}")
        other.add("missing file", f"b{number}")
    other.add("empty file", "c")
    one.merge(Findings.from_dict(json.loads(json.dumps(other.to_dict()))))
    assert one.counts == {"missing file": 8, "empty file": 1}
    assert one.listed("missing file").splitlines() == [
        "8 x missing file:",
        *("  a0", "  a1", "  a2", "  a3", "  b0"),
        "  and 3 more",
    ]
