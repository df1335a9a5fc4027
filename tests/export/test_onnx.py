"""What ONNX Runtime makes of an export is what the model makes, whatever the batch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from speech_image_retrieval.export.onnx_folder import export_onnx
from torch import nn
from transformers.exporters import ExportedModel

from ..retrieval.tiny_gallery import tiny_model, tiny_processor, write_picture, write_recording

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
# Other numbers and lengths than those of the example that was traced, the longest first and last.
BATCHES = [(0.3,), (1.9, 0.4), (0.26, 0.5, 0.41, 0.7, 1.23)]
# Of clips and pictures which belong together: one clip with each picture, each clip with one picture, any.
PAIRS = [([0, 0, 0], [0, 1, 2]), ([0, 1, 2, 3], [1, 1, 1, 1]), ([3], [2]), ([1, 0, 3, 3, 2], [2, 0, 1, 0, 0])]


def assert_same(found: dict, expected: dict, atol: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=0)


@torch.no_grad()
def heard(model: nn.Module, speech: dict) -> dict:
    output = model.get_speech_features(**speech)
    states = {"last_hidden_state": output.last_hidden_state, "states_mask": output.attention_mask}
    return {"pooler_output": output.pooler_output, **states}


@torch.no_grad()
def seen(model: nn.Module, pictures: dict) -> dict:
    output = model.get_image_features(**pictures)
    return {"pooler_output": output.pooler_output, "last_hidden_state": output.last_hidden_state}


def pairs_of(exported, speak, draw, speech_rows: list[int], image_rows: list[int]) -> dict:
    model, processor = exported.model, exported.processor
    speech, images = heard(model, speak(processor, 0.5, 0.3, 0.59, 0.41)), seen(model, draw(processor, 3))
    return {
        "speech_states": speech["last_hidden_state"],
        "speech_mask": speech["states_mask"],
        "image_states": images["last_hidden_state"],
        "speech_rows": torch.tensor(speech_rows),
        "image_rows": torch.tensor(image_rows),
    }


@pytest.mark.parametrize("seconds", BATCHES, ids=len)
def test_speech_of_any_number_and_length(exported, speak, seconds):
    speech = speak(exported.processor, *seconds)
    assert_same(exported.run("speech_encoder", **speech), heard(exported.model, speech))


def test_a_clip_has_the_same_states_alone_and_padded(exported, speak):
    speech = speak(exported.processor, 1.7, 0.6)
    longer = exported.run("speech_encoder", **speech)
    alone = {name: tensor[1:, : int(speech["attention_mask"][1].sum())] for name, tensor in speech.items()}
    shorter = exported.run("speech_encoder", **alone)
    torch.testing.assert_close(longer["pooler_output"][1:], shorter["pooler_output"], atol=1e-5, rtol=0)
    states = longer["last_hidden_state"][1][longer["states_mask"][1]]
    torch.testing.assert_close(states, shorter["last_hidden_state"][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_pictures(exported, draw, count):
    pictures = draw(exported.processor, count)
    assert_same(exported.run("image_encoder", **pictures), seen(exported.model, pictures))


@pytest.mark.parametrize(("speech_rows", "image_rows"), PAIRS)
def test_any_pairs(exported, speak, draw, speech_rows, image_rows):
    pairs = pairs_of(exported, speak, draw, speech_rows, image_rows)
    with torch.no_grad():
        assert_same(exported.run("matching", **pairs), {"logits": exported.model.match(**pairs)})


def test_int8_stays_near_and_is_int8(exported_int8, speak, draw):
    model, processor = exported_int8.model, exported_int8.processor
    speech, pictures = speak(processor, 0.6, 0.3, 0.4), draw(processor, 4)
    pairs = pairs_of(exported_int8, speak, draw, *PAIRS[-1])
    with torch.no_grad():
        expected = {"logits": model.match(**pairs)}
    for graph, inputs, reference in (
        ("speech_encoder", speech, heard(model, speech)),
        ("image_encoder", pictures, seen(model, pictures)),
        ("matching", pairs, expected),
    ):
        found = exported_int8.run(graph, **inputs)
        assert found.keys() == reference.keys()
        assert "MatMulInteger" in (exported_int8.folder / f"{graph}.onnx").read_bytes().decode("latin-1")
        if "pooler_output" in found:
            similarity = (found["pooler_output"] * reference["pooler_output"]).sum(1)
            assert similarity.min() > 0.99
        else:
            assert_same(found, reference, atol=0.1)


def test_the_documented_code_serves_the_folder_without_torch(exported, tmp_path):
    code = next(block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL))
    folder = tmp_path / re.search(r'FOLDER = "(.*)"', code)[1]
    folder.parent.mkdir(parents=True)
    folder.symlink_to(exported.folder)
    speech = {"audio": str(write_recording(tmp_path / "query.wav", seed=0))}
    pictures = [str(write_picture(tmp_path / name, seed)) for seed, name in enumerate(("a.png", "b.png"))]
    alone = 'import sys\nsys.modules["torch"] = sys.modules["speech_image_retrieval"] = None\n'
    told = "import json\nprint(json.dumps([similarity[best].tolist(), scores.tolist()]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{alone}{code}{told}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    model, processor = exported.model, exported.processor
    with torch.no_grad():
        query, found = model.get_speech_features(**processor(**speech)), seen(model, processor(images=pictures))
        similarity, best = (query.pooler_output @ found["pooler_output"].T)[0].sort(descending=True)
        states = query.last_hidden_state, query.attention_mask, found["last_hidden_state"]
        logits = model.match(*states, image_rows=best, speech_rows=torch.zeros_like(best))
    similarities, scores = json.loads(done.stdout.splitlines()[-1])
    assert similarities == pytest.approx(similarity.tolist(), abs=1e-4)
    assert scores == pytest.approx((logits + similarity / model.rerank_temperature).tolist(), abs=1e-3)


def test_transformers_reads_the_folder(exported, speak):
    speech = speak(exported.processor, 0.4, 1.1)
    served = ExportedModel.from_pretrained(exported.folder, device="cpu")
    assert_same(served.runners["speech_encoder"](**speech), heard(exported.model, speech))


def test_the_learned_temperature_is_in_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr("speech_image_retrieval.export.onnx_folder.serving_graphs", lambda *_: {})
    model = tiny_model()
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    export_onnx(model, tiny_processor(), tmp_path / "onnx")
    written = json.loads((tmp_path / "onnx" / "config.json").read_text())
    assert written["temperature"] == pytest.approx(model.temperature.item())
    assert written["rerank_temperature"] == model.rerank_temperature


def test_a_recording_that_was_split_is_refused(exported, speak):
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="chunk_clips"):
        exported.run("speech_encoder", **speak(exported.processor, 2.5))


def test_no_path_of_this_machine_is_written(exported, exported_int8):
    for of in (exported, exported_int8):
        for path in of.folder.iterdir():
            content = path.read_bytes().decode("latin-1")
            assert str(of.folder.parent) not in content and str(DOCS.parents[1]) not in content, path.name
