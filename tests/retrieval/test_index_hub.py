from __future__ import annotations

from pathlib import Path

from ..corpora.spoken_rows import parquet_files, sound_corpus
from ..hub_client import run
from ..hub_server import HubServer
from .tiny_gallery import save_tiny


def test_a_corpus_on_the_hub_is_indexed_and_brought_up_to_date_by_a_model_there(hub: HubServer, tmp_path: Path):
    hub.publish("dataset", "org/spoken", parquet_files(sound_corpus(3)))
    model = {file.name: file.read_bytes() for file in save_tiny(tmp_path / "model").iterdir()}
    hub.publish("model", "org/tiny", model)
    hub.publish("model", "org/gated", model, "gated")
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
    expected = [f"org/spoken#test/test-{number}" for number in range(3)]
    refused, found = zip(*(run(hub, tmp_path, index) for _ in range(2)), strict=True)
    assert found == (expected, expected)
    # A model that is gated is refused in words that say where to ask for it.
    assert "The model org/gated, which is no folder here, cannot be loaded" in refused[0]
    assert "a gated repo" in refused[0] and "access to it at https://huggingface.co/org/gated" in refused[0]
