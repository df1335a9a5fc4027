from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from speech_image_retrieval.cli import app
from speech_image_retrieval.corpora.schema import save_corpus
from speech_image_retrieval.hub_cards import publishing

from ...corpora.spoken_rows import sound_corpus


@pytest.mark.usefixtures("unchecked")
def test_a_dry_run_shows_files_and_card_and_uploads_nothing(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(publishing, "publish_model", lambda *given, **options: pytest.fail("it was published"))
    save_corpus(sound_corpus(1), tmp_path / "corpus")
    given = [str(exported), "--repo-id", "org/tiny", "--examples", str(tmp_path / "corpus")]
    app(["publish", *given, "--license", "mit", "--dataset", "org/a", "--dry-run"], standalone_mode=False)
    said = capsys.readouterr().out.splitlines()
    size = (exported / "model.safetensors").stat().st_size
    assert f"{size:>14,}  model.safetensors" in said
    listed = {line.split()[-1] for line in said[: said.index("---")] if line}
    assert {"README.md", "evaluation.json", "handler.py", "requirements.txt", "examples/recording.wav"} <= listed
    assert {
        "license: mit",
        "- org/a",
        "# tiny",
        "Checked. Nothing was uploaded, and the Hub was not asked whether you may.",
    } <= set(said)


def test_an_example_is_asked_for_where_none_is_known(exported: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        app(["publish", str(exported), "--repo-id", "org/tiny", "--license", "mit", "--dry-run"])
    said = capsys.readouterr().err
    assert "Name the folder of a corpus, --examples CORPUS, or put recording.* and picture.* into" in said
    assert f"{exported / 'examples'}. There is no folder" in said


@pytest.mark.parametrize("content", ["{", "{}", '{"protocol": null}'])
def test_a_malformed_report_is_an_error_of_one_line_that_names_it(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture, content: str
):
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "evaluation.json").write_text(content)
    with pytest.raises(SystemExit):
        app(["publish", str(folder), "--repo-id", "org/tiny", "--license", "mit", "--dry-run"])
    said = capsys.readouterr().err
    assert said.startswith("Error: ") and "evaluation.json" in said and str(folder) in said and said.count("\n") == 1
