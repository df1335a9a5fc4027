"""Whether a folder works where nothing but transformers is installed: tried in a process that has not this package."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .examples import find_example
from .refusal import PublishError

_SCRIPT = """
import base64, importlib.util, json, math, sys
sys.modules["speech_image_retrieval"] = None  # an import of it fails, wherever it is installed
folder, recording, picture = sys.argv[1:]
media = {"audio": recording, "image": picture}
import torch
from transformers import AutoModel, AutoProcessor
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model, loading = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
with torch.no_grad():
    speech = model.get_speech_features(**processor(audio=recording))
    image = model.get_image_features(**processor(images=[picture]))
    logits = model.match(speech.last_hidden_state, speech.attention_mask, image.last_hidden_state).tolist()
embeddings = [part.pooler_output[0].tolist() for part in (speech, image)]
found = {name: sorted(map(str, keys)) for name, keys in loading.items() if name.endswith("_keys") and keys}
del model
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sent = {name: base64.b64encode(open(file, "rb").read()).decode() for name, file in media.items()}
handler = module.EndpointHandler(folder)
answer = handler({"inputs": sent, "parameters": {"task": "embed"}})
lengths = [float(torch.tensor(part).norm()) for part in (*embeddings, answer["audio"], answer["image"])]
if all(map(math.isfinite, lengths + logits)):  # others it refuses
    logits.append(handler({"inputs": sent, "parameters": {"task": "match"}})["match"])
print(json.dumps({"keys": found, "lengths": lengths, "logits": logits}))
"""


def check_clean_load(folder: Path) -> None:
    """Load a staged folder by the code it carries, offline, and embed and match its example recording and picture, by
    the model and by the handler of endpoints.

    Raises:
        PublishError: that fails; the message ends in what Python said.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    with tempfile.TemporaryDirectory() as home:
        environment = {**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": home, "HF_MODULES_CACHE": str(Path(home, "modules"))}
        media = [str(find_example(folder, kind).resolve()) for kind in ("recording", "picture")]
        done = subprocess.run(
            # -B: no byte code beside the handler, which would be published.
            [sys.executable, "-I", "-B", "-c", _SCRIPT, str(folder.resolve()), *media],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        said = (done.stderr.strip() or "nothing").splitlines()[-1][:200]
        raise PublishError(
            "The folder does not work by the code it carries, where this package is not installed. Export the model "
            f"again, by training or speech_image_retrieval.training.export.export_model. Python said: {said}"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    for kind, keys in found["keys"].items():
        raise PublishError(
            f"The weights are not those of the model: {len(keys)} {kind.replace('_', ' ')}, {keys[0]} first. Export "
            "the model again; a queue, a teacher or an optimizer is none of it."
        )
    if not all(abs(length - 1) < 1e-2 for length in found["lengths"]):
        raise PublishError(
            f"The model gives the example embeddings of lengths {', '.join(map(str, found['lengths']))} instead of 1: "
            "its weights are damaged. Export it from a checkpoint that was well."
        )
    if not all(map(math.isfinite, found["logits"])):
        raise PublishError(
            "The matching score of the example recording and picture is no number: the weights of the multimodal "
            "encoder are damaged. Export the model from a checkpoint that was well."
        )
