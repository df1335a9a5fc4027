from __future__ import annotations

import socket
from importlib import util
from pathlib import Path

import pytest
from speech_image_retrieval.cli import app, serve
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from typer.testing import CliRunner

from ..retrieval.tiny_gallery import save_tiny, tiny_model, tiny_processor
from .served_page import build_index, free_port


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["app", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    return result.stderr.rpartition("Error: ")[2]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    build_index(folder / "pictures", folder / "index", "image", count=2)
    return folder / "index"


def test_two_models_on_one_page_are_refused(index: Path, tmp_path: Path):
    SpeechImageIndex.create(tmp_path / "other", tiny_model(seed=1), tiny_processor(), "speech")
    assert "serve them on two ports" in refused(index, tmp_path / "other")


def test_what_cannot_be_served_is_refused(index: Path, tmp_path: Path):
    assert "holds no index" in refused(tmp_path)
    other = save_tiny(tmp_path / "model", seed=1)
    assert "was made with the model" in refused(index, "--model", other, "--port", free_port())


def test_without_gradio_the_command_says_how_to_install_it(index: Path, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "gradio" else util.find_spec(name))
    assert "pip install 'speech-image-retrieval[app]'" in refused(index)


def test_a_port_that_is_taken_is_named_before_the_model_is_loaded(index: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(index, "--model", "nowhere", "--port", port)
    assert f"Port {port} of 127.0.0.1 is taken" in said and "choose another with --port" in said


def test_a_port_that_is_taken_for_gradio_alone_is_explained(index: Path, tmp_path: Path, monkeypatch):
    for changed in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(changed, "")  # so that the command's own values end with the test
    monkeypatch.setattr("signal.signal", lambda *_: None)
    model = save_tiny(tmp_path / "model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(index, "--model", model, "--host", "127.0.0.2", "--port", port)
    assert f"Nothing came to listen at port {port} of 127.0.0.2" in said


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("a..b", "There is no host 'a..b'"),  # which no name server is asked for
        ("192.0.2.1", "192.0.2.1 is no address of this machine"),  # an address of no machine, by RFC 5737
    ],
)
def test_a_host_that_is_not_this_machine_is_explained(index: Path, host: str, problem: str):
    said = refused(index, "--model", "nowhere", "--host", host)
    assert problem in said and "Give --host an address of this machine" in said
