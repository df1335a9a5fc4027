from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from speech_image_retrieval.evaluation import EncodedSpeech
from speech_image_retrieval.retrieval import ann, index_search
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from speech_image_retrieval.retrieval.index_search import search_table
from speech_image_retrieval.retrieval.index_table import IndexInfo, create_table, one_of

ROWS, WIDTH = 120_000, 32  # more parts than are probed
INFO = IndexInfo("image", WIDTH, 8, "none", "none", keep_states=False)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fill(uri: Path, vectors: np.ndarray, languages: list[str] | None = None) -> None:
    names = [f"{number}" for number in range(len(vectors))]
    columns = {"id": names, "name": names, "embedding": list(vectors)}
    columns |= {"source": ["generated"] * len(names), "fingerprint": [""] * len(names), "preview": [b""] * len(names)}
    columns |= {"language": languages or [None] * len(names), "crc32": [0] * len(names)}
    columns |= {name: [None] * len(names) for name in ("path", "text", "speaker")}
    create_table(str(uri), INFO).add(pa.table(columns, schema=INFO.schema()))


def found(index: SpeechImageIndex, queries: np.ndarray, where: str | None = None) -> list[list[int]]:
    index._table.checkout_latest()
    encoded = EncodedSpeech(torch.from_numpy(queries))
    options = {"top_k": 50, "rerank_top_k": 0, "score_rule": "sim", "where": where}
    results = search_table(index._table, INFO, None, None, encoded, **options)
    return [[int(result.id) for result in of_query] for of_query in results]


def test_an_approximate_index_finds_nearly_all_that_an_exact_search_finds(tmp_path: Path):
    draw = np.random.default_rng(0)
    clusters = draw.normal(size=(600, WIDTH))
    vectors = unit(clusters[draw.integers(0, 600, ROWS)] + 0.6 * draw.normal(size=(ROWS, WIDTH)))
    queries = unit(clusters[:20] + 0.6 * draw.normal(size=(20, WIDTH)))
    fill(tmp_path / "index", vectors)
    index = SpeechImageIndex.open(tmp_path / "index")
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :50].tolist()
    assert found(index, queries) == exact
    index.build_ann()
    hits = [len(set(some) & set(all_)) / 50 for some, all_ in zip(found(index, queries), exact, strict=True)]
    assert np.mean(hits) >= 0.98
    chosen = np.random.default_rng(1).choice(ROWS, 30, replace=False)
    right = [chosen[np.argsort(-(queries[row] @ vectors[chosen].T))].tolist() for row in range(20)]
    assert found(index, queries, one_of("id", [str(row) for row in chosen])) == right, "a filter loses nothing"


def test_rows_that_pass_a_filter_are_found_however_far_they_lie(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ann, "_ROWS_PER_PARTITION", 150)
    monkeypatch.setattr(index_search, "_EXACT_UP_TO", 50)  # so that the approximate index is asked
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(40, WIDTH))
    centres[0] = -5 * centres[1]
    of = draw.integers(0, 40, 6_000)
    vectors = unit(centres[of] + 0.3 * draw.normal(size=(6_000, WIDTH)))
    fill(tmp_path / "index", vectors, ["de" if centre else "en" for centre in of])
    index = SpeechImageIndex.open(tmp_path / "index")
    index.build_ann()
    (few,) = found(index, unit(centres[1:2]), "language = 'en'")
    assert len(few) == 50 and not of[few].any()


def test_few_rows_need_no_approximate_index(tmp_path: Path):
    fill(tmp_path / "index", unit(np.ones((10, WIDTH))))
    with pytest.raises(ValueError, match="at least 1000 rows, and there are 10"):
        SpeechImageIndex.open(tmp_path / "index").build_ann()
