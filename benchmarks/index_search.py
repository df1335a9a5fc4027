"""Search among a million synthetic embeddings: an index, beside faiss and plain NumPy, each in a process of its own.

python -m benchmarks.index_search MODEL --corpus spoken_shapes --work DIR [--rows 1000000] [--queries 200]

The lines "by voice" begin with a recording of the corpus' test split and end with 10 results; all others begin with an
embedding. The gallery is built once in DIR and takes about 20 KB of disk a row. Recall is of the 100 nearest, against
an exact search of the same vectors. Needs faiss: pip install faiss-cpu
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

DEPTH = 100
ENGINES = (
    "NumPy, exact",
    "faiss, exact",
    "faiss, HNSW",
    "index, exact",
    "index, approximate",
    "index, approximate, 10 results shown",
    "index, by voice, coarse",
    "index, by voice, 32 re-ranked",
)
_TOKENS = 43  # of the demo model's width of 144: as many numbers as 32 tokens of 192
_WARM_UP = 20


def main() -> None:
    """Build what is missing, then measure every engine and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--engine", choices=ENGINES, help="measure this one here, and print JSON")
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(_measure(options)))
        return
    _build(options)
    measured = []
    for engine in ENGINES:
        command = [sys.executable, "-m", "benchmarks.index_search", *sys.argv[1:], "--engine", engine]
        measured.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        print(f"{engine}: {measured[-1]}", file=sys.stderr)
    _print(measured, options.rows)


def _build(options: argparse.Namespace) -> None:
    from speech_image_retrieval.cli.app import load_model
    from speech_image_retrieval.evaluation.model_identity import model_identity, model_name
    from speech_image_retrieval.retrieval.index import SpeechImageIndex
    from speech_image_retrieval.retrieval.index_table import IndexInfo

    from .synthetic_gallery import build_index, queries_near, write_vectors

    options.work.mkdir(parents=True, exist_ok=True)
    done = options.work / f"built-{options.rows}"
    if done.exists():
        return
    model, processor = load_model(options.model)
    dimension, width = model.config.projection_dim, model.config.multimodal_config.hidden_size
    vectors = write_vectors(options.work / "vectors.npy", options.rows, dimension)
    queries = queries_near(vectors, options.queries)
    np.save(options.work / "queries.npy", queries)
    np.save(options.work / "nearest.npy", _exact(vectors, queries))
    digest = model_identity(model, processor)
    info = IndexInfo("image", dimension, width, model_name(model), digest, keep_states=True)
    started = time.perf_counter()
    build_index(options.work / "index", vectors, info, _TOKENS)
    filled = time.perf_counter()
    SpeechImageIndex.open(options.work / "index").build_ann()
    print(f"filled in {filled - started:.0f} s, approximate index in {time.perf_counter() - filled:.0f} s")
    done.touch()


def _exact(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(queries, DEPTH) the places of the nearest vectors, in any order."""
    return np.stack([_nearest(vectors, query) for query in queries])


def _nearest(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    return np.argpartition(-(vectors @ query), DEPTH)[:DEPTH]


def _measure(options: argparse.Namespace) -> dict[str, object]:
    queries, nearest = (np.load(options.work / name) for name in ("queries.npy", "nearest.npy"))
    if "by voice" in options.engine:
        from speech_image_retrieval.cli.corpus import load_split

        recordings = load_split(options.corpus, "test")["audio"]
        queries, nearest = [recordings[number % len(recordings)] for number in range(len(queries))], None
    started = time.perf_counter()
    search = _engine(options)
    opened = time.perf_counter() - started
    for query in queries[:_WARM_UP]:
        search(query)
    seconds, recalls = [], []
    for number, query in enumerate(queries):
        started = time.perf_counter()
        found = search(query)
        seconds.append(time.perf_counter() - started)
        if nearest is not None and found is not None:
            recalls.append(len({*found} & {*nearest[number].tolist()}) / DEPTH)
    low, high = np.percentile(np.array(seconds) * 1000, [50, 95])
    return {
        "engine": options.engine,
        "p50_ms": round(low, 1),
        "p95_ms": round(high, 1),
        "recall": round(float(np.mean(recalls)), 4) if recalls else None,
        "peak_mb": round(_peak_bytes() / 1e6),
        "opened_s": round(opened, 1),
    }


def _engine(options: argparse.Namespace) -> Callable[[object], list[int] | None]:
    """A search from a query to the places of the DEPTH nearest rows, None where it answers in another form."""
    if options.engine.startswith("index, by voice"):
        return _by_voice(options, 32 if "re-ranked" in options.engine else 0)
    if options.engine.startswith("index"):
        return _by_embedding(options)
    vectors = np.load(options.work / "vectors.npy")
    if options.engine.startswith("NumPy"):
        return lambda query: _nearest(vectors, query).tolist()
    import faiss

    if options.engine == "faiss, exact":
        built = faiss.IndexFlatIP(vectors.shape[1])
    else:
        built = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        built.hnsw.efSearch = 256
    built.add(vectors)
    return lambda query: built.search(query[None], DEPTH)[1][0].tolist()


def _by_embedding(options: argparse.Namespace) -> Callable[[np.ndarray], list[int] | None]:
    import torch
    from speech_image_retrieval.evaluation import EncodedSpeech
    from speech_image_retrieval.retrieval.index import SpeechImageIndex
    from speech_image_retrieval.retrieval.index_search import nearest, search_table

    index = SpeechImageIndex.open(options.work / "index")
    table = index._table

    def exact(query: np.ndarray) -> list[int]:
        asked = table.search(query, vector_column_name="embedding").distance_type("dot").bypass_vector_index()
        found = asked.limit(DEPTH).select(["_distance"]).with_row_id(True).to_arrow()
        return _places(found["_rowid"].to_pylist())

    def approximate(query: np.ndarray) -> list[int]:
        (found,) = nearest(table, torch.from_numpy(query[None]), DEPTH)
        return _places(found.rows)

    def shown(query: np.ndarray) -> None:
        asked = {"top_k": 10, "rerank_top_k": 0, "score_rule": "sim", "where": None}
        search_table(table, index.info, None, None, EncodedSpeech(torch.from_numpy(query[None])), **asked)

    return {"index, exact": exact, "index, approximate": approximate}.get(options.engine, shown)


def _places(rows: list[int]) -> list[int]:
    """Places of rows in the order in which they were written: LanceDB's ids number a file and a row in it."""
    return [(row >> 32) * (1 << 20) + (row & 0xFFFFFFFF) for row in rows]


def _by_voice(options: argparse.Namespace, rerank_top_k: int) -> Callable[[dict], None]:
    from speech_image_retrieval.cli.app import load_model
    from speech_image_retrieval.retrieval.index import SpeechImageIndex

    index = SpeechImageIndex.open(options.work / "index", *load_model(options.model))

    def search(recording: dict) -> None:
        index.search([recording], top_k=10, rerank_top_k=rerank_top_k)

    return search


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _print(measured: list[dict[str, object]], rows: int) -> None:
    table = Table(title=f"{rows:,} synthetic embeddings", title_justify="left")
    for column in ("engine", "p50 (ms)", "p95 (ms)", f"recall@{DEPTH}", "peak memory (MB)"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in measured:
        recall = "" if row["recall"] is None else f"{row['recall']:.3f}"
        table.add_row(row["engine"], str(row["p50_ms"]), str(row["p95_ms"]), recall, f"{row['peak_mb']:,}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
