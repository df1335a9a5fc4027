from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture
from speech_image_retrieval.corpora.building import Built, build_from_files
from speech_image_retrieval.corpora.columns import NO_PARTNER, UNHEARD, read_columns
from speech_image_retrieval.corpora.schema import CorpusError

RATE = 16_000
COUNT = 10  # pictures, two recordings each


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("photos", "speech"):
        (folder / name).mkdir(parents=True)
    for number in range(COUNT):
        Picture.new("RGB", (40, 30), (number * 20, 0, 0)).save(folder / "photos" / f"{number}.png")
        for take in range(2):
            soundfile.write(folder / "speech" / f"{number}_{take}.wav", np.full(RATE // 4 + number, 0.1), RATE)
    return folder


def table() -> list[dict[str, str]]:
    return [
        {
            "photo": f"photos/{number}.png",
            "recording": f"speech/{number}_{take}.wav",
            "words": f'{number}, "said" {take}',
            "who": f"speaker {take}",
            "fold": "dev" if number == 8 else "test" if number == 9 else "train",
        }
        for number in range(COUNT)
        for take in range(2)
    ]


MAPPING = {"image": "photo", "audio": "recording", "text": "words", "speaker": "who"}


def build(out: Path, *sources: object, **options) -> Built:
    return build_from_files(read_columns([str(source) for source in sources], **options), out, num_proc=1)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_manifest_with_a_split_column(media: Path, tmp_path: Path, suffix: str):
    manifest = write(media / f"manifest{suffix}", table())
    corpus = build(tmp_path / "corpus", manifest, columns=MAPPING | {"split": "fold"}, language="nl").corpus
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 16, "validation": 2, "test": 2}
    assert corpus["test"][1] == {
        "image": {"bytes": None, "path": str(media / "photos" / "9.png")},
        "audio": {"bytes": None, "path": str(media / "speech" / "9_1.wav")},
        "image_id": "photos/9.png",
        "caption_id": "train-19",
        "text": '9, "said" 1',
        "speaker": "speaker 1",
        "language": "nl",
    }


def test_names_that_look_like_numbers_stay_as_they_are(media: Path, tmp_path: Path):
    rows = [
        row | {"who": "None" if number else "007", "fold": ["train", "dev", "test"][number % 3], "key": f"0{number}"}
        for number, row in enumerate(table())
    ]
    mapping = MAPPING | {"split": "fold", "caption_id": "key"}
    corpus = build(tmp_path / "corpus", write(media / "manifest.csv", rows), columns=mapping).corpus
    assert corpus["train"]["caption_id"][:3] == ["00", "03", "06"]
    assert corpus["train"]["speaker"][:2] == ["007", "None"]


@pytest.mark.parametrize(
    "content", [b"photo,recording\na,b,c,d\ne,f,g\n", "photo,recording\ncaf\xe9,b\n".encode("latin-1"), b""]
)
def test_a_malformed_manifest_is_an_error_of_a_line(media: Path, content: bytes):
    (media / "manifest.csv").write_bytes(content)
    with pytest.raises(CorpusError) as raised:
        read_columns([str(media / "manifest.csv")], {"image": "photo", "audio": "recording"})
    assert "manifest.csv" in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_files_that_are_no_recordings_and_pictures_of_one_name(media: Path):
    (media / "speech" / "0_0.txt").write_text("notes")
    reading = read_columns([str(media / "speech"), str(media / "photos")])
    assert reading.expected_rows == 20
    Picture.new("RGB", (9, 9)).save(media / "photos" / "0.jpg")
    with pytest.raises(CorpusError, match=r"0\.jpg and .*0\.png have one name"):
        read_columns([str(media / "speech"), str(media / "photos")])


def test_missing_splits_are_drawn_by_picture_and_stay_the_same(media: Path, tmp_path: Path):
    rows = table()
    built = build(tmp_path / "one", write(media / "a.csv", rows), columns=MAPPING)
    again = build(tmp_path / "two", write(media / "b.csv", rows[::-1]), columns=MAPPING).corpus
    ids = {split: set(own["image_id"]) for split, own in built.corpus.items()}
    assert {split: len(own) for split, own in ids.items()} == {"train": 8, "validation": 1, "test": 1}
    assert len(set.union(*ids.values())) == COUNT
    assert ids == {split: set(own["image_id"]) for split, own in again.items()}
    assert "no split test or validation" in built.report["notes"][0]


def test_a_dataset_saved_with_media_in_it(media: Path, tmp_path: Path):
    kinds = {"photo": Image(decode=False), "recording": Audio(decode=False)}
    plain = Features(
        {
            "photo": {"bytes": Value("binary"), "path": Value("string")},
            "recording": {"bytes": Value("binary"), "path": Value("string")},
        }
    )
    rows = [{name: {"bytes": (media / row[name]).read_bytes(), "path": None} for name in kinds} for row in table()]
    splits = {"train": rows[:12], "val": rows[12:16], "test": rows[16:]}
    data = DatasetDict(
        {name: Dataset.from_list(own, features=plain).cast(Features(kinds)) for name, own in splits.items()}
    )
    for name, split in data.items():
        (tmp_path / "hub").mkdir(exist_ok=True)
        split.to_parquet(tmp_path / "hub" / f"{name}-00000-of-00001.parquet")
    mapping = {"image": "photo", "audio": "recording"}
    corpus = build(tmp_path / "corpus", tmp_path / "hub", columns=mapping).corpus
    assert {split: len(own) for split, own in corpus.items()} == {"train": 12, "validation": 4, "test": 4}
    assert corpus["validation"][0]["image"]["bytes"] == (media / "photos" / "6.png").read_bytes()
    assert corpus["train"][0]["image_id"] == corpus["train"][1]["image_id"] != corpus["train"][2]["image_id"]


@pytest.mark.parametrize("named", ["audio", "image"])
def test_an_audiofolder_or_imagefolder_whose_metadata_names_the_other(media: Path, tmp_path: Path, named: str):
    files, other = ("photo", "recording") if named == "audio" else ("recording", "photo")
    for split, chosen in {"train": table()[:14], "validation": table()[14:16], "test": table()[16:]}.items():
        (media / split).mkdir()
        lines = [f"file_name,{named},text"]
        lines += [f"../{row[files]},../{row[other]},hello" for row in chosen]
        (media / split / "metadata.csv").write_text("\n".join(lines))
    corpus = build(tmp_path / "corpus", media).corpus
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 14, "validation": 2, "test": 4}
    assert Path(corpus["test"][0]["image"]["path"]).resolve() == media / "photos" / "8.png"
    assert Path(corpus["test"][1]["audio"]["path"]).resolve() == media / "speech" / "8_1.wav"


@pytest.mark.parametrize("swapped", [False, True])
def test_two_folders_are_joined_by_name(media: Path, tmp_path: Path, swapped: bool):
    (media / "speech" / "nobody_0.wav").write_bytes(b"")
    Picture.new("RGB", (9, 9)).save(media / "photos" / "silent.png")
    folders = [media / "speech", media / "photos"]
    corpus, report = build(tmp_path / "corpus", *(folders[::-1] if swapped else folders))
    assert sum(map(len, corpus.values())) == 20
    for rows in corpus.values():
        for row in rows:
            assert Path(row["audio"]["path"]).name.startswith(f"{Path(row['image']['path']).stem}_")
    assert report["read"][NO_PARTNER]["first"] == [str(media / "speech" / "nobody_0.wav")]
    assert report["read"][UNHEARD]["first"] == [str(media / "photos" / "silent.png")]


def test_a_column_that_is_not_there_is_named_with_those_that_are(media: Path):
    manifest = write(media / "manifest.csv", table())
    with pytest.raises(CorpusError, match=r"no column 'image' for image, 'audio' for audio. Its columns: photo, rec"):
        read_columns([str(manifest)])
    with pytest.raises(CorpusError, match="no column 'sound' for audio"):
        read_columns([str(manifest)], MAPPING | {"audio": "sound"})
    with pytest.raises(CorpusError, match="A corpus has no column picture"):
        read_columns([str(manifest)], MAPPING | {"picture": "photo"})


def test_an_unknown_split_is_named(media: Path):
    manifest = write(media / "manifest.csv", [row | {"fold": "holdout"} for row in table()])
    with pytest.raises(CorpusError, match="a split 'holdout'; known are"):
        read_columns([str(manifest)], MAPPING | {"split": "fold"})


def test_what_is_no_dataset_is_refused(media: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CorpusError, match=r"notes\.txt is none of \.csv"):
        read_columns([str(tmp_path / "notes.txt")])
    with pytest.raises(CorpusError, match=r"There is no file or folder .*nowhere"):
        read_columns([str(tmp_path / "nowhere")])
    with pytest.raises(CorpusError, match=r"no metadata\.csv that says what they are about.* two folders"):
        read_columns([str(media)])
    with pytest.raises(CorpusError, match="Did you mean image=photo"):
        read_columns([str(write(media / "manifest.csv", table()))], {"photo": "image"})
    with pytest.raises(CorpusError, match="one dataset"):
        read_columns(["a", "b", "c"])
