"""`sir evaluate`: how well a model finds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import BatchSizeOption, ModelArgument, RerankOption, app, load_model, write_json
from .corpus import load_split
from .measuring import CorpusOption, MeasuredScoreRuleOption, SplitOption, check_measured_score_rule, prepare

if TYPE_CHECKING:
    from datasets import Dataset


@app.command()
def evaluate(
    model: ModelArgument,
    corpus: CorpusOption,
    split: SplitOption = "test",
    rerank_top_k: RerankOption = 32,
    score_rule: MeasuredScoreRuleOption = "sim",
    folds: Annotated[
        int,
        typer.Option(
            min=1, help="Equal parts of the pictures, in the order of the file, to measure and average: 5 for COCO 1k."
        ),
    ] = 1,
    batch_size: BatchSizeOption = 64,
    language: Annotated[str | None, typer.Option(help="Only captions in this BCP-47 language.")] = None,
    by: Annotated[
        str | None, typer.Option(help="Also give the figures of spoken queries by `language` or by `speaker`.")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the report to this file.")] = None,
) -> None:
    """Measure retrieval in both directions, before and after re-ranking."""
    if by not in (None, "language", "speaker"):
        raise ValueError(f"--by takes language or speaker, not {by!r}.")
    check_measured_score_rule(score_rule, split, rerank_top_k)
    rows = load_split(corpus, split)
    rows = rows if language is None else _in_language(rows, language)
    from ..evaluation import evaluate_retrieval, format_report

    loaded, processor = load_model(model)
    measuring = prepare(loaded, processor, model, corpus, score_rule, rerank_top_k, batch_size)
    report = evaluate_retrieval(
        loaded,
        processor,
        rows,
        corpus=corpus,
        split=split,
        rerank_top_k=rerank_top_k,
        score_rule=measuring.rule,
        folds=folds,
        batch_size=batch_size,
        group_by=by,
        progress=True,
    )
    report["protocol"] |= measuring.said
    if language is not None:
        report["protocol"]["language"] = language
    typer.echo(format_report(report))
    if json_out:
        write_json(report, json_out)


def _in_language(rows: Dataset, language: str) -> Dataset:
    tags = rows["language"][:]
    kept = [row for row, tag in enumerate(tags) if tag and tag.casefold() == language.casefold()]
    if not kept:
        spoken = ", ".join(sorted({tag for tag in tags if tag})) or "none is stated"
        raise ValueError(f"No caption of this split is in the language {language!r}. Languages: {spoken}.")
    return rows.select(kept)
