"""Measure retrieval by the field's protocol, coarse and coarse-to-fine."""

from ..modeling.token_states import PackedStates
from .embedding import EncodedImages, EncodedSpeech, distinct_images, encode_images, encode_speech
from .protocol import evaluate_encoded, evaluate_retrieval
from .recall import ranks_of_relevant, recall_summary
from .report_text import format_report
from .reranking import rerank, score_pairs, top_k_candidates

__all__ = [
    "EncodedImages",
    "EncodedSpeech",
    "PackedStates",
    "distinct_images",
    "encode_images",
    "encode_speech",
    "evaluate_encoded",
    "evaluate_retrieval",
    "format_report",
    "ranks_of_relevant",
    "recall_summary",
    "rerank",
    "score_pairs",
    "top_k_candidates",
]
