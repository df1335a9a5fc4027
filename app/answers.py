"""What an upload finds in an index: all that may be shown of it, and no path of the machine it lies on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ..evaluation.reranking import ScoreRule
from ..processing.uploads import UploadLimits, read_picture, read_recording
from ..retrieval.index import SpeechImageIndex
from ..retrieval.index_place import local_folder
from ..retrieval.search import check_options
from ..retrieval.sources import Modality


@dataclass(frozen=True)
class Answer:
    """A picture or a recording that was found.

    Attributes:
        id: its id in the index, to ask for an explanation with. Ids can be paths: never show one.
        rank, coarse_rank: from 1, after and before re-ranking.
        similarity: cosine similarity with the query.
        match: matching logit, higher for what fits the query better; None if it was not re-ranked.
        preview: a JPEG thumbnail, or the recording as FLAC.
    """

    id: str
    rank: int
    coarse_rank: int
    similarity: float
    match: float | None
    name: str
    text: str | None
    speaker: str | None
    language: str | None
    preview: bytes

    @property
    def title(self) -> str:
        return self.text or self.name


class Answering:
    """Answers uploads from one index: recordings where it holds pictures, pictures where it holds recordings.

    Args:
        index: opened with its model.
        top_k, rerank_top_k, score_rule: as for :meth:`..retrieval.index.SpeechImageIndex.search`.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        index: SpeechImageIndex,
        limits: UploadLimits,
        top_k: int = 12,
        rerank_top_k: int = 32,
        score_rule: ScoreRule = "sim",
    ):
        check_options(top_k, rerank_top_k, score_rule)
        self.limits, self.top_k, self.rerank_top_k = limits, top_k, rerank_top_k
        self._index, self._score_rule = index, score_rule

    def __len__(self) -> int:
        """Rows of the index now."""
        return len(self._index)

    @property
    def gallery(self) -> Modality:
        return self._index.info.modality

    @property
    def name(self) -> str:
        """The last part of where the index lies."""
        folder = local_folder(self._index.uri)
        return PurePosixPath(self._index.uri).name if folder is None else folder.resolve().name

    @property
    def model(self) -> str:
        """The Hub id of the model, or the last two parts of its folder."""
        return "/".join(Path(self._index.info.model_name).parts[-2:])

    def find(self, upload: Path | bytes) -> list[Answer]:
        """What fits the upload, the best first.

        Raises:
            UploadRefused: it is not taken; the message is for the person who sent it.
            ValueError: the index or the model is at fault.
        """
        (results,) = self._index.search(
            [self._read(upload)], self.top_k, self.rerank_top_k, self._score_rule, query_names=["The upload"]
        )
        return [
            Answer(
                id=found.id,
                rank=rank,
                coarse_rank=found.coarse_rank,
                similarity=found.coarse_score,
                match=found.matching_score,
                name=found.name,
                text=found.text,
                speaker=found.speaker,
                language=found.language,
                preview=found.preview,
            )
            for rank, found in enumerate(results, start=1)
        ]

    def explain(self, upload: Path | bytes, item_id: str) -> tuple[Image.Image, Image.Image]:
        """A picture of why an upload found an item, for a wide and for a narrow window; errors are those of
        :meth:`find`."""
        query = self._read(upload)
        from ..retrieval.explanation_picture import NARROW, WIDE, draw_explanation

        explanation = self._index.explain(query, item_id)
        return draw_explanation(explanation, WIDE), draw_explanation(explanation, NARROW)

    def _read(self, upload: Path | bytes) -> Any:
        return (read_recording if self.gallery == "image" else read_picture)(upload, self.limits)
