"""`sir report`: see and hear what a model finds, and what it confuses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import BatchSizeOption, ModelArgument, RerankOption, app, load_model
from .corpus import load_split
from .measuring import CorpusOption, MeasuredScoreRuleOption, SplitOption, check_measured_score_rule, prepare


@app.command()
def report(
    model: ModelArgument,
    corpus: CorpusOption,
    out: Annotated[Path, typer.Option(metavar="PAGE.html", help="The page to write.")],
    split: SplitOption = "test",
    rerank_top_k: RerankOption = 32,
    score_rule: MeasuredScoreRuleOption = "sim",
    batch_size: BatchSizeOption = 64,
) -> None:
    """Write a page of results: figures, random, best and worst queries to see and hear, and what is confused."""
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise ValueError(f"--out {out} is no name of a page: let it end in .html.")
    check_measured_score_rule(score_rule, split, rerank_top_k)
    rows = load_split(corpus, split)
    from ..evaluation.protocol import measure, report_of
    from ..evaluation.ranking import rank_gallery
    from ..evaluation.reranking import check_score_rule
    from ..evaluation.split import encode_split
    from ..gallery.page import write_report

    if score_rule != "validation":
        check_score_rule(score_rule)
    loaded, processor = load_model(model)
    measuring = prepare(loaded, processor, model, corpus, score_rule, rerank_top_k, batch_size)
    encoded = encode_split(
        loaded,
        processor,
        rows,
        name=f"{corpus}, split {split!r}",
        keep_states=rerank_top_k > 0,
        batch_size=batch_size,
        progress=True,
    )
    ranked = rank_gallery(
        loaded,
        encoded.speech,
        encoded.images,
        encoded.image_of_caption,
        rerank_top_k=rerank_top_k,
        score_rule=measuring.rule,
        progress=True,
    )
    figures = report_of([measure(ranked)], corpus=corpus, split=split, score_rule=measuring.rule)
    figures["protocol"] |= measuring.said
    write_report(rows, encoded, ranked, figures, out)
    typer.echo(f"Look at {out}")
