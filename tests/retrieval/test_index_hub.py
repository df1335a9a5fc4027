from __future__ import annotations

from pathlib import Path

from ..corpora.spoken_rows import parquet_files, sound_corpus
from ..hub_client import run
from ..hub_server import HubServer
from .tiny_gallery import save_tiny


def test_a_corpus_on_the_hub_is_indexed_and_brought_up_to_date_by_a_model_there(hub: HubServer, tmp_path: Path):
    hub.publish("dataset", "org/spoken", parquet_files(sound_corpus(3)))
    hub.publish(
        "model", "org/tiny", {file.name: file.read_bytes() for file in save_tiny(tmp_path / "model").iterdir()}
    )
    index = """
        from speech_image_retrieval.cli import app
        app(["index", "org/tiny", "org/spoken", "--out", "index"], standalone_mode=False)
        from speech_image_retrieval.retrieval.index import SpeechImageIndex
        index = SpeechImageIndex.open("index")
        print(sorted(item_id for batch in index.rows(["id"]) for item_id in batch["id"].to_pylist()))
    """
    expected = [f"org/spoken#test/test-{number}" for number in range(3)]
    assert [run(hub, tmp_path, index) for _ in range(2)] == [expected, expected]
