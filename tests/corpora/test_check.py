from __future__ import annotations

import io
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import soundfile
from PIL import Image
from speech_image_retrieval.corpora import measuring
from speech_image_retrieval.corpora.check import UNDETERMINED, inspect_corpus
from speech_image_retrieval.corpora.media_facts import MISSING
from speech_image_retrieval.corpora.problems import (
    REPEATED_CAPTION,
    SHARED_ID,
    SHARED_PICTURE,
    SHARED_RECORDING,
    TINY,
)

from .spoken_rows import at, corpus_with, dataset, embedded, file, picture, recording, row, sound_corpus


def inspect(corpus, **options):
    return inspect_corpus(corpus, num_proc=1, **options)


def test_a_sound_corpus_is_fit_for_use():
    check = inspect(sound_corpus())
    assert check.fit and not check.warnings.counts
    assert check.to_dict()["fit"] and check.refusal() == ""


@pytest.fixture
def corpus(tmp_path):
    """Pictures and recordings as files and as bytes, with rows that lack things, and with defects of several kinds."""
    red = file(tmp_path / "red.png", picture(1))
    dark, black = file(tmp_path / "dark.png", picture(2)), file(tmp_path / "black.png", picture(3, size=(20, 90)))
    speech = [file(tmp_path / f"{number}.wav", recording(number, 0.1 * number + 0.1)) for number in range(8)]
    stereo = embedded(recording(9, rate=16_000, format="FLAC"))
    return {
        "train": dataset(
            row(0, image=red, image_id="red", audio=speech[0], speaker="ann"),
            row(1, image=red, image_id="red", audio=speech[1], speaker="bob", language="pt-BR", text=None),
            row(2, image=red, image_id="red", audio=stereo, speaker="bob", text=""),
            row(3, image=dark, image_id="dark", audio=at(tmp_path / "lost.wav"), speaker=None, language=None),
        ),
        "validation": dataset(
            row(4, image=black, image_id="black", audio=speech[4], speaker="bob"),
            row(5, image=dark, image_id="dark", audio=speech[5], speaker=None),
        ),
        "test": dataset(
            row(6, image=embedded(picture(1)), image_id="scarlet", audio=speech[6], speaker="eve"),
            row(7, image=at(tmp_path / "lost.png"), image_id="lost", audio=speech[1], speaker=""),
        ),
    }


def test_it_counts_each_split(corpus):
    train = inspect(corpus).to_dict()["splits"]["train"]
    assert train.pop("hours") == pytest.approx((0.1 + 0.2 + 0.5) / 3600)
    assert train.pop("seconds") == {
        "min": 0.1,
        "p5": pytest.approx(0.11),
        "median": 0.2,
        "p95": pytest.approx(0.47),
        "max": 0.5,
    }
    assert train.pop("picture_width")["median"] == 40 and train.pop("picture_height")["median"] == 36
    assert train == {
        "rows": 4,
        "unusable": 1,
        "pictures": 2,
        "picture_contents": 2,
        "recording_contents": 3,
        "captions_per_picture": {"min": 1, "mean": 2.0, "max": 3},
        "pictures_by_captions": {"1": 1, "3": 1},
        "speakers": 2,
        "captions_per_speaker": {"min": 1, "mean": 1.5, "max": 2},
        "rows_without_speaker": 1,
        "rows_without_language": 1,
        "rows_without_text": 2,
        "languages": {"en": 2, "pt-BR": 1, UNDETERMINED: 1},
        "sampling_rates": {"8000": 2, "16000": 1},
        "channels": {"1": 3},
    }


def test_several_pictures_of_one_thing_are_counted():
    pictures = [row(number, image_id="heart") for number in (1, 2)]
    counts = inspect({"train": dataset(*pictures)}).to_dict()["splits"]["train"]
    assert (counts["pictures"], counts["picture_contents"]) == (1, 2)


def test_it_finds_what_splits_share(corpus):
    shared = {tuple(pair.pop("splits")): pair for pair in inspect(corpus).to_dict()["shared"]}
    none = {"image_ids": 0, "picture_contents": 0, "recording_contents": 0, "speakers": 0}
    assert shared == {
        ("train", "validation"): {**none, "leak": True, "image_ids": 1, "picture_contents": 1, "speakers": 1},
        ("train", "test"): {**none, "leak": True, "picture_contents": 1, "recording_contents": 1},
        ("validation", "test"): {**none, "leak": False},
    }


def test_shared_speakers_are_no_leak():
    corpus = {name: split.map(lambda _: {"speaker": "ann"}) for name, split in sound_corpus().items()}
    check = inspect(corpus)
    assert check.fit
    assert [pair["speakers"] for pair in check.to_dict()["shared"]] == [1, 1, 1]


def test_an_unreadable_picture_is_no_shared_content(tmp_path):
    lost = at(tmp_path / "lost.png")
    splits = {name: dataset(row(0, name, image=lost)) for name in ("train", "test")}
    assert inspect(splits).to_dict()["shared"][0]["picture_contents"] == 0


def test_allowed_pictures_are_a_warning_and_shared_recordings_stay_an_error():
    same = {"image": embedded(picture(7)), "image_id": "same"}
    corpus = {name: dataset(row(0, name, **same)) for name in ("train", "validation", "test")}
    assert set(inspect(corpus).errors.counts) == {SHARED_ID, SHARED_PICTURE}
    allowed = inspect(corpus, allow_shared_pictures=True)
    assert allowed.fit and set(allowed.warnings.counts) == {SHARED_ID, SHARED_PICTURE}
    corpus["test"] = dataset(row(0, "test", audio=corpus["train"][0]["audio"], **same))
    assert set(inspect(corpus, allow_shared_pictures=True).errors.counts) == {SHARED_RECORDING}


def test_the_refusal_names_captions_of_every_kind_and_says_what_to_do(corpus, tmp_path):
    corpus["validation"] = dataset(*corpus["validation"], row(4, audio=embedded(recording(77))))
    refusal = inspect(corpus).refusal()
    assert f"2 x {MISSING}:\n  train, train-3#0: {tmp_path / 'lost.wav'}: no such file" in refusal
    assert f"  test, train-7#0: {tmp_path / 'lost.png'}: no such file\nRestore these files" in refusal
    assert f"1 x {SHARED_ID}:\n  dark: train, train-3#0 and validation, train-5#0" in refusal
    assert (
        f"2 x {SHARED_PICTURE}:\n"
        f"  train, train-3#0 ({tmp_path / 'dark.png'}) and validation, train-5#0 ({tmp_path / 'dark.png'})\n"
        f"  train, train-0#0 ({tmp_path / 'red.png'}) and test, train-6#0 (embedded picture)\n"
        "What is measured on one split was seen in the other"
    ) in refusal
    assert f"1 x {SHARED_RECORDING}:\n  train, train-1#0 ({tmp_path / '1.wav'}) and test, train-7#0" in refusal
    assert f"1 x {REPEATED_CAPTION}:\n  train-4#0: validation row 0, validation row 2" in refusal


def test_many_are_counted_and_the_first_are_named(tmp_path):
    lost = [row(number, audio=at(tmp_path / f"lost{number}.wav")) for number in range(1, 8)]
    check = inspect(corpus_with(*lost))
    assert check.errors.counts == {MISSING: 7}
    refusal = check.refusal()
    assert "lost5.wav" in refusal and "lost6.wav" not in refusal and "and 2 more" in refusal


def test_headers_only_passes_over_what_only_decoding_finds():
    whole = recording(1, 2.0, format="FLAC")
    corpus = corpus_with(row(1, audio=embedded(whole[: len(whole) // 2])))
    assert sum(inspect(corpus).errors.counts.values()) == 1
    quick = inspect(corpus, decode=False)
    assert quick.fit and not quick.to_dict()["decoded"]
    assert quick.to_dict()["splits"]["train"]["recording_contents"] is None
    assert quick.to_dict()["shared"][0]["recording_contents"] is None
    assert quick.to_dict()["splits"]["train"]["sampling_rates"] == {"8000": 2}


def test_headers_only_still_finds_shared_pictures():
    corpus = corpus_with(row(1, image=embedded(picture(1000))))
    assert inspect(corpus, decode=False).errors.counts == {SHARED_PICTURE: 1}


def test_processes_and_chunks_change_nothing(corpus, monkeypatch):
    one = inspect(corpus)
    monkeypatch.setattr(measuring, "CHUNK_ROWS", 2)
    chunked, parallel = inspect(corpus), inspect_corpus(corpus, num_proc=2)
    assert chunked.to_dict() == parallel.to_dict() == one.to_dict()
    for other in (chunked, parallel):
        for mine, theirs in zip(one.splits, other.splits, strict=True):
            assert mine.rows.tobytes() == theirs.rows.tobytes()


def test_it_agrees_with_a_slow_look_at_every_row(corpus):
    report = json.loads(json.dumps(inspect(corpus).to_dict()))
    slow = {name: [look_at(one) for one in split] for name, split in corpus.items()}
    for name, rows in slow.items():
        split = report["splits"][name]
        assert split["unusable"] == sum(None in (one["picture"], one["recording"]) for one in rows)
        assert split["pictures"] == len({one["image_id"] for one in rows})
        assert split["picture_contents"] == len({one["picture"] for one in rows} - {None})
        assert split["recording_contents"] == len({one["recording"] for one in rows} - {None})
        assert split["captions_per_picture"]["max"] == max(Counter(one["image_id"] for one in rows).values())
        assert split["hours"] == pytest.approx(sum(one["seconds"] for one in rows) / 3600)
        sizes = {one["picture"]: one["size"] for one in rows if one["picture"]}.values()
        assert split["picture_height"]["max"] == max(height for _, height in sizes)
    for pair, (one, other) in zip(report["shared"], combinations(slow, 2), strict=True):
        assert pair["splits"] == [one, other]
        for count, key in (("image_ids", "image_id"), ("picture_contents", "picture"), ("speakers", "speaker")):
            values = [{row[key] for row in slow[name]} - {None, ""} for name in (one, other)]
            assert pair[count] == len(values[0] & values[1])
    tiny = [one for rows in slow.values() for one in rows if one["size"] and min(one["size"]) < 32]
    assert report["warnings"][TINY]["count"] == len({one["picture"] for one in tiny})


def look_at(caption) -> dict:
    found = {**caption, "picture": None, "recording": None, "size": None, "seconds": 0.0}
    for column, kind in (("image", "picture"), ("audio", "recording")):
        media = caption[column]
        try:
            content = media["bytes"] if media["bytes"] is not None else Path(media["path"]).read_bytes()
            if column == "image":
                found["size"] = Image.open(io.BytesIO(content)).convert("RGB").size
            else:
                samples, rate = soundfile.read(io.BytesIO(content))
                found["seconds"] = len(samples) / rate
            found[kind] = content
        except OSError:
            pass
    return found
