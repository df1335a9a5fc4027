from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import mteb
import pytest
import torch
from datasets import Dataset
from mteb.models import CrossEncoderProtocol, EncoderProtocol, SearchProtocol
from mteb.models.model_implementations import MODEL_REGISTRY
from speech_image_retrieval.evaluation import evaluate_retrieval
from speech_image_retrieval.evaluation.mteb_adapter import MtebReranker, load_undecoded, model_meta

from ..fresh_process import run_script
from ..hub_client import run
from ..hub_server import HubServer
from ..retrieval.tiny_gallery import save_tiny, tiny_model, tiny_processor
from .mteb_tasks import corpus_rows, retrieval_task

TOP_K = 6
DIRECTIONS = {"a2i": "speech_to_image", "i2a": "image_to_speech"}


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    """`datasets` takes two local folders of one name for the same data set."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return corpus_rows(images=11, captions=40)


@pytest.fixture(params=DIRECTIONS)
def task(request, tmp_path, rows):
    return retrieval_task(tmp_path / "data", rows, request.param)


def scores_of(model, task, tmp_path: Path) -> dict[str, float]:
    found = mteb.evaluate(model, task, cache=None, prediction_folder=tmp_path / "found", show_progress_bar=False)
    return found.task_results[0].scores["test"][0]


def hit_rates(scores: dict[str, float]) -> dict[str, float]:
    return {f"R@{k}": 100 * scores[f"hit_rate_at_{k}"] for k in (1, 5, 10)}


def own_report(rows: list[dict], **options) -> dict:
    options = {"corpus": "noise", "split": "test", "states_dtype": torch.float16, **options}
    return evaluate_retrieval(tiny_model(), tiny_processor(), rows, **options)


def recalls(figures: dict[str, float]) -> dict[str, float]:
    return pytest.approx({name: figures[name] for name in ("R@1", "R@5", "R@10")}, abs=1e-3)  # mteb rounds


def test_hit_rates_of_the_encoder_are_the_coarse_recalls_of_this_package(folder, rows, task, tmp_path):
    scores = scores_of(model_meta(str(folder)), load_undecoded(task), tmp_path)
    own = own_report(rows, rerank_top_k=0)[DIRECTIONS[task.metadata.category]]["coarse"]
    assert hit_rates(scores) == recalls(own)
    assert 0 < own["R@5"] < 100, "the model finds nothing or everything: this test needs it to err"


@pytest.mark.parametrize("rule", ["sim", "sim+sic"])
def test_hit_rates_of_both_stages_are_the_reranked_recalls_of_this_package(folder, rows, task, tmp_path, rule):
    scores_of(model_meta(str(folder)), load_undecoded(task), tmp_path)
    task.convert_to_reranking(tmp_path / "found", top_k=TOP_K)
    scores = scores_of(model_meta(str(folder), rerank=rule), task, tmp_path)
    own = own_report(rows, rerank_top_k=TOP_K, score_rule=rule)[DIRECTIONS[task.metadata.category]]
    assert {name: rate for name, rate in hit_rates(scores).items() if name != "R@10"} == pytest.approx(
        {name: own["reranked"][name] for name in ("R@1", "R@5")}, abs=1e-3
    )
    assert scores["hit_rate_at_10"] == pytest.approx(own["rerank_ceiling"] / 100, abs=1e-5), "nothing beyond top k"
    assert own["reranked"] != own["coarse"], "re-ranking changes nothing: this test needs it to"


def test_what_mteb_calls_recall_is_the_fraction_found(folder, rows, tmp_path):
    task = load_undecoded(retrieval_task(tmp_path / "data", rows, "i2a"))
    scores = scores_of(model_meta(str(folder)), task, tmp_path)
    captions = [sum(row["image_id"] == image for row in rows) for image in {row["image_id"] for row in rows}]
    assert scores["recall_at_1"] <= sum(1 / count for count in captions) / len(captions) + 1e-5
    assert scores["recall_at_5"] < scores["hit_rate_at_5"]


def test_recordings_of_other_rates_are_resampled(folder, rows, tmp_path):
    task = load_undecoded(retrieval_task(tmp_path / "data", rows, "a2i"))
    encoder = model_meta(str(folder)).load_model()
    queries = task.dataset["default"]["test"]["queries"]
    embeddings = encoder.encode(torch.utils.data.DataLoader(queries, batch_size=8))
    processor, model = tiny_processor(), tiny_model()
    for number in range(3):  # 16, 8 and 22.05 kHz
        alone = model.get_speech_features(**processor(audio=rows[number]["audio"])).pooler_output[0]
        torch.testing.assert_close(embeddings[number], alone, atol=1e-5, rtol=0)


def test_neither_torchcodec_nor_torchvision_is_imported(folder, rows, tmp_path):
    task = retrieval_task(tmp_path / "data", rows, "a2i")
    data = task.metadata.dataset["path"]
    script = f"""
import sys
sys.modules.update(dict.fromkeys(("torchcodec", "torchvision", "torchaudio")))
from datasets import load_dataset
from torch.utils.data import DataLoader
from speech_image_retrieval.evaluation.mteb_adapter import model_meta
queries = load_dataset({data!r}, "queries", split="test")  # with the feature that decodes
print(model_meta({str(folder)!r}).load_model().encode(DataLoader(queries, batch_size=8)).shape)
"""
    done = run_script(script)
    assert done.stdout.strip() == "torch.Size([40, 4])", done.stderr


def test_the_revision_is_of_the_model_and_not_of_its_figures(folder, tmp_path):
    measured = Path(shutil.copytree(folder, tmp_path / "tiny"))
    for name in ("evaluation.json", "evaluation_unseen_style.json", "training.json"):
        (measured / name).write_text("{}")
    assert model_meta(str(measured)).revision == model_meta(str(folder)).revision
    (measured / "config.json").write_text((measured / "config.json").read_text().replace("0.3", "0.2"))
    assert model_meta(str(measured)).revision != model_meta(str(folder)).revision


def test_mteb_gets_the_model_by_its_name_and_knows_what_it_is(folder, monkeypatch):
    encoder, reranker = model_meta(str(folder)), model_meta(str(folder), rerank="sim+sic")
    assert encoder.name == "local/tiny" and encoder.embed_dim == 4
    assert encoder.n_parameters == tiny_model().num_parameters()
    for meta, protocol in ((encoder, EncoderProtocol), (reranker, CrossEncoderProtocol)):
        monkeypatch.setitem(MODEL_REGISTRY, meta.name, meta)
        loaded = mteb.get_model(meta.name, device="cpu")
        assert isinstance(loaded, protocol) and not isinstance(loaded, SearchProtocol)
        assert loaded.mteb_model_meta.name == meta.name
    assert isinstance(loaded, MtebReranker) and loaded.score_rule == "sim+sic"


def test_a_model_of_the_hub_is_known_by_its_commit(folder, hub: HubServer, tmp_path):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    commits = [hub.publish("model", "org/tiny", {**files, "README.md": text}) for text in (b"old", b"new")]
    script = f"""
        from speech_image_retrieval.evaluation.mteb_adapter import model_meta
        metas = [model_meta("org/tiny", revision=revision) for revision in (None, {commits[0]!r})]
        print([(meta.name, meta.revision, meta.load_model().mteb_model_meta.revision) for meta in metas])
    """
    expected = [("org/tiny", commit, commit) for commit in reversed(commits)]
    assert run(hub, tmp_path, script) == expected


def test_results_are_cached_by_what_made_them(folder, tmp_path, rows):
    other = save_tiny(tmp_path / "tiny", seed=1)  # of the same name
    task = load_undecoded(retrieval_task(tmp_path / "data", rows, "a2i"))
    cache = mteb.ResultCache(tmp_path / "cache")
    options = {"cache": cache, "prediction_folder": tmp_path / "found", "show_progress_bar": False}
    found = [mteb.evaluate(model_meta(str(model)), task, **options) for model in (folder, other, folder)]
    scores = [result.task_results[0].scores["test"][0]["ndcg_at_10"] for result in found]
    assert scores[0] == scores[2] != scores[1]
    task.convert_to_reranking(tmp_path / "found", top_k=TOP_K)
    reranked = mteb.evaluate(model_meta(str(folder), rerank="sim"), task, **options)
    assert reranked.task_results[0].scores["test"][0]["ndcg_at_10"] != scores[0]


def test_every_item_of_a_pair_is_encoded_once(folder, rows, tmp_path, monkeypatch):
    task = load_undecoded(retrieval_task(tmp_path / "data", rows, "a2i"))
    scores_of(model_meta(str(folder)), task, tmp_path)
    task.convert_to_reranking(tmp_path / "found", top_k=TOP_K)
    reranker = model_meta(str(folder), rerank="sim").load_model()
    encoded = {"get_speech_features": 0, "get_image_features": 0}
    for name in encoded:
        method = getattr(reranker.model, name)

        def counted(name=name, method=method, **inputs):
            encoded[name] += len(next(iter(inputs.values())))
            return method(**inputs)

        monkeypatch.setattr(reranker.model, name, counted)
    scores_of(reranker, task, tmp_path)
    assert encoded["get_speech_features"] == 40 and encoded["get_image_features"] <= 11


def test_what_it_cannot_do_is_said(folder, tmp_path):
    encoder, reranker = model_meta(str(folder)).load_model(), model_meta(str(folder), rerank="sim").load_model()
    texts = torch.utils.data.DataLoader(Dataset.from_dict({"id": ["a"], "text": ["a red circle"]}))
    with pytest.raises(ValueError, match=r"recordings or pictures.*\['text'\]"):
        encoder.encode(texts)
    pictures = Dataset.from_list([{"id": "a", "image": corpus_rows(1, 1)[0]["image"]}])
    loader = torch.utils.data.DataLoader(pictures)
    with pytest.raises(ValueError, match="pairs of a recording and a picture"):
        reranker.predict(loader, loader)
    with pytest.raises(ValueError, match="score_rule"):
        model_meta(str(folder), rerank="sum")
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="of type 'bert'"):
        model_meta(str(other))
