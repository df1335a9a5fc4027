"""What the commands share that measure a model on a split: which score rule, and which checkpoint it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .corpus import load_split

if TYPE_CHECKING:
    from ..evaluation.reranking import ScoreRule
    from ..evaluation.score_rule import ChosenRule
    from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
    from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor

VALIDATION = "validation"

CorpusOption = Annotated[
    str, typer.Option(help="Folder of a corpus, the name of one in outputs/NAME/corpus, or a Hub id.")
]


SplitOption = Annotated[str, typer.Option(help="train, validation, test or another that the corpus has.")]


MeasuredScoreRuleOption = Annotated[
    str,
    typer.Option(
        help="What orders the re-ranked: sim, the matching score; sim+sic, plus similarity; validation, whichever is "
        "better on the validation split."
    ),
]


class Measuring(NamedTuple):
    """The score rule to measure by, and what a report says beside its figures."""

    rule: ScoreRule
    said: dict[str, Any]


def check_measured_score_rule(score_rule: str, split: str, rerank_top_k: int) -> None:
    """Refuse, before anything is loaded, a rule that cannot be chosen on validation."""
    if score_rule != VALIDATION:
        return
    if split == VALIDATION:
        raise ValueError(
            "--score-rule validation chooses the rule on the split validation, so its figures there would flatter. "
            "Give sim or sim+sic, or another split."
        )
    if rerank_top_k == 0:
        raise ValueError("--score-rule validation chooses what orders the re-ranked: it needs --rerank-top-k.")


def prepare(
    model: SpeechImageRetrievalModel,
    processor: SpeechImageRetrievalProcessor,
    name: str,
    corpus: str,
    score_rule: str,
    rerank_top_k: int,
    batch_size: int,
) -> Measuring:
    """Choose the score rule, if that is asked for, on the whole validation split, and identify the checkpoint.

    Args:
        name: of the model, as the user gave it.
    """
    from ..evaluation.model_identity import model_identity

    said: dict[str, Any] = {"checkpoint": {"name": name, "fingerprint": model_identity(model, processor)}}
    if score_rule != VALIDATION:
        return Measuring(score_rule, said)
    from ..evaluation.score_rule import choose_score_rule

    chosen: ChosenRule = choose_score_rule(
        model,
        processor,
        load_split(corpus, VALIDATION),
        split=VALIDATION,
        rerank_top_k=rerank_top_k,
        batch_size=batch_size,
        progress=True,
    )
    counts = {"split": chosen.split, "images": chosen.images, "captions": chosen.captions}
    said["score_rule_chosen_on"] = {**counts, "mean_r1": chosen.mean_r1}
    return Measuring(chosen.rule, said)
