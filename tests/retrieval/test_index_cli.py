from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from speech_image_retrieval.cli import app
from speech_image_retrieval.corpora.schema import save_corpus, split_from_rows
from speech_image_retrieval.retrieval import encoding, update
from speech_image_retrieval.retrieval.contact_sheet import THUMBNAIL
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from typer.testing import CliRunner, Result

from .tiny_gallery import picture_folder, recording_folder, save_tiny, write_picture, write_recording


def sir(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    result = sir(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = sir(*arguments)
    assert result.exit_code == 1, result.output
    return result.stderr.rpartition("Error: ")[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = picture_folder(tmp_path_factory.mktemp("pictures"), 12)
    (folder / "broken.png").write_text("no picture", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory, model: Path, pictures: Path) -> Path:
    out = tmp_path_factory.mktemp("indexes") / "pictures"
    done("index", model, pictures, "--out", out)
    return out


@pytest.fixture
def query(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "query.wav", seed=1)


def test_what_an_interrupted_creation_leaves_is_no_index(tmp_path: Path, query: Path):
    (tmp_path / "unfinished" / "items.lance").mkdir(parents=True)
    assert "There is no index" in refused("search", tmp_path / "unfinished")


def test_index_says_what_it_did(index: Path, model: Path, pictures: Path):
    said = done("index", model, pictures, "--out", index)
    assert "12 rows (0 added, 0 changed, 12 unchanged, 0 deleted, 1 unreadable)" in said
    broken = pictures / "broken.png"
    assert f"Not indexed: The picture {broken} cannot be decoded as an image: no known format\n" in said


def test_what_a_folder_holds_decides_what_is_indexed(model: Path, pictures: Path, tmp_path: Path):
    recordings = recording_folder(tmp_path / "recordings", 2)
    done("index", model, recordings, "--out", tmp_path / "speech")
    assert SpeechImageIndex.open(tmp_path / "speech").info.modality == "speech"
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.txt").touch()
    out = tmp_path / "none"
    said = refused("index", model, tmp_path / "nothing", "--out", out)
    assert "holds neither pictures (.avif" in said and not out.exists()
    write_picture(recordings / "deep" / "picture.png", seed=0)
    said = refused("index", model, recordings, "--out", out)
    assert "pictures (1) and recordings (2)" in said and "--modality image or" in said and not out.exists()
    said = refused("index", model, pictures, "--out", out, "--modality", "speech")
    assert "It holds pictures: --modality image" in said and not out.exists()
    done("index", model, recordings, "--out", out, "--modality", "image")
    assert SpeechImageIndex.open(out).info.modality == "image"


def test_hidden_files_are_left_alone_and_other_types_are_counted(model: Path, tmp_path: Path):
    folder = tmp_path / "phone"
    write_picture(folder / "a.png", seed=0)
    for hidden in (".hidden.png", ".thumbnails/t.png"):
        write_picture(folder / hidden, seed=1)
    for other in ("x.HEIC", "y.heic", "z.m4a", "._a.png"):
        (folder / other).write_bytes(b"bytes")
    said = done("index", model, folder, "--out", tmp_path / "index")
    assert "no pictures that can be read: 2 .heic, 1 .m4a" in said and "1 rows (1 added" in said


def test_a_folder_that_is_not_there_is_called_one(model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my_pictures", "my_pictures/"):
        said = refused("index", model, name, "--out", "index")
        assert "There is no folder my_pictures" in said and "did you mean" not in said
    write_picture(tmp_path / "a.png", seed=0)
    assert "a.png is a file; give a folder" in refused("index", model, "a.png", "--out", "index")


def test_search_by_speech(index: Path, query: Path, tmp_path: Path):
    outputs = ["--json", tmp_path / "found.json", "--sheet", tmp_path / "found.png"]
    said = done("search", index, query, "--top-k", 3, "--rerank-top-k", 5, *outputs)
    assert "query.wav" in said and ".png" in said
    (of_query,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["queries"]
    assert of_query["query"] == str(query) and len(of_query["results"]) == 3
    assert of_query["results"][0]["matching_score"] >= of_query["results"][1]["matching_score"]
    assert Image.open(tmp_path / "found.png").width > 500


def test_an_index_finds_what_a_search_without_one_finds(index: Path, model: Path, query: Path, tmp_path: Path):
    clean = picture_folder(tmp_path / "clean", 12)
    of_index, of_folder = done("search", index, query), done("search", model, clean, query)
    names = [[word for word in said.split() if word.endswith(".png")] for said in (of_index, of_folder)]
    assert names[0] == names[1] != []


def test_search_refuses_what_it_cannot_do(index: Path, model: Path, pictures: Path, query: Path, tmp_path: Path):
    picture = write_picture(tmp_path / "query.png", seed=0)
    assert "so is what" in refused("search", index, picture)
    assert "There is no file" in refused("search", index, tmp_path / "nothing.wav")
    text = tmp_path / "text.wav"
    text.write_text("no recording", encoding="utf-8")
    assert refused("search", index, text) == (
        f"The recording {text} cannot be decoded as audio: Format not recognised.\n"
    )
    assert "cannot be used" in refused("search", index, query, "--where", "nothing = 1")
    assert "--caption needs MODEL" in refused("search", index, query, "--caption", "random")
    assert "--where is for an index" in refused("search", model, pictures, query, "--where", "id = '1'")
    for wrong in (tmp_path / "indx", "no_index"):
        assert f"There is no index {wrong}" in refused("search", wrong, query)
    other = save_tiny(tmp_path / "other", seed=1)
    assert "was made with the model" in refused("search", index, query, "--model", other)
    assert "--modality must be" in refused("index", model, pictures, "--out", tmp_path / "i", "--modality", "video")
    assert "an index of pictures" in refused("index", model, query.parent, "--out", index, "--modality", "speech")
    not_utf8 = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    assert "udcff is not valid UTF-8" in refused("index", "no-model", pictures, "--out", not_utf8)
    assert "There is no folder" in refused("index", model, tmp_path / "no" / "folder", "--out", tmp_path / "i")


@pytest.mark.parametrize("rerank_top_k", [0, 5])
def test_the_best_result_of_each_query_is_explained(index: Path, query: Path, tmp_path: Path, rerank_top_k: int):
    other = write_recording(tmp_path / "other.wav", seed=2)
    heights = []
    for queries in ([query], [other], [query, other]):
        out = tmp_path / "new" / f"{len(heights)}.png"
        assert f"Explained in {out}" in done(
            "search", index, *queries, "--rerank-top-k", rerank_top_k, "--explain", out
        )
        heights.append(Image.open(out).height)
    assert heights[2] == heights[0] + heights[1]


def test_an_explanation_is_the_same_with_and_without_an_index(
    index: Path, model: Path, pictures: Path, query: Path, tmp_path: Path
):
    clean = picture_folder(tmp_path / "clean", 12)
    done("search", index, query, "--explain", tmp_path / "index.png")
    done("search", model, clean, query, "--explain", tmp_path / "folder.png")
    of_index, of_folder = (Image.open(tmp_path / f"{name}.png") for name in ("index", "folder"))
    assert of_index.size == of_folder.size
    assert ImageChops.difference(of_index.convert("RGB"), of_folder.convert("RGB")).getbbox() is None


def test_a_search_that_finds_nothing_says_why(index: Path, model: Path, query: Path, tmp_path: Path):
    explained, found = tmp_path / "explained.png", tmp_path / "found.json"
    said = refused("search", index, query, "--where", "name = 'none'", "--explain", explained, "--json", found)
    assert "selects none of the 12 rows" in said and not explained.exists()
    assert json.loads(found.read_text(encoding="utf-8"))["queries"] == [{"query": str(query), "results": []}]
    unreadable, out = tmp_path / "unreadable", tmp_path / "empty"
    unreadable.mkdir()
    (unreadable / "broken.png").touch()
    assert f"Nothing of {unreadable} could be indexed" in refused("index", model, unreadable, "--out", out)
    assert f"{out} is empty. Fill it" in refused("search", out, query)


@pytest.mark.parametrize("interrupted_at", ["encode", "write"])
def test_what_is_encoded_is_written_when_indexing_is_interrupted(
    model: Path, tmp_path: Path, monkeypatch, interrupted_at: str
):
    pictures, command = picture_folder(tmp_path / "pictures", 9), ["--out", tmp_path / "index", "--batch-size", 3]
    module, name = (encoding, "_encode") if interrupted_at == "encode" else (update.Update, "_write")
    call, calls = getattr(module, name), []

    def interrupt(*arguments):
        calls.append(signal.getsignal(signal.SIGINT))
        if len(calls) == (2 if interrupted_at == "encode" else 1):
            os.kill(os.getpid(), signal.SIGINT)
        return call(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupt)
        result = sir("index", model, pictures, *command)
    kept = 3 if interrupted_at == "encode" else 9
    assert result.exit_code == 130, result.output
    assert "Stopping: what is encoded is written first." in result.stderr
    assert f"keeps {kept} rows; the same command goes on from there" in result.stderr
    if interrupted_at == "write":
        assert calls[1] is signal.SIG_DFL, "a second Ctrl-C ends at once"
    assert f"({9 - kept} added, 0 changed, {kept} unchanged" in done("index", model, pictures, *command)


def test_names_that_no_picture_can_have_are_refused_before_any_work(query: Path, tmp_path: Path):
    said = refused("search", "no-model", tmp_path, query, "--explain", tmp_path / "explained.txt")
    assert "is no name of a picture: let it end in .avif" in said
    (tmp_path / "folder.png").mkdir()
    assert "is a folder" in refused("search", "no-model", tmp_path, query, "--explain", tmp_path / "folder.png")


def test_filter(index: Path, query: Path, tmp_path: Path):
    out = tmp_path / "found.json"
    done("search", index, query, "--where", "name LIKE '0/%'", "--json", out)
    (of_query,) = json.loads(out.read_text(encoding="utf-8"))["queries"]
    assert {result["name"].split("/")[0] for result in of_query["results"]} == {"0"}


def test_a_moved_model(query: Path, tmp_path: Path):
    model, out, pictures = save_tiny(tmp_path / "model"), tmp_path / "index", picture_folder(tmp_path / "pictures", 2)
    done("index", model, pictures, "--out", out)
    moved = model.rename(tmp_path / "moved")
    for command in (["search", out, query], ["app", out]):
        said = refused(*command)
        assert f"There is no folder {model}" in said and "say where: --model MODEL" in said
    done("search", out, query, "--model", moved)
    said = done("index", moved, pictures, "--out", out)
    assert "2 unchanged" in said
    done("search", out, query)


def test_a_renamed_folder_is_marked_and_removed(model: Path, query: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    out, first = tmp_path / "index", picture_folder(tmp_path / "the first", 3)
    done("index", model, first, "--out", out)
    second = first.rename(tmp_path / "second")
    said = done("index", model, second, "--out", out)
    assert f"{first}, of which {out} holds 3 rows, is gone: sir sources {out} --remove '{first}'" in said
    said = done("search", out, query, "--json", tmp_path / "found.json", "--top-k", 6)
    assert said.count("png (file is gone)") == 3 and f" {second}/0/000.png " in said
    (of_query,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["queries"]
    assert {result["path"]: result["missing"] for result in of_query["results"]} == {
        str(folder / f"{number}/00{number}.png"): folder == first for folder in (first, second) for number in range(3)
    }
    assert done("sources", out).count("│ gone") == 1
    assert "All 6 rows of" in done("sources", out, "--check")
    assert "Its sources: " in refused("sources", out, "--remove", tmp_path / "third")
    assert "3 rows" in done("sources", out, "--remove", os.path.relpath(first))
    said = done("search", out, query)
    assert "is gone" not in said and " 0/000.png " in said


def test_damaged_rows_are_named(model: Path, tmp_path: Path, monkeypatch):
    out, pictures = tmp_path / "index", picture_folder(tmp_path / "pictures", 2)
    monkeypatch.setattr(encoding, "row_checksums", lambda embeddings, *_: [0] * len(embeddings))
    done("index", model, pictures, "--out", out)
    said = refused("sources", out, "--check")
    assert f"index them again: {pictures}.\n" in said
    assert "2 of 2 rows of" in said and f"\n{pictures}/0/000.png\n{pictures}/1/001.png\n" in said


def test_pictures_find_recordings(model: Path, tmp_path: Path):
    recordings = recording_folder(tmp_path / "recordings", 6)
    out, picture = tmp_path / "index", write_picture(tmp_path / "query.png", seed=0)
    done("index", model, recordings, "--out", out, "--modality", "speech", "--no-states", "--batch-size", 4)
    assert ".wav" in done("search", out, picture, "--explain", tmp_path / "explained.jpg")
    assert Image.open(tmp_path / "explained.jpg").format == "JPEG"
    done("search", out, picture, "--sheet", tmp_path / "sheet.png", "--top-k", 3)
    assert Image.open(tmp_path / "sheet.png").width > 3 * THUMBNAIL


def corpus_rows(split: str):
    for number in range(4):
        picture = write_picture(Path(f"{split}-{number}.png"), seed=number).read_bytes()
        recording = write_recording(Path(f"{split}-{number}.wav"), seed=number).read_bytes()
        for caption in range(2):
            yield {
                "image": {"bytes": picture, "path": None},
                "audio": {"bytes": recording, "path": None},
                "image_id": f"{split}-{number}",
                "caption_id": f"{split}-{number}#{caption}",
                "text": f"caption {caption} of {number}",
                "speaker": f"speaker {caption}",
                "language": "en",
            }


def test_a_corpus_is_indexed(model: Path, query: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_corpus({name: split_from_rows(corpus_rows, split=name) for name in ("train", "validation", "test")}, "corpus")
    for _ in range(2):
        said = done("index", model, "corpus", "--out", "pictures", "--split", "validation")
        assert "4 rows" in said
    assert "caption 0 of" in done("search", "pictures", query)
    said = done("index", model, "corpus", "--out", "speech", "--modality", "speech")
    assert "8 rows (8 added" in said
    done("search", "speech", "test-0.png", "--where", "speaker = 'speaker 1'", "--json", "found.json")
    (of_query,) = json.loads(Path("found.json").read_text(encoding="utf-8"))["queries"]
    assert {result["speaker"] for result in of_query["results"]} == {"speaker 1"} and len(of_query["results"]) == 4
