"""The handler, loaded and called as huggingface-inference-toolkit (0.5.6) does."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from .conftest import HUB_CARDS, Media, Published


@dataclass(frozen=True)
class Endpoint:
    """What the toolkit's server makes of a request: it opens pictures, decodes JSON, and answers errors as 400."""

    handler: Callable[[dict[str, Any]], Any]

    def post(self, body: bytes, content_type: str, **query: int) -> tuple[int, Any]:
        try:
            if content_type.startswith("image/"):
                data = {"inputs": Image.open(io.BytesIO(body)).convert("RGB")}
            else:
                data = json.loads(body) if content_type == "application/json" else {"inputs": bytes(body)}
            if query and "parameters" not in data:
                data["parameters"] = query
            return 200, json.loads(json.dumps(self.handler(data)))
        except Exception as error:
            return 400, {"error": str(error)}

    def ask(self, inputs: Any, **parameters: Any) -> tuple[int, Any]:
        body = {"inputs": inputs, **({"parameters": parameters} if parameters else {})}
        return self.post(json.dumps(body).encode(), "application/json")

    def refusal(self, inputs: Any, **parameters: Any) -> str:
        status, answer = self.ask(inputs, **parameters)
        assert status == 400 and set(answer) == {"error"}
        return answer["error"]


@pytest.fixture(scope="module")
def endpoint(published: Published) -> Endpoint:
    path = published.folder / "handler.py"
    shutil.copyfile(HUB_CARDS / "handler.py", path)
    spec = importlib.util.spec_from_file_location("handler", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Endpoint(module.EndpointHandler(str(published.folder)))


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize("content_type", ["audio/wav", "application/json"])
def test_a_recording_is_classified_as_the_pictures_that_it_finds(
    endpoint: Endpoint, published: Published, media: Media, content_type: str
):
    expected = published.pipe(media.recordings[0], top_k=3)
    if content_type == "application/json":
        status, answer = endpoint.ask(encoded(media.recordings[0]), top_k=3)
    else:
        status, answer = endpoint.post(media.recordings[0].read_bytes(), content_type, top_k=3)
    assert status == 200
    assert [row["label"] for row in answer] == [row["label"] for row in expected]
    assert all(set(row) == {"label", "score"} for row in answer)


def test_scores_fall_and_add_up_to_one_over_all_that_were_compared(endpoint: Endpoint, media: Media):
    for options, count in (({}, 9), ({"rerank_top_k": 4}, 4), ({"rerank_top_k": 0}, 9)):
        _, answer = endpoint.ask(encoded(media.recordings[0]), top_k=100, **options)
        scores = [row["score"] for row in answer]
        assert len(scores) == count
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1)


def test_scores_are_what_clients_of_classification_ask_for(endpoint: Endpoint, published: Published, media: Media):
    audio = encoded(media.recordings[0])
    _, usual = endpoint.ask(audio, top_k=3)
    nothing = dict.fromkeys(("task", "top_k", "rerank_top_k", "function_to_apply"))  # as some clients send it
    assert endpoint.ask(audio, **{**nothing, "top_k": 3}) == (200, usual)
    assert len(endpoint.ask(audio, **nothing)[1]) == 5
    logits = torch.tensor([row["score"] for row in endpoint.ask(audio, top_k=100, function_to_apply="none")[1]])
    reranked = [answer for answer in published.pipe(media.recordings[0], top_k=100) if answer["match"] is not None]
    assert logits.tolist() == pytest.approx([answer["match"] + answer["score"] / 0.3 for answer in reranked], abs=1e-3)
    for function, expected in (("softmax", logits.softmax(0)), ("sigmoid", logits.sigmoid())):
        status, answer = endpoint.ask(audio, top_k=3, function_to_apply=function)
        assert status == 200 and [row["label"] for row in answer] == [row["label"] for row in usual]
        assert [row["score"] for row in answer] == pytest.approx(expected[:3].tolist(), abs=1e-6)
    assert "no function_to_apply 'relu'; there are softmax" in endpoint.refusal(audio, function_to_apply="relu")


def test_a_damaged_gallery_is_not_taken_for_none(endpoint: Endpoint, published: Published, tmp_path: Path):
    folder = Path(shutil.copytree(published.folder, tmp_path / "model"))
    (folder / "gallery" / "speech" / "gallery.safetensors").unlink()
    with pytest.raises(ValueError, match=r"The gallery .*gallery/speech is damaged or lacks a part"):
        type(endpoint.handler)(str(folder))


def test_a_picture_is_classified_as_the_recordings_that_it_finds(
    endpoint: Endpoint, published: Published, media: Media
):
    expected = [row["label"] for row in published.pipe(media.pictures[0])]
    body = media.pictures[0].read_bytes()
    for content_type in ("image/png", "application/octet-stream"):  # opened by the server, or told by its content
        status, answer = endpoint.post(body, content_type)
        assert (status, [row["label"] for row in answer]) == (200, expected)
    assert [row["label"] for row in endpoint.ask(encoded(media.pictures[0]))[1]] == expected


def test_json_retrieves_embeds_and_matches(endpoint: Endpoint, published: Published, media: Media):
    audio, image = encoded(media.recordings[0]), encoded(media.pictures[0])
    expected = published.pipe(media.recordings[0], top_k=2, rerank_top_k=1)
    for row in expected:
        del row["file"]  # a path of the endpoint's machine
    assert endpoint.ask({"audio": audio}, top_k=2, rerank_top_k=1) == (200, expected)
    _, embeddings = endpoint.ask({"audio": audio, "image": image}, task="embed")
    encode = published.pipe.encode
    for name, path in (("audio", media.recordings[0]), ("image", media.pictures[0])):
        assert embeddings[name] == pytest.approx(encode([path]).embeddings[0].tolist(), abs=1e-5)
    (pair,) = published.pipe(media.recordings[0], candidates=[media.pictures[0]])
    assert endpoint.ask({"audio": audio, "image": image}, task="match")[1] == {
        "score": pytest.approx(pair["score"], abs=1e-5),
        "match": pytest.approx(pair["match"], abs=1e-4),
    }


def test_malformed_requests_are_answered_in_words(endpoint: Endpoint, media: Media):
    audio, image = encoded(media.recordings[0]), encoded(media.pictures[0])
    assert "needs 'inputs'" in endpoint.post(b"[]", "application/json")[1]["error"]
    assert "needs 'inputs'" in endpoint.post(b'{"parameters": {}}', "application/json")[1]["error"]
    assert "not by path" in endpoint.refusal(str(media.recordings[0]))
    assert "not by path" in endpoint.refusal({"image": "https://example.org/a.png"})
    assert "cannot be read as a recording" in endpoint.refusal("ZGVh\ncg==\n")
    assert "without 'data:...,'" in endpoint.refusal("data:audio/wav;base64,ZGVhcg==")
    assert "cannot be read as a recording" in endpoint.refusal(base64.b64encode(b"dear").decode())
    assert "is none" in endpoint.refusal({"audio": image})
    assert "not as list" in endpoint.refusal([audio])
    assert "['video']" in endpoint.refusal({"video": audio})
    assert "nothing" in endpoint.refusal({})
    assert "one query" in endpoint.refusal({"audio": audio, "image": image})
    assert "give 'audio' and 'image'" in endpoint.refusal({"audio": audio}, task="match")
    assert "task 'embed' needs" in endpoint.refusal(audio, task="embed")
    assert "no task 'sing'" in endpoint.refusal(audio, task="sing")
    assert "no parameter 'k'" in endpoint.refusal(audio, k=3)
    for wrong in ({"top_k": 0}, {"top_k": 1e9}, {"top_k": True}, {"rerank_top_k": -1}, {"rerank_top_k": "32"}):
        assert "whole number" in endpoint.refusal(audio, **wrong)
    status, answer = endpoint.post(b'{"inputs": "", "parameters": 3}', "application/json")
    assert (status, answer) == (400, {"error": "'parameters' must be an object."})


def test_what_is_too_large_is_refused(endpoint: Endpoint):
    long = io.BytesIO()
    soundfile.write(long, np.zeros(31 * 8000, np.int16), 8000, format="WAV")
    assert "at most 30 s" in endpoint.post(long.getvalue(), "audio/wav")[1]["error"]
    wide = io.BytesIO()
    Image.new("1", (8000, 6000)).save(wide, "PNG")
    for content_type in ("image/png", "application/octet-stream"):
        assert "40 megapixels" in endpoint.post(wide.getvalue(), content_type)[1]["error"]
    assert "10 MB" in endpoint.refusal("A" * 14_000_000)


def test_a_model_without_a_gallery_still_embeds(exported: Path, media: Media, endpoint: Endpoint):
    bare = Endpoint(type(endpoint.handler)(str(exported)))
    said = bare.refusal(encoded(media.recordings[0]))
    assert "ships no gallery of pictures" in said and str(exported) not in said
    status, answer = bare.ask({"audio": encoded(media.recordings[0])}, task="embed")
    assert status == 200 and len(answer["audio"]) == 4
