from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from speech_image_retrieval import SpeechImageRetrievalPipeline
from speech_image_retrieval.evaluation import encode_images, encode_speech
from speech_image_retrieval.evaluation.ranking import coarse_scores
from speech_image_retrieval.evaluation.reranking import rerank
from speech_image_retrieval.retrieval.search import search_images
from torch import Tensor

from ..fresh_process import run_script
from .conftest import Media


def ids(answers: list[dict[str, Any]]) -> list[Any]:
    return [answer["id"] for answer in answers]


@pytest.mark.parametrize("rule", ["sim", "sim+sic"])
@pytest.mark.parametrize("rerank_top_k", [0, 4, 32])
def test_speech_finds_pictures_in_the_order_of_search(pipe, media: Media, rule: str, rerank_top_k: int):
    options = {"top_k": 6, "rerank_top_k": rerank_top_k, "score_rule": rule}
    searched = search_images(pipe.model, pipe.processor, media.recordings, media.pictures, **options)
    found = pipe(media.recordings, candidates=media.pictures, batch_size=3, **options)
    assert [ids(answers) for answers in found] == [[result.image for result in results] for results in searched]
    for answers, results in zip(found, searched, strict=True):
        for answer, result in zip(answers, results, strict=True):
            assert answer["label"] == media.pictures[result.image].name
            assert answer["score"] == pytest.approx(result.coarse_score, abs=1e-5)
            assert (answer["match"] is None) == (result.matching_score is None)
            if answer["match"] is not None:
                assert answer["match"] == pytest.approx(result.matching_score, abs=1e-4)


@pytest.mark.parametrize("rule", ["sim", "sim+sic"])
def test_pictures_find_recordings_in_the_order_of_evaluation(pipe, media: Media, rule: str):
    speech = encode_speech(pipe.model, pipe.processor, media.recordings)
    images = encode_images(pipe.model, pipe.processor, media.pictures)
    coarse = coarse_scores(speech, images)
    measured = rerank(pipe.model, coarse, speech.states, images.states, 4, score_rule=rule)
    expected = measured.image_to_speech.scores.argsort(dim=1, descending=True)
    found = pipe(media.pictures, candidates=media.recordings, top_k=7, rerank_top_k=4, score_rule=rule)
    assert [ids(answers) for answers in found] == expected.tolist()


def test_one_query_is_answered_without_a_list_around_it(pipe, media: Media):
    (in_a_list,) = pipe(media.recordings[:1], candidates=media.pictures)
    alone = pipe(media.recordings[0], candidates=media.pictures)
    assert alone == in_a_list
    assert len(alone) == 5


def test_every_form_of_a_recording_and_a_picture_is_the_same(pipe, media: Media):
    path = media.recordings[0]
    samples, rate = soundfile.read(path, dtype="float32")
    recordings = [
        path,
        str(path),
        path.read_bytes(),
        {"array": samples, "sampling_rate": rate},
        {"raw": samples, "sampling_rate": rate},
        {"bytes": path.read_bytes(), "path": None},
    ]
    picture = Image.open(media.pictures[0])
    pictures = [media.pictures[0], media.pictures[0].read_bytes(), picture, np.asarray(picture)]
    speech, images = pipe.encode(recordings), pipe.encode(pictures)
    assert (speech.modality, images.modality) == ("speech", "image")
    for encoded in (speech, images):
        expected = encoded.embeddings[:1].expand_as(encoded.embeddings)
        torch.testing.assert_close(encoded.embeddings, expected, atol=1e-4, rtol=0)
    bare = pipe.encode([samples], sampling_rate=rate)
    torch.testing.assert_close(bare.embeddings, speech.embeddings[3:4])


def test_candidates_that_were_encoded_before_are_not_encoded_again(pipe, media: Media, monkeypatch):
    fresh = pipe(media.recordings, candidates=media.pictures)
    gallery = pipe.encode(media.pictures, labels=[f"picture {number}" for number in range(9)])
    monkeypatch.setattr(pipe.model, "get_image_features", None)
    again = pipe(media.recordings, candidates=gallery)
    assert [ids(answers) for answers in again] == [ids(answers) for answers in fresh]
    assert again[0][0]["label"] == f"picture {again[0][0]['id']}"


def test_coarse_candidates_are_ranked_by_similarity_unless_re_ranking_is_asked_for(pipe, media: Media):
    gallery = pipe.encode(media.pictures, keep_states=False)
    found = pipe(media.recordings[0], gallery)
    assert ids(found) == ids(pipe(media.recordings[0], media.pictures, rerank_top_k=0))
    assert {answer["match"] for answer in found} == {None}
    with pytest.raises(ValueError, match="keep no token states"):
        pipe(media.recordings[0], gallery, rerank_top_k=4)


def test_candidates_are_encoded_in_batches(pipe, media: Media, monkeypatch):
    sizes, encode = [], pipe.model.get_image_features

    def counted(pixel_values: Tensor, **options):
        sizes.append(len(pixel_values))
        return encode(pixel_values, **options)

    monkeypatch.setattr(pipe.model, "get_image_features", counted)
    pipe(media.recordings[:2], candidates=media.pictures, batch_size=4)
    assert sizes == [4, 4, 1]


@pytest.mark.parametrize("kind", ["recordings", "pictures"])
def test_pairs_of_all_queries_share_batches(pipe, media: Media, monkeypatch, kind: str):
    queries, candidates = media.recordings, media.pictures
    if kind == "pictures":
        queries, candidates = candidates, queries
    alone = [pipe(query, candidates=candidates, rerank_top_k=4) for query in queries]
    sizes, match = [], pipe.model.match

    def counted(*states: Tensor, **rows: Tensor) -> Tensor:
        logits = match(*states, **rows)
        sizes.append(len(logits))
        return logits

    monkeypatch.setattr(pipe.model, "match", counted)
    together = pipe(queries, candidates=candidates, rerank_top_k=4)
    assert sizes == [4 * len(queries)]
    for answers, expected in zip(together, alone, strict=True):
        assert ids(answers) == ids(expected)
        for name in ("score", "match"):
            shown, wanted = ([row[name] for row in rows if row[name] is not None] for rows in (answers, expected))
            assert shown == pytest.approx(wanted, abs=1e-4)


def refusal(pipe: SpeechImageRetrievalPipeline, *inputs: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as raised:
        pipe(*inputs, **options)
    return str(raised.value)


def test_wrong_inputs_are_named(pipe, media: Media, tmp_path: Path):
    speech, picture = media.recordings[0], media.pictures[0]
    (tmp_path / "letter.wav").write_text("dear")
    assert refusal(pipe, speech, tmp_path).startswith(f"candidates[0]: {tmp_path} is a folder. Give the files in it")
    assert ids(pipe(speech, candidates=str(picture))) == [0]
    assert refusal(pipe, [speech, tmp_path / "no.wav"], [picture]) == f"inputs[1]: There is no file {tmp_path}/no.wav."
    assert "candidates[0]: Addresses are not fetched" in refusal(pipe, speech, ["https://example.org/a.png"])
    letter = refusal(pipe, picture, [speech, speech, tmp_path / "letter.wav"], batch_size=2)
    assert letter.startswith("candidates[2]: The recording ") and "cannot be decoded" in letter
    assert "no sampling rate" in refusal(pipe, np.zeros(4000, np.float32), [picture])
    assert "pictures and recordings" in refusal(pipe, [speech, picture], [picture])
    assert "both recordings" in refusal(pipe, speech, [speech])
    assert "no candidates" in refusal(pipe, speech, [])
    assert "no inputs" in refusal(pipe, [], [picture])


def test_options_out_of_range_are_refused(pipe, media: Media):
    query = media.recordings[0], media.pictures
    assert "top_k must be 1" in refusal(pipe, *query, top_k=0)
    assert "rerank_top_k must be 0" in refusal(pipe, *query, rerank_top_k=-1)
    assert "score_rule must be" in refusal(pipe, *query, score_rule="best")
    with pytest.raises(TypeError, match="topk"):
        pipe(*query, topk=3)


def test_a_model_without_a_gallery_says_so(pipe, media: Media):
    assert "ships no gallery of pictures" in refusal(pipe, media.recordings[0])


def test_options_of_the_constructor_are_defaults(exported: Path, media: Media):
    from transformers import pipeline

    pipe = pipeline(model=str(exported), pipeline_class=SpeechImageRetrievalPipeline, trust_remote_code=True, top_k=2)
    assert len(pipe(media.recordings[0], candidates=media.pictures)) == 2
    assert len(pipe(media.recordings[0], candidates=media.pictures, top_k=3)) == 3


# Runs where this package is not installed: the name resolves to nothing, whatever the environment holds.
STRANGER = """
import sys
sys.modules["speech_image_retrieval"] = None
import torch
torch.set_num_threads(1)
from transformers import pipeline
folder, copy, recording, *pictures = sys.argv[1:]
try:
    pipeline("speech-image-retrieval", model=folder)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    sys.exit("code was run that nobody trusted")
pipe = pipeline("speech-image-retrieval", model=folder, trust_remote_code=True)
print([answer["id"] for answer in pipe(recording, candidates=pictures)])
pipe.save_pretrained(copy)
again = pipeline("speech-image-retrieval", model=copy, trust_remote_code=True)
print([answer["id"] for answer in again(recording, candidates=pictures)])
"""


def test_the_exported_folder_is_a_pipeline_where_the_package_is_not_installed(
    pipe, exported: Path, media: Media, tmp_path: Path
):
    expected = ids(pipe(media.recordings[0], candidates=media.pictures))
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    files = [exported, tmp_path / "copy", media.recordings[0], *media.pictures]
    done = run_script(STRANGER, *files, cwd=tmp_path, env=os.environ | own)
    assert done.returncode == 0, done.stderr
    assert [line.split("[y/N] ")[-1] for line in done.stdout.splitlines()[-2:]] == [str(expected)] * 2


def test_a_picture_of_too_many_pixels_is_one_all_the_same(pipe, media: Media):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, "PNG")
    assert "pixels" in refusal(pipe, bomb.getvalue(), media.recordings)
