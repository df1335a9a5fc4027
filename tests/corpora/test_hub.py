from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from speech_image_retrieval.corpora.building import Reading, build_from_files

from ..hub_client import ANYONE, run
from ..hub_server import TOKEN, HubServer
from .spoken_rows import SPLITS, file, parquet_files, picture, recording, row, sound_corpus


class Pushed(NamedTuple):
    """A Hub with a corpus `org/spoken`, and others that were made of it:

    `org/wider` with media to decode, a column and a split too many; `org/mute` without `speaker`; `org/long` with
    texts of another type.
    """

    hub: HubServer
    rows: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    folder = tmp_path_factory.mktemp("pushed")
    (folder / "media").mkdir()
    splits = {
        split: [_row_on_disk(folder / "media", split, 10 * place + number) for number in range(5)]
        for place, split in enumerate([*SPLITS, "test_unseen"])
    }
    reading = Reading((split, own) for split, rows in splits.items() for own in rows)
    build_from_files(reading, folder / "corpus", num_proc=1)
    hub = HubServer()
    push = f"""
        from datasets import Audio, DatasetDict, Image, Value
        from speech_image_retrieval.corpora.schema import load_corpus
        corpus = load_corpus({str(folder / "corpus")!r})
        corpus.push_to_hub("org/spoken", num_shards=dict.fromkeys(corpus, 2))
        corpus.remove_columns("speaker").push_to_hub("org/mute")
        corpus.cast_column("text", Value("large_string")).push_to_hub("org/long")
        decoded = corpus.cast_column("image", Image()).cast_column("audio", Audio())
        wider = {{name: rows.add_column("length", range(len(rows))) for name, rows in decoded.items()}}
        DatasetDict({{**wider, "extra": wider["test"]}}).push_to_hub("org/wider")
        print(None)
    """
    run(hub, folder, push)
    rows = {split: [_with_bytes(own) for own in rows] for split, rows in splits.items()}
    for path in (folder / "media").iterdir():
        path.unlink()
    yield Pushed(hub, rows)
    hub.stop()


def _row_on_disk(folder: Path, split: str, number: int) -> dict[str, Any]:
    image = file(folder / f"{number}.png", picture(number))
    audio = file(folder / f"{number}.wav", recording(number))
    return row(number, split, image=image, audio=audio)


def _with_bytes(row: dict[str, Any]) -> dict[str, Any]:
    paths = {name: Path(row[name]["path"]) for name in ("image", "audio")}
    return {**row, **{name: {"bytes": path.read_bytes(), "path": path.name} for name, path in paths.items()}}


def refusals(
    hub: HubServer, home: Path, *asked: tuple[str, str | None], token: str | None = ANYONE
) -> list[tuple[str | None, str | None]]:
    """What `load_hub_corpus` and `stream_training_rows` say of each repository and revision; None if they give it."""
    script = f"""
        from speech_image_retrieval.corpora.hub import load_hub_corpus, stream_training_rows
        from speech_image_retrieval.corpora.schema import CorpusError
        def refusal(read, repo_id, revision):
            try:
                read(repo_id, revision)
            except CorpusError as error:
                return str(error)
        print([tuple(refusal(read, *own) for read in (load_hub_corpus, stream_training_rows)) for own in {asked!r}])
    """
    return run(hub, home, script, token)


def media_asked_for(hub: HubServer, since: int) -> dict[str, list[str | None]]:
    """Name of a Parquet file -> the ranges of it that were given."""
    asked: dict[str, list[str | None]] = {}
    for request in hub.requests[since:]:
        if request.method == "GET" and request.path.endswith(".parquet"):
            asked.setdefault(Path(request.path).name, []).append(request.headers["Range"])
    return asked


def test_a_pushed_corpus_comes_back_as_it_was(pushed: Pushed, tmp_path: Path):
    script = """
        import datasets
        datasets.config.USE_PARQUET_EXPORT = False  # it is asked for at another host than HF_ENDPOINT
        print({name: list(rows) for name, rows in datasets.load_dataset("org/spoken").items()})
    """
    given = run(pushed.hub, tmp_path, script)
    assert given == pushed.rows
    assert list(given) == [*SPLITS, "test_unseen"]


def test_a_pushed_corpus_streams(pushed: Pushed, tmp_path: Path):
    since = len(pushed.hub.requests)
    script = """
        import datasets
        datasets.config.USE_PARQUET_EXPORT = False
        print(list(datasets.load_dataset("org/spoken", streaming=True)["train"]))
    """
    assert run(pushed.hub, tmp_path, script) == pushed.rows["train"]
    asked = media_asked_for(pushed.hub, since)
    assert sorted(asked) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert all(ranges and all(ranges) for ranges in asked.values())


def test_a_corpus_is_loaded_from_the_hub(pushed: Pushed, tmp_path: Path):
    since = len(pushed.hub.requests)
    script = """
        from speech_image_retrieval.corpora.hub import load_hub_corpus
        from speech_image_retrieval.corpora.schema import FEATURES
        corpora = [load_hub_corpus(repo_id) for repo_id in ("org/spoken", "org/wider")]
        assert all(rows.features == FEATURES for corpus in corpora for rows in corpus.values())
        print([{name: list(rows) for name, rows in corpus.items()} for corpus in corpora])
    """
    spoken, wider = run(pushed.hub, tmp_path, script)
    assert spoken == pushed.rows
    assert wider == pushed.rows
    assert not any(name.startswith("extra") for name in media_asked_for(pushed.hub, since))


def test_training_rows_stream_and_the_other_splits_are_loaded(pushed: Pushed, tmp_path: Path):
    since = len(pushed.hub.requests)
    script = """
        from speech_image_retrieval.corpora.hub import load_hub_corpus, stream_training_rows
        from speech_image_retrieval.corpora.schema import FEATURES
        corpus = load_hub_corpus("org/spoken", without_train=True)
        spoken, wider = (stream_training_rows(repo_id) for repo_id in ("org/spoken", "org/wider"))
        assert spoken[0].features == wider[0].features == FEATURES
        print(({name: list(rows) for name, rows in corpus.items()}, [(list(rows), n) for rows, n in (spoken, wider)]))
    """
    others, streamed = run(pushed.hub, tmp_path, script)
    assert others == {split: rows for split, rows in pushed.rows.items() if split != "train"}
    assert streamed == [(pushed.rows["train"], len(pushed.rows["train"]))] * 2
    training_files = {
        name: ranges for name, ranges in media_asked_for(pushed.hub, since).items() if name.startswith("train")
    }
    assert training_files
    assert all(all(ranges) for ranges in training_files.values())


def test_a_revision_is_what_was_asked_for_whatever_is_cached(hub: HubServer, tmp_path: Path):
    corpus = sound_corpus(2)
    older = hub.publish("dataset", "org/spoken", parquet_files({**corpus, "test": corpus["test"].select([0])}))
    hub.publish("dataset", "org/spoken", parquet_files(corpus))
    (tmp_path / "org" / "spoken").mkdir(parents=True)  # is no matter, for it was not asked for
    script = f"""
        from datasets import load_dataset
        from speech_image_retrieval.corpora.hub import load_hub_corpus
        load_dataset("hf://datasets/org/spoken", revision={older!r})
        print([load_hub_corpus("org/spoken", revision)["test"].num_rows for revision in (None, {older!r}, None)])
    """
    assert run(hub, tmp_path, script) == [2, 1, 2]
    newest = hub.publish("dataset", "org/spoken", parquet_files(sound_corpus(1)))
    hub.failures[f"/datasets/org/spoken/resolve/{newest}/README.md"] = 403
    for said in refusals(hub, tmp_path, ("org/spoken", None))[0]:
        assert "in part only" in said


def test_what_a_corpus_lacks_is_named_with_the_command_that_builds_one(pushed: Pushed, tmp_path: Path):
    corpus = sound_corpus(1)
    files = parquet_files({name: corpus[name] for name in ("train", "validation")})
    pushed.hub.publish("dataset", "org/untested", files)
    pushed.hub.publish("dataset", "org/uncounted", parquet_files(corpus))
    expected = {
        "org/mute": ["no column speaker; it has image, audio"] * 2,
        "org/long": ["text: Value('string')", "text: Value('large_string')"],
        "org/untested": ["no split test; it has train, validation", "does not state"],
        "org/uncounted": [None, "does not state the columns and the number of rows of its split 'train'"],
    }
    given = refusals(pushed.hub, tmp_path, *((repo_id, None) for repo_id in expected))
    for (repo_id, words), said in zip(expected.items(), given, strict=True):
        for part, line in zip(words, said, strict=True):
            assert (line is None) == (part is None)
            if line:
                assert part in line
                assert line.endswith(
                    f"corpus build columns --source {repo_id} --column image=... --column audio=... --out DIR"
                )


def test_what_cannot_be_read_is_said_in_one_line(hub: HubServer, tmp_path: Path):
    files = parquet_files(sound_corpus(1))
    hub.publish("dataset", "org/private", files, "private")
    hub.publish("dataset", "org/gated", files, "gated")
    hub.publish("dataset", "org/failing", files)
    hub.failures["/api/datasets/org/failing"] = 500
    expected = {
        ("org/nowhere", None): "set HF_TOKEN to a token",
        ("org/private", None): "set HF_TOKEN to a token",
        ("org/gated", None): "asked for it",
        ("org/gated", "v9"): "no revision v9",
        ("org/failing", None): "500",
        ("not/an/id", None): "is no id of a dataset",
    }
    for (asked, words), said in zip(expected.items(), refusals(hub, tmp_path, *expected, token=None), strict=True):
        for line in said:
            assert asked[0] in line
            assert words in line
            assert len(line.splitlines()) == 1


def test_a_token_opens_what_is_private_or_gated(hub: HubServer, tmp_path: Path):
    files = parquet_files(sound_corpus(1))
    hub.publish("dataset", "org/private", files, "private")
    hub.publish("dataset", "org/gated", files, "gated")
    granted = refusals(hub, tmp_path, ("org/private", None), ("org/gated", None), token=TOKEN)
    assert [loading for loading, _ in granted] == [None, None]
