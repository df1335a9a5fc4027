from __future__ import annotations

import io
import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import soundfile
from huggingface_hub.utils import httpx
from PIL import Image
from safetensors.torch import load_file, save_file
from speech_image_retrieval.cli import app
from speech_image_retrieval.cli.app import load_model
from speech_image_retrieval.cli.corpus import CORPUS_OPTIONS
from speech_image_retrieval.corpora.schema import save_corpus, split_from_rows
from speech_image_retrieval.evaluation.model_identity import model_identity
from transformers import HubertConfig
from typer.testing import CliRunner, Result

from .retrieval.tiny_gallery import save_tiny

RATE = 16_000
COLOURS = {"train": (200, 0, 0), "validation": (0, 200, 0), "test": (0, 0, 200)}


def sir(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """What the command says when it fails as it should: a message, not a traceback."""
    result = sir(*arguments)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    progress, error, message = result.stderr.rpartition("Error: ")
    assert error and progress[-1:] in ("", "\n")
    return message


def encoded_picture(colour: tuple[int, int, int], number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (colour[0], colour[1] + number, colour[2])).save(stream, "PNG")
    return stream.getvalue()


def encoded_speech(seed: int, seconds: float = 0.2) -> bytes:
    stream = io.BytesIO()
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE))
    soundfile.write(stream, samples, RATE, format="WAV")
    return stream.getvalue()


def speech_seed(*of: object) -> int:
    """A seed for each caption: the same recording in two splits would be a leak."""
    return crc32(repr(of).encode())


def caption_rows(split: str, pictures: int, picture_of: str | None = None, seconds: float = 0.2, audio=None):
    for number in range(pictures):
        for caption, language in enumerate(("en", "de")):
            yield {
                "image": {"bytes": encoded_picture(COLOURS[picture_of or split], number), "path": None},
                "audio": {
                    "bytes": audio or encoded_speech(speech_seed(split, number, caption), seconds),
                    "path": None,
                },
                "image_id": f"{split}-{number}",
                "caption_id": f"{split}-{number}#{caption}",
                "text": f"picture {number} of {split}" if language == "en" else None,
                "speaker": f"speaker {caption}",
                "language": language,
            }


def make_corpus(folder: Path, **test_split: object) -> Path:
    splits = {name: split_from_rows(caption_rows, split=name, pictures=2) for name in ("train", "validation")}
    splits["test"] = split_from_rows(caption_rows, **{"split": "test", "pictures": 4, **test_split})
    save_corpus(splits, folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpora") / "spoken")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def spoken_query(tmp_path: Path) -> Path:
    path = tmp_path / "query.wav"
    path.write_bytes(encoded_speech(seed=99))
    return path


def test_build_names_the_nearest_corpus(tmp_path: Path):
    assert "did you mean tuxpaint?" in refused("corpus", "build", "tuxpant", "--out", tmp_path / "out")
    assert "did you mean spoken_shapes?" in refused("corpus", "build", "shapes", "--out", tmp_path / "out")


@pytest.mark.parametrize("options", [["--source", "."], ["--language", "en"], ["--skip-missing"]])
def test_build_refuses_options_that_the_corpus_does_not_take(options: list[str], tmp_path: Path):
    message = refused("corpus", "build", "spoken_shapes", "--out", tmp_path / "out", *options)
    assert f"does not take {options[0]}" in message
    assert not (tmp_path / "out").exists()


def test_build_hands_the_options_to_the_corpus(tmp_path: Path, monkeypatch):
    from speech_image_retrieval.corpora import spoken_emoji, spoken_shapes, tuxpaint

    built = []

    def build(*arguments, **options):
        built.append((arguments, options))
        out = next(argument for argument in arguments if argument == tmp_path / "out")
        from speech_image_retrieval.corpora.schema import load_corpus

        return load_corpus(make_corpus(out))

    monkeypatch.setattr(spoken_shapes, "build_spoken_shapes", build)
    monkeypatch.setattr(spoken_emoji, "build_spoken_emoji", build)
    monkeypatch.setattr(tuxpaint, "build_tuxpaint", build)
    out = tmp_path / "out"
    result = sir("corpus", "build", "spoken_shapes", "--out", out, "--seed", 3, "--num-proc", 2)
    assert result.exit_code == 0, result.output
    assert str(out) in result.stdout.replace("\n", "") and "captions per picture" in result.stdout
    assert sir("corpus", "build", "spoken_emoji", "--out", out, "--source", tmp_path).exit_code == 0
    options = ["--source", tmp_path, "--language", "en", "--language", "de", "--skip-missing"]
    assert sir("corpus", "build", "tuxpaint", "--out", out, *options).exit_code == 0
    assert built == [
        ((out,), {"seed": 3, "num_proc": 2}),
        ((str(tmp_path), out), {"seed": 0, "num_proc": None}),
        ((str(tmp_path), out), {"languages": ["en", "de"], "seed": 0, "skip_missing": True, "num_proc": None}),
    ]
    made_here = {name for name, options in CORPUS_OPTIONS.items() if "--embed" not in options}
    assert made_here == {"spoken_shapes", "spoken_shapes_combinations", "spoken_emoji", "tuxpaint"}


def test_build_shows_what_the_corpus_refuses(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    assert "is not a corpus" in refused("corpus", "build", "spoken_shapes", "--out", tmp_path)
    assert (tmp_path / "letter.txt").exists()


def test_check_passes_a_sound_corpus_and_writes_what_it_found(corpus: Path, tmp_path: Path):
    outputs = ["--json", tmp_path / "new" / "counts.json", "--html", tmp_path / "new" / "page.html"]
    result = sir("corpus", "check", corpus, *outputs, "--num-proc", 1)
    assert result.exit_code == 0, result.output
    assert "captions per picture" in result.stdout
    report = json.loads((tmp_path / "new" / "counts.json").read_text(encoding="utf-8"))
    assert report["fit"] and report["decoded"] and report["splits"]["test"]["pictures"] == 4
    assert "Fit for use" in (tmp_path / "new" / "page.html").read_text(encoding="utf-8")


def test_the_samples_on_the_page_depend_on_the_seed(tmp_path: Path):
    corpus = make_corpus(tmp_path / "corpus", pictures=20)
    pages = []
    for number, seed in enumerate((0, 0, 1)):
        page = tmp_path / f"{number}.html"
        assert sir("corpus", "check", corpus, "--html", page, "--seed", seed).exit_code == 0
        pages.append(page.read_text(encoding="utf-8"))
    assert pages[0] == pages[1] != pages[2]


def test_check_fails_on_unusable_recordings_and_still_writes_what_it_found(tmp_path: Path):
    broken = make_corpus(tmp_path / "broken", pictures=7, audio=b"no sound")
    outputs = ["--json", tmp_path / "counts.json", "--html", tmp_path / "page.html"]
    message = refused("corpus", "check", broken, *outputs)
    assert f"{broken} is not fit for use." in message
    assert "14 x unreadable file:\n  test, test-0#0: embedded recording" in message
    assert "and 9 more" in message and "Restore these files" in message
    assert json.loads((tmp_path / "counts.json").read_text(encoding="utf-8"))["splits"]["test"]["unusable"] == 14
    assert "Not fit for use" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_check_decodes_unless_it_is_told_not_to(tmp_path: Path):
    encoded = io.BytesIO()
    soundfile.write(encoded, np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE), RATE, format="FLAC")
    whole = encoded.getvalue()
    broken = make_corpus(tmp_path / "broken", pictures=1, audio=whole[: len(whole) // 2])
    assert "2 x unreadable file" in refused("corpus", "check", broken)
    assert sir("corpus", "check", broken, "--headers-only").exit_code == 0


def test_check_fails_on_pictures_that_splits_share(tmp_path: Path):
    leaking = make_corpus(tmp_path / "leaking", picture_of="train")
    message = refused("corpus", "check", leaking)
    assert "2 x picture in two splits:\n  train, train-0#0 (embedded picture) and test, test-0#0" in message
    assert "What is measured on one split was seen in the other" in message


def test_check_reports_shared_pictures_that_are_allowed_and_still_fails_on_unusable_files(tmp_path: Path):
    leaking = make_corpus(tmp_path / "leaking", picture_of="train")
    result = sir("corpus", "check", leaking, "--allow-shared-pictures")
    assert result.exit_code == 0, result.output
    assert "picture in two" in result.stdout and "warning" in result.stdout
    broken = make_corpus(tmp_path / "broken", picture_of="train", audio=b"no sound")
    message = refused("corpus", "check", broken, "--allow-shared-pictures")
    assert "test, test-0#0: " in message and "two splits" not in message


def test_check_of_another_folder_is_refused(tmp_path: Path):
    assert "holds no corpus" in refused("corpus", "check", tmp_path)


def test_evaluate_prints_and_writes_the_report(model: Path, corpus: Path, tmp_path: Path):
    out = tmp_path / "new" / "report.json"
    result = sir("evaluate", model, "--corpus", corpus, "--rerank-top-k", 3, "--json", out, "--batch-size", 3)
    assert result.exit_code == 0, result.output
    assert "4 distinct images, 8 spoken captions" in result.stdout
    report = json.loads(out.read_text(encoding="utf-8"))
    checkpoint = report["protocol"].pop("checkpoint")
    assert checkpoint == {"name": str(model), "fingerprint": model_identity(*load_model(str(model)))}
    assert f"Checkpoint: {model}, {checkpoint['fingerprint']}." in result.stdout
    assert report["protocol"] == {
        "corpus": str(corpus),
        "split": "test",
        "images": 4,
        "captions": 8,
        "rerank_top_k": 3,
        "score_rule": "sim",
        "pool": {"standard": False, "reason": "the literature has no pool of spoken"},
    }
    assert set(report["mean_r1"]) == {"coarse", "reranked"}


def test_evaluate_on_a_further_test_split(model: Path, tmp_path: Path):
    splits = {name: split_from_rows(caption_rows, split=name, pictures=2) for name in COLOURS}
    splits["test_other"] = split_from_rows(caption_rows, split="other", picture_of="test", pictures=3)
    save_corpus(splits, tmp_path / "corpus")
    arguments = ["evaluate", model, "--corpus", tmp_path / "corpus", "--split"]
    result = sir(*arguments, "test_other")
    assert result.exit_code == 0, result.output
    assert "3 distinct images, 6 spoken captions" in result.stdout
    assert "Splits: train, validation, test, test_other." in refused(*arguments, "test_more")


def test_evaluate_in_one_language_by_the_name_of_a_built_corpus(model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_corpus(Path("outputs", "tuxpaint", "corpus"))
    options = ["--corpus", "tuxpaint", "--language", "DE", "--score-rule", "sim+sic", "--json", "report.json"]
    result = sir("evaluate", model, *options)
    assert result.exit_code == 0, result.output
    protocol = json.loads(Path("report.json").read_text(encoding="utf-8"))["protocol"]
    assert (protocol["corpus"], protocol["captions"], protocol["language"]) == ("tuxpaint", 4, "DE")
    assert protocol["score_rule"] == "sim+sic"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "dev"], "Splits: train, validation, test"),
        (["--language", "fr"], "Languages: de, en"),
        (["--corpus", "tuxpant"], "did you mean tuxpaint?"),
        (["--corpus", "tuxpaint"], "sir corpus build tuxpaint --out"),
        (["--corpus", "no/such/folder"], "There is no folder no/such/folder"),
    ],
)
def test_evaluate_refuses(options: list[str], message: str, model: Path, corpus: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused("evaluate", model, "--corpus", corpus, *options)


def test_evaluate_refuses_clips_that_the_processor_would_not_hear(model: Path, tmp_path: Path):
    long = make_corpus(tmp_path / "long", pictures=1, seconds=128.5)
    assert "lasts 128.5 s; the limit is 128 s" in refused("evaluate", model, "--corpus", long)


def test_a_folder_without_a_model_and_another_model_are_refused(corpus: Path, tmp_path: Path):
    assert "holds no model" in refused("evaluate", tmp_path, "--corpus", corpus)
    HubertConfig().save_pretrained(tmp_path)
    assert "is a model of type 'hubert'" in refused("evaluate", tmp_path, "--corpus", corpus)


def test_a_name_that_is_no_model_is_refused_without_waiting_for_the_hub(corpus: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def unreachable(transport, request):
        asked.append(str(request.url))
        raise httpx.ConnectError("Name or service not known", request=request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", unreachable)
    for name in ("./model", "outputs/shapes/model", str(tmp_path / "model")):
        assert f"There is no folder {name}, and it cannot be the Hub id" in refused(
            "evaluate", name, "--corpus", corpus
        )
    Path("outputs").mkdir()
    assert "There is no folder outputs/model." in refused("evaluate", "outputs/model", "--corpus", corpus)
    assert not asked
    said = refused("evaluate", "org/model", "--corpus", corpus)
    assert "The model org/model, which is no folder here, cannot be loaded: We couldn't" in said
    assert sum("org/model" in url for url in asked) == 1


def test_a_model_with_missing_weights_is_refused(model: Path, corpus: Path, tmp_path: Path):
    for name in ("config.json", "processor_config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    weights = load_file(model / "model.safetensors")
    del weights["matching_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 of the model's weights, matching_head.weight first" in refused(
        "evaluate", tmp_path, "--corpus", corpus
    )


def test_search_a_folder_of_pictures(model: Path, spoken_query: Path, tmp_path: Path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("one.png", "two.PNG", "deep/three.jpg")):
        Image.new("RGB", (20, 10), (80 * number, 0, 0)).save(folder / name)
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    outputs = ["--sheet", tmp_path / "new" / "sheet.png", "--json", tmp_path / "new" / "found.json"]
    result = sir("search", model, folder, spoken_query, *outputs, "--top-k", 2)
    assert result.exit_code == 0, result.output
    assert "query.wav" in result.stdout
    (of_query,) = json.loads((tmp_path / "new" / "found.json").read_text(encoding="utf-8"))["queries"]
    assert of_query["query"] == str(spoken_query) and "rank_of_right" not in of_query
    assert all(found["name"] in result.stdout for found in of_query["results"]) and len(of_query["results"]) == 2
    assert of_query["results"][0]["matching_score"] >= of_query["results"][1]["matching_score"]
    assert sum(name in result.stdout for name in ("one.png", "two.PNG", "deep/three.jpg")) == 2
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.mode == "RGB"


def test_search_a_corpus_by_its_captions(model: Path, corpus: Path, tmp_path: Path):
    sheet, explained = tmp_path / "sheet.png", tmp_path / "explained.png"
    options = ["--caption", "test-2#0", "--caption", "random", "--caption", "random"]
    options += ["--sheet", sheet, "--explain", explained, "--json", tmp_path / "found.json"]
    result = sir("search", model, corpus, *options, "--rerank-top-k", 2, "--top-k", 3)
    assert result.exit_code == 0, result.output
    assert "picture 2 of test" in result.stdout
    assert result.stdout.count("The right picture is at rank ") == 3
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["queries"]
    assert f"The right picture is at rank {found[0]['rank_of_right']} of 4" in result.stdout
    assert found[0]["query"] == "test-2#0" and [len(of_query["results"]) for of_query in found] == [3, 3, 3]
    assert result.stdout.count(" of 4.") == 3
    assert sheet.is_file() and explained.is_file()


def test_random_captions_are_different_and_depend_on_the_seed(model: Path, corpus: Path):
    drawn = [sir("search", model, corpus, *["--caption", "random"] * 8, "--seed", seed).stdout for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for number in range(4):
        assert drawn[0].count(f"\ntest-{number}#1") == 1
    assert "only 8 captions" in refused("search", model, corpus, *["--caption", "random"] * 9)


def test_search_refuses(model: Path, corpus: Path, spoken_query: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no pictures" in refused("search", model, empty, spoken_query)
    assert "There is no folder" in refused("search", model, tmp_path / "none", spoken_query)
    assert "nothing to search for" in refused("search", model, corpus)
    assert "the nearest is 'test-2#0'" in refused("search", model, corpus, "--caption", "tst-2#0")
    Image.new("RGB", (8, 8)).save(empty / "a.png")
    assert "--caption needs a corpus" in refused("search", model, empty, "--caption", "random")
    assert "none.wav" in refused("search", model, empty, empty / "none.wav")
    assert "a.png is a picture; queries are recordings" in refused("search", model, empty, empty / "a.png")
    assert "is a folder. Queries are files." in refused("search", model, empty, empty)
    wrong = sir("search", model, empty, spoken_query, "--score-rule", "best")
    assert wrong.exit_code == 2 and "Invalid value for '--score-rule'" in wrong.stderr
    silent = empty / "silent.wav"
    soundfile.write(silent, np.zeros(RATE), RATE)
    assert refused("search", model, empty, silent).startswith(f"{silent}: there is no sound in this recording")


def test_pictures_that_cannot_be_read_are_named_and_left_out(model: Path, spoken_query: Path, tmp_path: Path):
    broken = tmp_path / "b.png"
    broken.write_bytes(b"no picture")
    assert "None of the pictures" in refused("search", model, tmp_path, spoken_query)
    for name in ("a.png", ".hidden.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    result = sir("search", model, tmp_path, spoken_query)
    assert f"Left out: The picture {broken} cannot be decoded" in result.stderr and result.exit_code == 0
    assert "a.png" in result.stdout and "b.png" not in result.stdout and "hidden" not in result.stdout
