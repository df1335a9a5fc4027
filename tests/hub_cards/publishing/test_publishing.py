"""What is published is the checked folder, whole, in one commit or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from speech_image_retrieval import SpeechImageRetrievalModel, SpeechImageRetrievalProcessor
from speech_image_retrieval.evaluation.model_identity import model_identity
from speech_image_retrieval.hub_cards.commit import commit_folder, make_repository
from speech_image_retrieval.hub_cards.gallery import write_gallery
from speech_image_retrieval.hub_cards.publishing import Publication, publish_model, staged
from speech_image_retrieval.hub_cards.refusal import PublishError
from speech_image_retrieval.retrieval.index import SpeechImageIndex

from ...hub_server import TOKEN, HubServer
from ...retrieval.tiny_gallery import save_tiny, tiny_model, tiny_processor, write_picture
from ..conftest import Published

COMMIT = "/api/models/org/tiny/commit/main"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


@pytest.fixture
def publication(folder: Path, rows) -> Publication:
    return Publication(folder, "org/tiny", lambda: rows[0], license="apache-2.0")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_fingerprint(report: dict) -> dict:
    return {**report, "protocol": {name: value for name, value in report["protocol"].items() if name != "checkpoint"}}


def state_figures_are_of(folder: Path) -> None:
    """As if the model in this folder had been measured now."""
    model = SpeechImageRetrievalModel.from_pretrained(folder)
    fingerprint = model_identity(model, SpeechImageRetrievalProcessor.from_pretrained(folder))
    report = json.loads((folder / "evaluation.json").read_text())
    report["protocol"]["checkpoint"]["fingerprint"] = fingerprint
    (folder / "evaluation.json").write_text(json.dumps(report))


def commits(hub: HubServer) -> int:
    return sum(request.path == COMMIT for request in hub.requests)


def test_a_model_is_published_in_one_commit_and_its_folder_stays_as_it_was(
    hub: HubServer, api: HfApi, publication: Publication, rows
):
    before = contents(publication.model)
    address = publish_model(publication, api=api)
    files = hub.files("model", "org/tiny")
    assert commits(hub) == 1
    assert address.startswith(f"{hub.url}/org/tiny/commit/")
    assert contents(publication.model) == before
    assert [path.name for path in publication.model.parent.iterdir()] == ["model"]
    added = {"README.md", "handler.py", "requirements.txt", "examples/recording.wav", "examples/picture.png"}
    assert set(files) == set(before) | added
    assert all(files[name] == content for name, content in before.items() if name != "evaluation.json")
    assert files["examples/recording.wav"] == Path(rows[0]["audio"]["path"]).read_bytes()
    assert files["examples/picture.png"] == rows[0]["image"]["bytes"]
    # Figures are published without the folders of this machine.
    published, measured = json.loads(files["evaluation.json"]), json.loads(before["evaluation.json"])
    assert published["protocol"]["corpus"] == "spoken"
    assert published["protocol"]["checkpoint"]["name"] == "model"
    assert published["mean_r1"] == measured["mean_r1"]
    assert str(publication.model.parent).encode() not in b"".join(files.values())


@pytest.mark.usefixtures("unchecked")
def test_a_repository_holds_what_was_published_last_and_nothing_older(
    hub: HubServer, api: HfApi, publication: Publication
):
    hub.publish("model", "org/tiny", {".gitattributes": b"*.bin lfs", "pytorch_model.bin": b"old", "old/a.py": b""})
    publish_model(publication, api=api)
    files = hub.files("model", "org/tiny")
    assert ".gitattributes" in files
    assert not {"pytorch_model.bin", "old/a.py"} & set(files)


@pytest.mark.usefixtures("unchecked")
def test_a_branch_is_made_and_main_left_alone(hub: HubServer, api: HfApi, publication: Publication):
    hub.publish("model", "org/tiny", {"README.md": b"first"})
    publish_model(publication, revision="v2", api=api)
    publish_model(publication, revision="v2", api=api)  # the branch is there already
    assert hub.files("model", "org/tiny") == {"README.md": b"first"}
    assert "model.safetensors" in hub.files("model", "org/tiny", "v2")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("status", [500, 0, 412])
def test_an_interrupted_upload_leaves_the_old_revision_whole(
    hub: HubServer, api: HfApi, publication: Publication, status: int
):
    publish_model(publication, api=api)
    before = dict(hub.files("model", "org/tiny"))
    weights = load_file(publication.model / "model.safetensors")
    save_file({name: part + 1 for name, part in weights.items()}, publication.model / "model.safetensors")
    state_figures_are_of(publication.model)
    hub.failures[COMMIT] = status  # 0: it closes the connection
    with pytest.raises(
        PublishError, match=r"Somebody else published" if status == 412 else r"main is as it was\. Run"
    ):
        publish_model(publication, api=api)
    assert hub.files("model", "org/tiny") == before
    del hub.failures[COMMIT]
    large = hashlib.sha256((publication.model / "model.safetensors").read_bytes()).hexdigest()
    assert f"/lfs/{large}" in [request.path for request in hub.requests]  # the weights had arrived
    publish_model(publication, api=api)
    assert hub.files("model", "org/tiny")["model.safetensors"] != before["model.safetensors"]


def test_a_commit_whose_answer_is_lost_is_not_called_none(hub: HubServer, api: HfApi, tmp_path: Path, monkeypatch):
    hub.publish("model", "org/tiny", {"config.json": b"old"})
    (tmp_path / "config.json").write_text("new")
    hub.lost_answers.add(COMMIT)
    with pytest.raises(PublishError) as raised:
        commit_folder(api, tmp_path, "org/tiny", "model", None, "Publish")
    now = api.model_info("org/tiny").sha
    assert hub.files("model", "org/tiny") == {"config.json": b"new"}
    assert f"Its branch main has changed, to commit {now}: look" in str(raised.value)
    heads = iter([api.model_info("org/tiny")])  # what it holds is known before, and not after
    monkeypatch.setattr(api, "repo_info", lambda *given, **options: next(heads, None) or api.model_info("org/gone"))
    with pytest.raises(PublishError, match="main may have changed or not"):
        commit_folder(api, tmp_path, "org/tiny", "model", None, "Publish")


@pytest.mark.parametrize(("repo_id", "words"), [("tiny", "whose .*ORG/tiny"), ("org/a/b", "no id"), ("", "no id")])
def test_a_repository_without_an_owner_is_refused(
    hub: HubServer, api: HfApi, publication: Publication, repo_id: str, words: str
):
    with pytest.raises(PublishError, match=words), staged(replace(publication, repo_id=repo_id)):
        pass
    with pytest.raises(PublishError, match=words):
        make_repository(api, repo_id, "model", private=True)
    assert hub.requests == []


@pytest.mark.usefixtures("unchecked")
def test_weights_that_do_not_arrive_are_not_committed(hub: HubServer, api: HfApi, publication: Publication):
    large = hashlib.sha256((publication.model / "model.safetensors").read_bytes()).hexdigest()
    hub.failures[f"/lfs/{large}"] = 403
    with pytest.raises(PublishError, match=r"as it was"):
        publish_model(publication, api=api)
    assert hub.files("model", "org/tiny") == {}
    assert commits(hub) == 0


@pytest.mark.usefixtures("unchecked")
def test_what_shall_be_private_is_not_published_where_everybody_reads(
    hub: HubServer, api: HfApi, publication: Publication
):
    hub.publish("model", "org/tiny", {"README.md": b"public"})
    with pytest.raises(PublishError, match=r"everybody can read it.*without --private"):
        publish_model(publication, private=True, api=api)
    assert hub.files("model", "org/tiny") == {"README.md": b"public"}
    hub.publish("model", "org/secret", {"README.md": b"private"}, "private")
    with pytest.raises(PublishError, match=r"does not let you write to org/secret.*HF_TOKEN"):
        publish_model(replace(publication, repo_id="org/secret"), api=HfApi(hub.url, token="hf_x"))
    assert hub.files("model", "org/secret") == {"README.md": b"private"}
    publish_model(replace(publication, repo_id="org/new"), private=True, api=api)
    with pytest.raises(PublishError, match=r"does not let you write to org/new"):
        publish_model(replace(publication, repo_id="org/new"), api=HfApi(hub.url, token="hf_x"))
    assert api.token == TOKEN and api.model_info("org/new").private


@pytest.mark.usefixtures("unchecked")
def test_metadata_that_the_hub_refuses_are_refused_before_anything_is_uploaded(
    hub: HubServer, api: HfApi, publication: Publication, tmp_path: Path
):
    with staged(publication) as folder:
        card = ModelCard.load(folder / "README.md")
    card.data.pipeline_tag = ["speech", "image"]
    card.save(tmp_path / "own.md")
    with pytest.raises(PublishError, match='"pipeline_tag" must be a string'):
        publish_model(replace(publication, card=tmp_path / "own.md", license=None), api=api)
    assert hub.files("model", "org/tiny") == {}
    assert not any(request.path.startswith("/lfs/") for request in hub.requests)


@pytest.mark.usefixtures("unchecked")
def test_galleries_are_published_and_the_task_is_theirs(publication: Publication, tmp_path: Path):
    model, processor = tiny_model(), tiny_processor()
    index = SpeechImageIndex.create(tmp_path / "index", model, processor, "image")
    index.add(Published.items([write_picture(tmp_path / f"{number}.png", number) for number in range(3)]))
    with staged(replace(publication, galleries=(str(tmp_path / "index"),))) as folder:
        assert (folder / "gallery" / "images" / "gallery.safetensors").is_file()
        card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "audio-classification"
    assert card.data.widget == [{"src": "examples/recording.wav", "example_title": "A spoken query"}]
    twice = (str(tmp_path / "index"), str(tmp_path / "index"))
    with (
        pytest.raises(ValueError, match=r"index and .*index are both indexes of pictures.*one gallery of each"),
        staged(replace(publication, galleries=twice)),
    ):
        pass


@pytest.mark.usefixtures("unchecked")
def test_a_gallery_that_lies_in_the_folder_is_of_this_model_and_whole(publication: Publication, tmp_path: Path):
    def refusal() -> str:
        with pytest.raises(PublishError) as raised, staged(publication):
            pass
        return str(raised.value)

    index = SpeechImageIndex.create(tmp_path / "index", tiny_model(), tiny_processor(), "image")
    index.add(Published.items([write_picture(tmp_path / "0.png", 0)]))
    folder = publication.model / "gallery" / "images"
    write_gallery(index, folder)
    with staged(publication) as ready:
        assert (ready / "gallery" / "images" / "gallery.json").is_file()
    stated = json.loads((folder / "gallery.json").read_text())
    for model in ("0" * 32, None):  # also one that does not say, as galleries did not once
        (folder / "gallery.json").write_text(json.dumps({**stated, "model": model}))
        assert f"{folder} is of another model" in refusal()


def test_an_index_of_another_model_is_refused_by_the_folder_that_was_given(publication: Publication, tmp_path: Path):
    other = save_tiny(tmp_path / "other", seed=1)
    index = SpeechImageIndex.create(
        tmp_path / "index",
        SpeechImageRetrievalModel.from_pretrained(other),
        SpeechImageRetrievalProcessor.from_pretrained(other),
        "image",
    )
    index.add(Published.items([write_picture(tmp_path / "0.png", 0)]))
    with (
        pytest.raises(ValueError, match=f"{other}, and {publication.model} differs from it"),
        staged(replace(publication, galleries=[str(tmp_path / "index")])),
    ):
        pass


def test_without_figures_or_with_those_of_another_model_it_is_refused(publication: Publication, tmp_path: Path):
    path = publication.model / "evaluation.json"
    report = json.loads(path.read_text())
    other = tmp_path / "other"
    save_tiny(other, seed=1)
    shutil.copyfile(other / "model.safetensors", publication.model / "model.safetensors")
    for content, words in (
        (report, r"evaluation\.json in .* is about another model.*Measure it again: sir evaluate"),
        (without_fingerprint(report), r"evaluation\.json in .* does not say which model.*sir evaluate"),
        ({**report, "protocol": {"corpus": "spoken", "split": "test"}}, "does not state its pool"),
        ({name: value for name, value in report.items() if name != "intervals"}, "has no intervals"),
        (["no", "report"], "does not state its pool"),
        ({**report, "protocol": None}, r"evaluation\.json does not state its pool"),
        ({**report, "intervals": {}}, r"evaluation\.json is no report of sir evaluate, or a damaged one"),
        ({**report, "speech_to_image": {"coarse": "good"}}, r"evaluation\.json is no report of sir evaluate"),
        (None, "has no evaluation.json.*sir evaluate"),
    ):
        path.unlink()
        if content is not None:
            path.write_text(json.dumps(content))
        with pytest.raises(PublishError, match=words), staged(publication):
            pass


def test_a_run_is_no_model_and_an_example_is_needed(publication: Publication, tmp_path: Path):
    with (
        pytest.raises(PublishError, match=r"holds no model.*the folder `model` of a run"),
        staged(replace(publication, model=tmp_path)),
    ):
        pass
    with (
        pytest.raises(PublishError, match=r"no recording and no picture.*--examples"),
        staged(replace(publication, example=None)),
    ):
        pass


def test_what_is_quick_to_check_comes_before_the_example(publication: Publication):
    def example() -> dict:
        pytest.fail("a corpus was read")

    waiting = replace(publication, example=example)
    for changed, said in (
        ({"repo_id": "tiny"}, "does not say whose repository it is"),
        ({"license": "appache2"}, r"no licence 'appache2'\. Did you mean apache-2"),
        ({"license": "my own"}, "for any that is not there, other"),
    ):
        with pytest.raises(PublishError, match=said), staged(replace(waiting, **changed)):
            pass
    (publication.model / "weights.bin").write_bytes(b"")
    with pytest.raises(PublishError, match="pickle"), staged(waiting):
        pass


@pytest.mark.usefixtures("unchecked")
def test_a_cascade_is_published_without_the_folder_of_its_corpus(publication: Publication):
    figures = {"cascade": {"R@1": 25.0, "R@5": 75.0, "R@10": 100.0, "median_rank": 2.0}}
    cascade = {
        "protocol": {
            "corpus": "/home/me/spoken/corpus",
            "split": "test",
            "images": 4,
            "captions": 4,
            "whisper": "tiny",
        },
        "speech_to_image": figures,
        "image_to_speech": figures,
    }
    (publication.model / "cascade.json").write_text(json.dumps(cascade))
    with staged(publication) as folder:
        assert json.loads((folder / "cascade.json").read_text())["protocol"]["corpus"] == "spoken"
        assert "cascade: tiny" in (folder / "README.md").read_text()


def test_somebody_must_say_the_licence(publication: Publication):
    said = r"licence.*--license apache-2\.0.*facebook/hubert-base-ls960 and facebook/dinov2-small, whose licences"
    with pytest.raises(PublishError, match=said), staged(replace(publication, license=None)):
        pass
    (publication.model / "training.json").unlink()
    with pytest.raises(PublishError, match=r"as the Hub names it: --license apache-2\.0, for instance\.$"):
        publish_model(replace(publication, license=None))


@pytest.mark.usefixtures("unchecked")
def test_a_clone_of_a_published_repository_is_published_without_what_belongs_to_the_clone(publication: Publication):
    with staged(publication) as folder:
        clone = Path(shutil.copytree(folder, publication.model.with_name("clone")))
    (clone / ".gitattributes").write_text("*.safetensors filter=lfs")
    for place in (".git/hooks", ".cache/huggingface/download"):
        (clone / place).mkdir(parents=True)
        (clone / place / "config.json.metadata").write_text("0123\n")
    with staged(replace(publication, model=clone, example=None)) as again:
        assert not [path.name for path in again.iterdir() if path.name.startswith(".")]
        assert (again / "examples" / "recording.wav").is_file()


def test_weights_with_a_queue_among_them_are_refused(publication: Publication):
    path = publication.model / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "queue.speech": weights["speech_cls"].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(PublishError, match=r"1 unexpected keys, queue\.speech first"), staged(publication):
        pass


def test_weights_that_cannot_match_are_refused(publication: Publication):
    path = publication.model / "model.safetensors"
    weights = load_file(path)
    (head,) = (name for name in weights if name.startswith("matching_head") and name.endswith("bias"))
    save_file({**weights, head: weights[head] * float("nan")}, path, metadata={"format": "pt"})
    state_figures_are_of(publication.model)
    with pytest.raises(PublishError, match=r"The matching score of the example .* is no number"), staged(publication):
        pass


def test_code_that_needs_this_package_is_refused(publication: Publication):
    with (publication.model / "modeling_speech_image_retrieval.py").open("a") as file:
        file.write("\nimport speech_image_retrieval\n")
    with (
        pytest.raises(PublishError, match=r"does not work by the code it carries.*speech_image_retrieval"),
        staged(publication),
    ):
        pass
