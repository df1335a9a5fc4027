from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from speech_image_retrieval.modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from speech_image_retrieval.training.export import export_model
from speech_image_retrieval.training.setup import build_model, build_objective, build_processor

from ..fresh_process import run_script

# Runs where this package is not installed: the name resolves to nothing, whatever the environment holds.
STRANGER = """
import json, sys
sys.modules["speech_image_retrieval"] = None
try:
    import speech_image_retrieval
except ImportError:
    pass
else:
    sys.exit("the package is importable")
import numpy, torch
torch.set_num_threads(1)
from transformers import AutoModel, AutoProcessor
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
samples = [numpy.sin(numpy.arange(n) / 9).astype("float32") for n in (2400, 4000)]
pictures = [numpy.full((40, 30, 3), shade, "uint8") for shade in (20, 200)]
batch = processor(audio=samples, images=pictures, sampling_rate=16_000, return_tensors="pt")
pixels = batch.pop("pixel_values")
with torch.no_grad():
    speech, image = model.get_speech_features(**batch), model.get_image_features(pixels)
    scores = model.match(speech.last_hidden_state, speech.attention_mask, image.last_hidden_state)
print(json.dumps([part.tolist() for part in (speech.pooler_output, image.pooler_output, scores)]))
"""


@pytest.fixture(scope="module")
def exported(make_arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    arguments = make_arguments(folder.parent)
    torch.manual_seed(0)
    objective = build_objective(arguments, build_model(arguments, torch.device("cpu")), train_rows=12)
    processor = build_processor(arguments)
    export_model(objective.model, processor, folder)
    return folder, objective.model.eval(), processor


def test_the_folder_runs_where_the_package_is_not_installed(exported, tmp_path):
    folder, model, processor = exported
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = run_script(STRANGER, folder, cwd=tmp_path, env=os.environ | own)
    assert done.returncode == 0, done.stderr
    samples = [np.sin(np.arange(n) / 9).astype("float32") for n in (2400, 4000)]
    pictures = [np.full((40, 30, 3), shade, "uint8") for shade in (20, 200)]
    batch = processor(audio=samples, images=pictures, sampling_rate=16_000, return_tensors="pt")
    pixels = batch.pop("pixel_values")
    with torch.no_grad():
        speech, image = model.get_speech_features(**batch), model.get_image_features(pixels)
        scores = model.match(speech.last_hidden_state, speech.attention_mask, image.last_hidden_state)
    expected = (speech.pooler_output, image.pooler_output, scores)
    for theirs, ours in zip(json.loads(done.stdout.splitlines()[-1]), expected, strict=True):
        torch.testing.assert_close(torch.tensor(theirs), ours, atol=1e-5, rtol=0)


def test_the_folder_holds_the_model_only(exported):
    folder, model, _ = exported
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) == set(model.state_dict())
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".py", ".safetensors"}


def test_no_path_of_this_machine_is_written(exported):
    folder, _, _ = exported
    for path in folder.glob("*.json"):
        assert str(Path.home()) not in path.read_text() and str(folder.parent) not in path.read_text(), path.name


def test_an_interrupted_export_leaves_the_old_folder(exported, monkeypatch):
    folder, model, processor = exported
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(type(processor), "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            export_model(model, processor, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "stale.txt").write_text("of an older version")
    export_model(model, processor, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_folder_loads_back_into_the_same_weights(exported):
    folder, model, _ = exported
    loaded = SpeechImageRetrievalModel.from_pretrained(folder).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], part) for name, part in model.state_dict().items())
