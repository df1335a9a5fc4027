from __future__ import annotations

from pathlib import Path

from speech_image_retrieval.corpora.schema import save_corpus, split_from_rows

from ..hub_client import run
from ..hub_server import HubServer
from .tiny_gallery import save_tiny, write_picture, write_recording


def rows(folder: Path, split: str):
    for number in range(3):
        picture = write_picture(folder / f"{split}-{number}.png", seed=number)
        recording = write_recording(folder / f"{split}-{number}.wav", seed=number)
        yield {
            "image": {"bytes": picture.read_bytes(), "path": None},
            "audio": {"bytes": recording.read_bytes(), "path": None},
            "image_id": f"{split}-{number}",
            "caption_id": f"{split}-{number}#0",
            "text": None,
            "speaker": None,
            "language": None,
        }


def test_a_corpus_on_the_hub_is_indexed_and_brought_up_to_date_by_a_model_there(hub: HubServer, tmp_path: Path):
    splits = {name: split_from_rows(rows, folder=tmp_path, split=name) for name in ("train", "validation", "test")}
    save_corpus(splits, tmp_path / "corpus")
    model = {file.name: file.read_bytes() for file in save_tiny(tmp_path / "model").iterdir()}
    hub.publish("model", "org/tiny", model)
    hub.publish("model", "org/gated", model, "gated")
    push = f"""
        from speech_image_retrieval.corpora.schema import load_corpus
        load_corpus({str(tmp_path / "corpus")!r}).push_to_hub("org/spoken")
        print(None)
    """
    index = """
        from speech_image_retrieval.cli.app import app, load_model
        try:
            load_model("org/gated")
        except ValueError as error:
            said = str(error)
        app(["index", "org/tiny", "org/spoken", "--out", "index"], standalone_mode=False)
        from speech_image_retrieval.retrieval.index import SpeechImageIndex
        index = SpeechImageIndex.open("index")
        print([said, sorted(key for batch in index.rows(["id"]) for key in batch["id"].to_pylist())])
    """
    run(hub, tmp_path, push)
    expected = [f"org/spoken#test/test-{number}" for number in range(3)]
    refused, found = zip(*(run(hub, tmp_path, index) for _ in range(2)), strict=True)
    assert found == (expected, expected)
    # A model that is gated is refused in words that say where to ask for it.
    assert "The model org/gated, which is no folder here, cannot be loaded" in refused[0]
    assert "a gated repo" in refused[0] and "access to it at https://huggingface.co/org/gated" in refused[0]
