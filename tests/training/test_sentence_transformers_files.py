from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from speech_image_retrieval.training.export import export_model
from speech_image_retrieval.training.sentence_transformers_files import export_cross_encoder

from ..fresh_process import run_script
from ..retrieval.tiny_gallery import tiny_model, tiny_processor, write_picture, write_recording

# Both run where this package is not installed: the name resolves to nothing, whatever the environment holds.
PREAMBLE = """
import json, sys
sys.modules["speech_image_retrieval"] = None
import soundfile, torch
from PIL import Image
torch.set_num_threads(1)
model_folder, out, *files = sys.argv[1:]
recordings, pictures = files[:3], files[3:]
samples, rate = soundfile.read(recordings[1], dtype="float32")
"""
EMBED = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(model_folder, trust_remote_code=True, device="cpu")
model.save_pretrained(out)  # what was loaded can be saved, and is loaded again
model = SentenceTransformer(out, trust_remote_code=True, device="cpu")
one, two = model.encode(recordings), model.encode(pictures, batch_size=2)
same = [
    model.encode([recordings[0], {"array": samples, "sampling_rate": rate}, {"audio": recordings[2]}]),
    model.encode([samples], sampling_rate=rate),
    model.encode([Image.open(pictures[0]), {"image": pictures[1]}]),
]
refused = {}
for name, inputs in {"text": ["a red circle"], "mixed": [recordings[0], pictures[0]]}.items():
    try:
        model.encode(inputs)
    except ValueError as error:
        refused[name] = str(error)
print(json.dumps({
    "embeddings": [one.tolist(), two.tolist()], "same": [part.tolist() for part in same], "refused": refused,
    "similarities": model.similarity(one, two).tolist(), "width": model.get_embedding_dimension(),
    "modalities": model.modalities,
}))
"""
SCORE = """
from sentence_transformers import CrossEncoder
model = CrossEncoder(model_folder, trust_remote_code=True, device="cpu")
model.save_pretrained(out)
model = CrossEncoder(out, trust_remote_code=True, device="cpu")
shown = [Image.open(picture) for picture in pictures]
pairs = [({"audio": r}, {"image": p}) for r in recordings for p in pictures]
refused = []
for pair in ((shown[0], shown[1]), (recordings[0], pictures[0])):  # the latter is taken for two texts
    try:
        model.predict([pair])
    except ValueError as error:
        refused.append(str(error))
print(json.dumps({
    "scores": model.predict(pairs, batch_size=5).tolist(),
    "swapped": model.predict([(p, r) for r, p in pairs]).tolist(),
    "ranking": model.rank(recordings[0], shown, batch_size=3),
    "refused": refused,
}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("media")
    recordings = [write_recording(folder / f"{number}.wav", seed=number) for number in range(3)]
    samples, _ = soundfile.read(recordings[2])
    soundfile.write(recordings[2], np.tile(samples, 10), 8_000)  # so long that it is heard in chunks
    return [str(path) for path in [*recordings, *(write_picture(folder / f"{n}.png", seed=n) for n in range(4))]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    export_model(tiny_model(), tiny_processor(), folder)
    return folder


def in_a_fresh_process(script: str, folder: Path, files: list[str], tmp_path: Path) -> dict:
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = run_script(PREAMBLE + script, folder, tmp_path / "saved", *files, cwd=tmp_path, env=os.environ | own)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def own_features(files: list[str]):
    model, processor = tiny_model(), tiny_processor()
    batch = processor(audio=files[:3], images=files[3:])
    pixels = batch.pop("pixel_values")
    return model, model.get_speech_features(**batch), model.get_image_features(pixels)


def close(theirs: list, ours: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(theirs), ours, atol=1e-5, rtol=0)


def test_an_exported_folder_is_a_sentence_transformer(folder, files, tmp_path):
    theirs = in_a_fresh_process(EMBED, folder, files, tmp_path)
    _, speech, images = own_features(files)
    recordings, pictures = speech.pooler_output, images.pooler_output
    for embeddings, own in zip(theirs["embeddings"], (recordings, pictures), strict=True):
        close(embeddings, own)
    for embeddings, own in zip(theirs["same"], (recordings, recordings[1:2], pictures[:2]), strict=True):
        close(embeddings, own)
    close(theirs["similarities"], recordings @ pictures.T)
    assert theirs["width"] == 4 and theirs["modalities"] == ["audio", "image"]
    assert theirs["refused"].keys() == {"text", "mixed"}


def test_its_copy_is_a_cross_encoder(folder, files, tmp_path):
    export_cross_encoder(folder, tmp_path / "reranker")
    theirs = in_a_fresh_process(SCORE, tmp_path / "reranker", files, tmp_path)
    model, speech, images = own_features(files)
    with torch.no_grad():
        own = model.match(
            speech.last_hidden_state,
            speech.attention_mask,
            images.last_hidden_state,
            image_rows=torch.arange(4).repeat(3),
            speech_rows=torch.arange(3).repeat_interleave(4),
        )
    close(theirs["scores"], own)
    close(theirs["swapped"], own)
    assert [found["corpus_id"] for found in theirs["ranking"]] == own[:4].argsort(descending=True).tolist()
    close([found["score"] for found in theirs["ranking"]], own[:4].sort(descending=True).values)
    of_one_kind, bare_paths = theirs["refused"]
    assert "one recording and one picture" in of_one_kind and "text" in bare_paths


def test_a_folder_is_not_overwritten(folder):
    with pytest.raises(FileExistsError):
        export_cross_encoder(folder, folder)
