from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from speech_image_retrieval import SpeechImageRetrievalModel, SpeechImageRetrievalProcessor
from speech_image_retrieval.processing.media import load_image
from speech_image_retrieval.retrieval.explain_pair import explain_pair
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from speech_image_retrieval.retrieval.query_places import query_patches
from speech_image_retrieval.retrieval.search import search_images
from speech_image_retrieval.retrieval.sources import FolderSource, Item
from transformers import CLIPImageProcessorPil

from ..modeling.tiny import tiny_config
from .tiny_gallery import (
    picture_folder,
    recording_folder,
    tiny_model,
    tiny_processor,
    write_picture,
    write_recording,
)

QFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "encoder_hidden_size": 16,
    "cross_attention_frequency": 1,
}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "query.wav", seed=1)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_picture(tmp_path / "query.png", seed=0)


@pytest.mark.parametrize("keep_states", [True, False])
def test_a_picture_of_an_index_is_explained(tmp_path: Path, model, processor, recording: Path, keep_states: bool):
    index = SpeechImageIndex.create(tmp_path / "index", model, processor, keep_states=keep_states)
    index.update_from(FolderSource(picture_folder(tmp_path / "it's pictures", 6), "image"))
    (found,) = index.search([recording], top_k=6)
    for result in (found[0], found[-1]):
        explanation = index.explain(recording, result.id)
        assert explanation.picture.tobytes() == load_image(result.path).tobytes()
        assert explanation.matching_score == pytest.approx(result.matching_score, abs=5e-3)
        assert explanation.coarse_score == pytest.approx(result.coarse_score, abs=1e-5)
        assert (explanation.title, explanation.caption) == ("query.wav", result.name)
        assert explanation.image.shape == (2, 2) and len(explanation.speech) == len(explanation.edges) - 1
        assert explanation.stretches and all(stretch.image.shape == (2, 2) for stretch in explanation.stretches)


def test_a_recording_of_an_index_is_explained(tmp_path: Path, model, processor, picture: Path):
    index = SpeechImageIndex.create(tmp_path / "index", model, processor, "speech")
    index.update_from(FolderSource(recording_folder(tmp_path / "recordings", 4), "speech"))
    result = index.search([picture])[0][0]
    explanation = index.explain(Image.open(picture), result.id)
    seconds = len(explanation.samples) / explanation.sampling_rate
    assert seconds == pytest.approx(soundfile.info(result.path).duration, abs=1e-3)
    assert explanation.edges[-1] == pytest.approx(max(seconds, processor.min_seconds))
    assert explanation.matching_score == pytest.approx(result.matching_score, abs=5e-3)
    assert (explanation.title, explanation.caption) == (result.name, "")


def test_what_is_gone_or_changed_or_has_no_file_is_explained_by_its_preview(
    tmp_path: Path, model, processor, recording: Path
):
    index = SpeechImageIndex.create(tmp_path / "index", model, processor)
    folder = picture_folder(tmp_path / "pictures", 2)
    index.update_from(FolderSource(folder, "image"))
    embedded = write_picture(tmp_path / "embedded.png", seed=2).read_bytes()
    index.add([Item("embedded", "a corpus", "embedded", embedded, "1", len(embedded), text="what it shows")])
    rows = {row["id"]: row for batch in index.rows(["id", "path", "text", "preview"]) for row in batch.to_pylist()}
    files = [Path(row["path"]) for row in rows.values() if row["path"]]
    files[0].unlink()
    Image.new("RGB", (640, 480), "white").save(files[1])
    for item_id, row in rows.items():
        explanation = index.explain(recording, item_id)
        assert explanation.picture.tobytes() == load_image(row["preview"]).tobytes()
        words = row["text"] or Path(item_id).relative_to(folder.resolve()).as_posix()
        assert explanation.caption == f"{words} (from its preview, so scores may differ a little)"


def test_an_unknown_id_is_refused(tmp_path: Path, model, processor, recording: Path):
    index = SpeechImageIndex.create(tmp_path / "index", model, processor)
    index.update_from(FolderSource(picture_folder(tmp_path / "pictures", 1), "image"))
    with pytest.raises(ValueError, match=r"nothing with the id \"it's 0/000.png\"\. Give the id of a result"):
        index.explain(recording, "it's 0/000.png")
    with pytest.raises(ValueError, match="does not exist"):
        index.explain(tmp_path / "no.wav", next(index.rows(["id"]))["id"][0].as_py())
    with pytest.raises(ValueError, match="opened without a model"):
        SpeechImageIndex.open(tmp_path / "index").explain(recording, "1")


def test_scores_are_those_of_a_search(model, processor, recording: Path, picture: Path):
    ((result,),) = search_images(model, processor, [recording], [picture])
    explanation = explain_pair(model, processor, recording, picture)
    assert explanation.matching_score == pytest.approx(result.matching_score, abs=1e-5)
    assert explanation.coarse_score == pytest.approx(result.coarse_score, abs=1e-5)


def test_media_come_in_any_form_and_pictures_are_upright(model, processor, recording: Path, picture: Path):
    samples, _ = soundfile.read(recording, dtype="float32")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    Image.open(picture).rotate(90, expand=True).save(turned, "PNG", exif=exif)
    plain = explain_pair(model, processor, recording, picture)
    for speech, shown in ((samples, turned.getvalue()), (recording.read_bytes(), np.asarray(Image.open(picture)))):
        other = explain_pair(model, processor, speech, shown)
        assert other.picture.size == (24, 20)
        np.testing.assert_allclose(other.image, plain.image, atol=1e-6)
        np.testing.assert_allclose(other.speech, plain.speech, atol=1e-6)


def test_a_cropped_picture_is_explained_where_the_model_saw_it(model, recording: Path, picture: Path):
    crop = CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    processor = SpeechImageRetrievalProcessor(tiny_processor().feature_extractor, crop, max_seconds=2.0)
    explanation = explain_pair(model, processor, recording, picture)
    assert explanation.seen == explanation.cells == (4, 2, 20, 18)


def qformer_model() -> tuple[SpeechImageRetrievalModel, SpeechImageRetrievalProcessor]:
    torch.manual_seed(0)
    config = tiny_config("hubert-blip2", qformer_config=QFORMER, num_query_tokens=3)
    config.multimodal_config.num_image_layers = 1
    return SpeechImageRetrievalModel(config).eval(), tiny_processor()


def test_queries_of_a_qformer_are_laid_where_they_look(recording: Path, picture: Path):
    model, processor = qformer_model()
    pixels = processor(images=[picture])["pixel_values"]
    places = query_patches(model.vision_backbone, pixels)
    assert places.shape == (3, 4)
    torch.testing.assert_close(places.sum(1), torch.ones(3))
    before = model.config.qformer_config._attn_implementation
    explanation = explain_pair(model, processor, recording, picture)
    assert explanation.image.shape == (2, 2)
    assert model.config.qformer_config._attn_implementation == before


def test_a_query_that_looks_at_one_patch_is_laid_there(picture: Path):
    model, processor = qformer_model()
    backbone, pixels = model.vision_backbone, processor(images=[picture])["pixel_values"]
    with torch.no_grad():
        tokens = backbone.vision_model(pixels).last_hidden_state[0]
        towards = torch.linalg.pinv(tokens - tokens.mean(0)) @ (100.0 * torch.eye(len(tokens))[2])  # the second patch
        for layer in backbone.qformer.encoder.layer:
            attention = layer.crossattention.attention
            attention.key.weight.copy_(towards.expand(16, -1))
            attention.query.weight.zero_()
            attention.query.bias.fill_(1.0)
    torch.testing.assert_close(query_patches(backbone, pixels), torch.eye(4)[1].expand(3, -1))
