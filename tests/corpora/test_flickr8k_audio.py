from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, Features, Image, Value
from speech_image_retrieval.corpora.building import Built, build_from_files
from speech_image_retrieval.corpora.flickr8k_audio import (
    NO_PICTURE,
    NO_RECORDING,
    NO_TEXT,
    NOT_NAMED,
    official_split,
    read_captions_csv,
    read_flickr8k_audio,
    read_token_lines,
)
from speech_image_retrieval.corpora.flickr8k_mirror import read_flickr8k_mirror
from speech_image_retrieval.corpora.parts import LONG, REPAIRED
from speech_image_retrieval.corpora.schema import CorpusError

from . import flickr8k_trees as trees

EXTRA = trees.EXTRA_PICTURE.removesuffix(".jpg")
LAYOUTS = {
    "original": trees.original,
    "original with Images/": lambda root: trees.original(root, images="Images"),
    "kaggle": trees.kaggle,
    "karpathy": trees.karpathy,
}


def build(sources: list[Path], out: Path, **options) -> Built:
    return build_from_files(read_flickr8k_audio(sources), out, num_proc=1, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(layout: str, tmp_path: Path):
    corpus, report = build(LAYOUTS[layout](tmp_path / "source"), tmp_path / "corpus")
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 10, "validation": 5, "test": 5}
    for split, rows in corpus.items():
        for row in rows:
            stem, _, number = row["caption_id"].rpartition("_")
            assert row["image_id"] == stem
            assert trees.PICTURES[stem] == split
            assert row["text"] == trees.caption(stem, int(number))
            assert row["speaker"] == str(trees.wav_names().index(f"{row['caption_id']}.wav") % 3 + 1)
            assert row["language"] == "en"
            assert Path(row["image"]["path"]).name == f"{stem}.jpg"
            assert Path(row["audio"]["path"]).name == f"{row['caption_id']}.wav"
            assert row["audio"]["bytes"] is row["image"]["bytes"] is None
    assert report["read"][NO_RECORDING]["first"] == [trees.EXTRA_PICTURE]
    assert report["read"][NOT_NAMED]["first"] == ["1000268201_693b08cb0e_txt.wav"]
    assert report["notes"][-1] == "2 / 1 / 1 pictures instead of the official 6000 / 1000 / 1000."
    assert NO_TEXT not in report["read"]


def test_imageless_captions_are_left_out_and_counted(tmp_path: Path):
    report = build(trees.original(tmp_path / "source"), tmp_path / "corpus").report
    assert report["read"][NO_PICTURE]["count"] == 5


def test_the_recording_with_a_broken_header_is_rebuilt(tmp_path: Path):
    corpus, report = build(trees.original(tmp_path / "source", broken=True), tmp_path / "corpus")
    assert report["kept"][REPAIRED]["count"] == 1
    (row,) = (row for row in corpus["train"] if row["audio"]["bytes"] is not None)
    assert f"{row['caption_id']}.wav" == trees.SILENCED
    samples, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
    assert np.array_equal(samples, np.full(trees.RATE // 4, 5))


def test_the_recording_of_five_minutes_is_kept_and_named(tmp_path: Path):
    sources = trees.original(tmp_path / "source")
    name = trees.wav_names()[-1]
    seconds = 323.5
    soundfile.write(tmp_path / "source" / "flickr_audio" / "wavs" / name, np.zeros(int(seconds * 8000)), 8000)
    report = build(sources, tmp_path / "corpus").report
    assert report["kept"][LONG]["first"] == [f"{name.removesuffix('.wav')}: 323.5 s"]


def test_without_wav2capt_the_names_of_the_recordings_tell(tmp_path: Path):
    sources = trees.original(tmp_path / "source")
    (tmp_path / "source" / "flickr_audio" / "wav2capt.txt").unlink()
    corpus = build(sources, tmp_path / "corpus").corpus
    assert sum(map(len, corpus.values())) == 20
    assert corpus["test"][2]["text"] == trees.caption("3385593926_d3e9c21170", 2)


def test_other_lists_change_nothing(tmp_path: Path):
    sources = trees.original(tmp_path / "source")
    swapped = {"test": "1001773457_577c3a7d70.jpg", "train": "3385593926_d3e9c21170.jpg"}
    for split, name in swapped.items():
        (tmp_path / "source" / f"Flickr_8k.{split}Images.txt").write_text(f"{name}\n")
    corpus = build(sources, tmp_path / "corpus").corpus
    assert {split: set(rows["image_id"]) for split, rows in corpus.items()} == {
        split: {stem for stem, own in trees.PICTURES.items() if own == split} for split in corpus
    }


def test_the_archives_folder_around_the_folder_of_pictures(tmp_path: Path):
    sources = trees.original(tmp_path / "source", images="Flickr8k_Dataset/Flicker8k_Dataset")
    assert sum(map(len, build(sources, tmp_path / "corpus").corpus.values())) == 20


@pytest.mark.parametrize("name", ["Flickr8k.token.txt", "flickr_audio/wav2capt.txt", "flickr_audio/wav2spk.txt"])
def test_a_byte_order_mark_costs_nothing(name: str, tmp_path: Path):
    sources = trees.original(tmp_path / "source")
    file = tmp_path / "source" / name
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    corpus, report = build(sources, tmp_path / "corpus")
    assert sum(map(len, corpus.values())) == 20 and NO_TEXT not in report["read"]
    assert all(row["speaker"] for rows in corpus.values() for row in rows)


@pytest.mark.parametrize("name", ["Flickr8k.token.txt", "flickr_audio/wav2spk.txt"])
def test_a_file_in_another_encoding_is_named(name: str, tmp_path: Path):
    sources = trees.original(tmp_path / "source")
    (tmp_path / "source" / name).write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(CorpusError, match=rf"{Path(name).name} is not UTF-8"):
        build(sources, tmp_path / "corpus")


def test_what_is_no_16_bit_mono_recording_is_not_rebuilt(tmp_path: Path):
    sources = trees.original(tmp_path / "source")
    file = tmp_path / "source" / "flickr_audio" / "wavs" / trees.SILENCED
    soundfile.write(file, np.zeros(8000), 8000, subtype="FLOAT")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CorpusError, match=f"(?s)1 of 20 spoken captions.*{trees.SILENCED}"):
        build(sources, tmp_path / "corpus")


def test_official_lists_have_a_thousand_pictures_each():
    folder = Path(sys.modules[read_flickr8k_audio.__module__].__file__).parent / "official_splits"
    names = {split: (folder / f"flickr8k_{split}.txt").read_text().split() for split in ("validation", "test")}
    assert {split: len(set(own)) for split, own in names.items()} == {"validation": 1000, "test": 1000}
    assert not set(names["validation"]) & set(names["test"])
    assert [official_split(stem) for stem in trees.PICTURES] == list(trees.PICTURES.values())


@pytest.mark.parametrize("line", ["no number\ttext", "a.jpg#x\ttext", "a.jpg#0 text"])
def test_a_malformed_token_line_is_named(line: str):
    with pytest.raises(CorpusError, match=r"tokens, line 2: not `NAME.jpg#NUMBER<tab>CAPTION`"):
        read_token_lines(["a.jpg#0\ttext", line], "tokens")


def test_captions_keep_commas_and_quotes_whether_quoted_or_not():
    lines = [
        "image,caption\n",
        'a.jpg,A man , "Bob" , waves .\n',
        'a.jpg,"A man , ""Bob"" , waves ."\n',
        "a.jpg,short\n",
    ]
    assert read_captions_csv(lines, "captions.txt") == {"a.jpg": ['A man , "Bob" , waves .'] * 2 + ["short"]}


def test_a_malformed_wav2capt_line_is_named(tmp_path: Path):
    sources = trees.original(tmp_path / "source")
    (tmp_path / "source" / "flickr_audio" / "wav2capt.txt").write_text("a.wav a.jpg 0\n")
    with pytest.raises(CorpusError, match=r"wav2capt\.txt, line 1"):
        build(sources, tmp_path / "corpus")


def test_a_folder_without_the_corpus_says_what_was_looked_for(tmp_path: Path):
    (tmp_path / "source" / "Images").mkdir(parents=True)
    with pytest.raises(CorpusError, match=r"wavs/(.|\n)*Images"):
        read_flickr8k_audio([tmp_path / "source"])


@pytest.mark.parametrize("suffixes", [("", ""), (".jpg", ".wav")])
def test_the_hub_mirror_gets_its_official_splits_back(suffixes: tuple[str, str], tmp_path: Path):
    jpg, wav = suffixes
    trees.write_recordings(tmp_path / "files")
    trees.write_images(tmp_path / "files" / "Images")
    mirror = tmp_path / "mirror"

    def held(path: Path) -> dict:
        return {"bytes": path.read_bytes(), "path": path.name}

    tables = {
        "audio": {
            "id": [name.removesuffix(".wav") + wav for name in trees.wav_names()],
            "audio": [held(tmp_path / "files" / "wavs" / name) for name in trees.wav_names()],
        },
        "images": {
            "id": [f"{stem}{jpg}" for stem in trees.PICTURES] + [EXTRA + jpg],
            "image": [held(tmp_path / "files" / "Images" / f"{stem}.jpg") for stem in [*trees.PICTURES, EXTRA]],
            "text": [trees.caption(stem, 0) for stem in [*trees.PICTURES, EXTRA]],
        },
        "qrels": {
            "image_id": [name.rpartition("_")[0] + jpg for name in trees.wav_names()],
            "audio_id": [name.removesuffix(".wav") + wav for name in trees.wav_names()],
        },
    }
    kinds = {"audio": Audio(decode=False), "image": Image(decode=False)}
    for name, columns in tables.items():
        (mirror / name).mkdir(parents=True)
        features = Features({column: kinds.get(column, Value("string")) for column in columns})
        plain = Features(
            {c: {"bytes": Value("binary"), "path": Value("string")} if c in kinds else f for c, f in features.items()}
        )
        Dataset.from_dict(columns, features=plain).cast(features).to_parquet(
            mirror / name / "train-00000-of-00001.parquet"
        )
    corpus, report = build_from_files(read_flickr8k_mirror(mirror), tmp_path / "corpus", num_proc=1)
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 10, "validation": 5, "test": 5}
    row = corpus["test"][3]
    assert row["caption_id"] == "3385593926_d3e9c21170_3"
    assert row["image"]["bytes"] == (tmp_path / "files" / "Images" / "3385593926_d3e9c21170.jpg").read_bytes()
    assert corpus["test"]["text"][:] == [trees.caption("3385593926_d3e9c21170", 0)] + [None] * 4
    assert report["read"][NO_TEXT]["count"] == 16
    assert report["read"][NO_RECORDING]["count"] == 1
