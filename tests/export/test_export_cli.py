from __future__ import annotations

from speech_image_retrieval.cli import app
from typer.testing import CliRunner

from ..retrieval.tiny_gallery import save_tiny


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in ("export", *arguments)])
    assert result.exit_code == 1, result.output
    return result.stderr


def test_a_folder_that_exists_is_kept(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "mine.txt").write_text("mine")
    assert "exists already" in refused(tmp_path / "model", "--out", tmp_path / "onnx")
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["mine.txt"]


def test_without_the_extra_it_is_named_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("speech_image_retrieval.cli.export.find_spec", lambda name: None if "onnx" in name else name)
    said = refused("no/model", "--out", tmp_path / "onnx")
    assert "pip install 'speech-image-retrieval[export]'" in said


def test_what_was_exported_is_not_taken_for_a_model(tmp_path):
    for name in ("config.json", "matching.onnx"):
        (tmp_path / name).write_text("{}")
    assert "is an export for ONNX Runtime" in refused(tmp_path, "--out", tmp_path / "again")


def test_an_export_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    model = save_tiny(tmp_path / "model")
    monkeypatch.setattr("speech_image_retrieval.export.onnx_folder.serving_graphs", lambda *_: {})
    monkeypatch.setattr("speech_image_retrieval.SpeechImageRetrievalProcessor.save_pretrained", full)
    assert "no space left" in refused(model, "--out", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
