from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
from PIL import Image
from safetensors.torch import load_file
from speech_image_retrieval.hub_cards import gallery as gallery_module
from speech_image_retrieval.hub_cards.gallery import ship_gallery, write_gallery
from speech_image_retrieval.modeling.shipped_gallery import GALLERY_FOLDERS, read_gallery
from speech_image_retrieval.retrieval.index import SpeechImageIndex

from ..hub_client import run
from ..hub_server import HubServer
from ..retrieval.tiny_gallery import save_tiny
from .conftest import Media, Published


@pytest.mark.parametrize("modality", ["image", "speech"])
def test_a_shipped_gallery_answers_as_its_index(published: Published, media: Media, modality: str):
    index = published.pictures if modality == "image" else published.recordings
    queries = media.recordings if modality == "image" else media.pictures
    expected = index.search(queries, top_k=4, rerank_top_k=3, score_rule="sim+sic")  # the rule that the gallery names
    found = published.pipe(queries, top_k=4, rerank_top_k=3)
    assert [[answer["id"] for answer in answers] for answers in found] == [
        [result.name for result in results] for results in expected
    ]
    for answer, result in zip(found[0], expected[0], strict=True):
        assert answer["label"] == result.text
        assert answer["score"] == pytest.approx(result.coarse_score, abs=1e-5)
        assert answer["match"] == pytest.approx(result.matching_score, abs=1e-4)
        assert Path(answer["file"]).read_bytes() == result.preview


def test_the_files_are_plain_and_name_no_path_of_this_machine(published: Published, media: Media):
    for modality, count in (("image", len(media.pictures)), ("speech", len(media.recordings))):
        folder = published.folder / GALLERY_FOLDERS[modality]
        stated = (folder / "gallery.json").read_text()
        assert str(media.pictures[0].parent) not in stated and "tmp" not in stated
        assert sorted(path.name for path in folder.iterdir()) == ["gallery.json", "gallery.safetensors", "media"]
        tensors = load_file(folder / "gallery.safetensors")
        assert {name: str(tensor.dtype) for name, tensor in tensors.items()} == {
            "embeddings": "torch.float32",
            "lengths": "torch.int64",
            "states": "torch.float16",
        }
        assert len(tensors["embeddings"]) == len(json.loads(stated)["items"]) == count
    Image.open(published.folder / "gallery/images/media/0000.jpg").verify()
    assert soundfile.info(published.folder / "gallery/speech/media/0000.flac").format == "FLAC"


def test_a_gallery_is_replaced_as_a_whole_and_nothing_else_is(published: Published, tmp_path: Path):
    folder = tmp_path / "gallery"
    assert write_gallery(published.pictures, folder) == 9
    assert write_gallery(published.pictures, folder, where="text = 'text 3'") == 1
    assert [path.name for path in (folder / "media").iterdir()] == ["0000.jpg"]
    assert read_gallery(folder).labels == ["text 3"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="is no gallery"):
        write_gallery(published.pictures, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery", "mine"]


def test_an_index_is_shipped_where_the_pipeline_looks_unless_it_is_of_another_model(
    published: Published, exported: Path, tmp_path: Path
):
    model = tmp_path / "model"
    shutil.copytree(exported, model)
    assert ship_gallery(published.recordings.uri, model) == 7
    assert sorted(path.name for path in (model / "gallery").iterdir()) == ["speech"]
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="was made with the model"):
        ship_gallery(published.recordings.uri, other)


def test_too_many_rows_and_none_are_refused_in_words(published: Published, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(gallery_module, "MAX_ITEMS", 8)
    with pytest.raises(ValueError, match=r"has 9 pictures; .* at most 8\. Give an index of fewer, .*write_gallery"):
        write_gallery(published.pictures, tmp_path / "gallery")
    with pytest.raises(ValueError, match="no pictures to ship where text = 'none'"):
        write_gallery(published.pictures, tmp_path / "gallery", where="text = 'none'")
    assert not (tmp_path / "gallery").exists()


def test_an_index_without_states_ships_without(published: Published, media: Media, tmp_path: Path):
    pipe = published.pipe
    index = SpeechImageIndex.create(tmp_path / "index", pipe.model, pipe.processor, keep_states=False)
    index.add(published.items(media.pictures))
    write_gallery(index, tmp_path / "gallery")
    gallery = read_gallery(tmp_path / "gallery")
    assert gallery.states is None
    assert {answer["match"] for answer in pipe(media.recordings[0], gallery)} == {None}


def test_a_gallery_that_does_not_hang_together_is_refused(published: Published, tmp_path: Path):
    write_gallery(published.pictures, tmp_path / "gallery")
    file = tmp_path / "gallery" / "gallery.json"
    stated = json.loads(file.read_text())
    outside = [{**stated["items"][0], "file": "../../secret"}, *stated["items"][1:]]
    for changed, message in (
        ({"format": 2}, "format 2"),
        ({"items": stated["items"][1:]}, "do not belong"),
        ({"items": outside}, "secret"),
    ):
        file.write_text(json.dumps({**stated, **changed}))
        with pytest.raises(ValueError, match=message):
            read_gallery(tmp_path / "gallery")
    for content in ("{", "[]", json.dumps({name: value for name, value in stated.items() if name != "items"})):
        file.write_text(content)
        with pytest.raises(ValueError, match=rf"The gallery {tmp_path}/gallery is damaged or lacks a part"):
            read_gallery(tmp_path / "gallery")
    file.write_text(json.dumps(stated))
    with (tmp_path / "gallery" / "gallery.safetensors").open("r+b") as tensors:
        tensors.truncate(100)
    with pytest.raises(ValueError, match="is damaged or lacks a part: SafetensorError"):
        read_gallery(tmp_path / "gallery")


BY_ID = """
    from huggingface_hub import scan_cache_dir
    from transformers import pipeline
    pipe = pipeline("speech-image-retrieval", model="org/tiny", trust_remote_code=True, revision={revision!r})
    found = [answer["id"] for answer in pipe({query!r}, top_k=3)]
    (repo,) = scan_cache_dir().repos
    (revision,) = [revision for revision in repo.revisions if revision.commit_hash == {revision!r}]
    print([found, sorted({{file.file_path.parts[-3] for file in revision.files if "media" in file.file_path.parts}})])
"""


def test_the_gallery_of_a_revision_is_downloaded_alone_and_found_offline(
    hub: HubServer, published: Published, media: Media, tmp_path: Path
):
    files = {
        path.relative_to(published.folder).as_posix(): path.read_bytes()
        for path in published.folder.rglob("*")
        if path.is_file()
    }
    revision = hub.publish("model", "org/tiny", files)
    other = dict(files)
    for path in files:
        if path.startswith("gallery/images/"):
            del other[path]
    hub.publish("model", "org/tiny", other)
    expected = [answer["id"] for answer in published.pipe(media.recordings[0], top_k=3)]
    script = BY_ID.format(revision=revision, query=str(media.recordings[0]))
    assert run(hub, tmp_path, script) == [expected, ["images"]]
    asked = len(hub.requests)
    offline = 'import os\n    os.environ["HF_HUB_OFFLINE"] = "1"\n    os.environ["TRANSFORMERS_OFFLINE"] = "1"'
    assert run(hub, tmp_path, f"\n    {offline}{script}") == [expected, ["images"]]
    assert len(hub.requests) == asked
