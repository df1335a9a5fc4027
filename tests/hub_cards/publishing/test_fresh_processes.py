"""What was published is used by id in processes that have not this package, by revision, offline, and with a token."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save
from speech_image_retrieval import SpeechImageRetrievalModel, SpeechImageRetrievalProcessor
from speech_image_retrieval.hub_cards import publishing
from speech_image_retrieval.hub_cards.publishing import Publication, publish_model

from ...hub_client import run
from ...hub_server import TOKEN, HubServer

CODE = "modeling_speech_image_retrieval.py"
STRANGER = """
import sys
sys.modules["speech_image_retrieval"] = None  # an import of it fails
import torch
torch.set_num_threads(1)
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

def embed(repo_id, **options):
    options["trust_remote_code"] = True
    assert AutoConfig.from_pretrained(repo_id, **options).model_type == "speech_image_retrieval"
    model = AutoModel.from_pretrained(repo_id, **options)
    processor = AutoProcessor.from_pretrained(repo_id, **options)
    recording, picture = (
        hf_hub_download(repo_id, f"examples/{name}", revision=options.get("revision"))
        for name in ("recording.wav", "picture.png")
    )
    with torch.no_grad():
        speech = model.get_speech_features(**processor(audio=recording))
        image = model.get_image_features(**processor(images=[picture]))
    return [part.pooler_output[0].tolist() for part in (speech, image)]

KINDS = (AutoConfig, AutoModel, AutoProcessor)

def said(work, *given, **options):
    try:
        work(*given, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


class OnTheHub(NamedTuple):
    """A Hub with `org/tiny`, the private `org/secret` and the gated `org/gated`.

    Attributes:
        first: the revision of `org/tiny` that was published; its `main` has other weights and code that says so.
        embeddings: of the example recording and picture, by the model that was published.
    """

    hub: HubServer
    first: str
    embeddings: list[list[float]]


@pytest.fixture(scope="module")
def on_the_hub(exported: Path, rows: list[dict[str, Any]]) -> Iterator[OnTheHub]:
    hub = HubServer()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("no_proxy", "127.0.0.1")
        patched.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patched.setattr(publishing, "check_clean_load", lambda folder: None)
        api = HfApi(endpoint=hub.url, token=TOKEN)
        publication = Publication(exported, "org/tiny", lambda: rows[0], license="mit")
        publish_model(publication, api=api)
        publish_model(replace(publication, repo_id="org/secret"), private=True, api=api)
        first = api.model_info("org/tiny").sha
    files = dict(hub.files("model", "org/tiny"))
    weights = {name: part + 0.5 for name, part in load_file(exported / "model.safetensors").items()}
    files["model.safetensors"] = save(weights, metadata={"format": "pt"})
    files[CODE] += b'\nimport sys\nprint("tampered", file=sys.stderr)\nsys.tampered = True\n'
    hub.publish("model", "org/gated", hub.files("model", "org/tiny"), "gated")
    hub.publish("model", "org/tiny", files)
    yield OnTheHub(hub, first, _embeddings(exported, rows[0]))
    hub.stop()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps the cache of one user from test to test."""
    return tmp_path_factory.mktemp("home")


def _embeddings(folder: Path, row: dict[str, Any]) -> list[list[float]]:
    model = SpeechImageRetrievalModel.from_pretrained(folder).eval()
    processor = SpeechImageRetrievalProcessor.from_pretrained(folder)
    with torch.no_grad():
        speech = model.get_speech_features(**processor(audio=row["audio"]["path"]))
        image = model.get_image_features(**processor(images=[io.BytesIO(row["image"]["bytes"]).getvalue()]))
    return [part.pooler_output[0].tolist() for part in (speech, image)]


def test_a_pinned_revision_is_used_whole_and_nothing_without_trust(on_the_hub: OnTheHub, home: Path):
    script = f"""
refused = [said(kind.from_pretrained, "org/tiny", trust_remote_code=False) for kind in KINDS]
refused.append(said(pipeline, "speech-image-retrieval", model="org/tiny"))
print()  # it asked whether it may, and nobody answered
print([
    refused,
    hasattr(sys, "tampered"),
    embed("org/tiny", revision={on_the_hub.first!r}),
    hasattr(sys, "tampered"),
    said(embed, "org/tiny", revision="0" * 40),
    hasattr(sys, "tampered"),
    embed("org/tiny"),
    hasattr(sys, "tampered"),
])
"""
    refused, ran_untrusted, pinned, ran, absent, ran_then, latest, ran_at_last = run(
        on_the_hub.hub, home, STRANGER + script
    )
    assert all("trust_remote_code" in words for words in refused) and not ran_untrusted
    torch.testing.assert_close(pinned, on_the_hub.embeddings, atol=1e-5, rtol=0)
    assert not ran and not ran_then  # code of another revision
    assert "0" * 40 in absent
    # Without a revision it is what somebody made of it since: this is what pinning is for.
    assert ran_at_last
    assert (torch.tensor(latest) - torch.tensor(pinned)).abs().max() > 1e-2


def test_offline_the_pinned_revision_comes_from_the_cache(on_the_hub: OnTheHub, home: Path):
    since = len(on_the_hub.hub.requests)
    script = f"""
print([
    embed("org/tiny", revision={on_the_hub.first!r}),
    hasattr(sys, "tampered"),
    said(AutoConfig.from_pretrained, "org/other", trust_remote_code=True),
])
"""
    offline = 'import os\nos.environ["HF_HUB_OFFLINE"] = "1"\n'
    pinned, ran, absent = run(on_the_hub.hub, home, offline + STRANGER + script)
    torch.testing.assert_close(pinned, on_the_hub.embeddings, atol=1e-5, rtol=0)
    assert not ran
    assert "cached files" in absent
    assert len(on_the_hub.hub.requests) == since


def test_a_private_or_gated_model_needs_a_token(on_the_hub: OnTheHub, tmp_path: Path):
    script = f"""
closed = ("org/secret", "org/gated")
without = [said(AutoConfig.from_pretrained, repo_id, trust_remote_code=True) for repo_id in closed]
import os
os.environ["HF_TOKEN"] = {TOKEN!r}  # read at every request
print([without, *map(embed, closed)])
"""
    without, *given = run(on_the_hub.hub, tmp_path, STRANGER + script, token=None)
    assert "private" in without[0] and "org/secret" in without[0]
    assert "gated" in without[1] and "org/gated" in without[1]
    torch.testing.assert_close(given, [on_the_hub.embeddings] * 2, atol=1e-5, rtol=0)
