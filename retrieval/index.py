"""A persistent index: pictures to be found by speech, or recordings to be found by pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
from torch import Tensor, nn

from ..evaluation.model_identity import model_identity, model_name
from ..evaluation.reranking import ScoreRule
from .ann import ann_config
from .checksums import COLUMN as CHECKSUM
from .checksums import damaged_rows
from .compaction import compact
from .explain_row import explain_row
from .explanation import Explanation
from .held_sources import HeldSource, held_sources
from .index_search import Found, check_filter, encode_queries, search_table
from .index_table import (
    IndexInfo,
    IndexProblem,
    create_table,
    damage_explained,
    one_of,
    open_table,
    read_info,
    store_model_name,
    writing,
)
from .index_versions import IndexVersions, read_rows
from .search import check_options
from .sources import PLURAL, Item, Modality, Source
from .update import Update, UpdateReport

_QUERIES_AT_A_TIME = 16  # bounds the token states in memory: 16 x 32 candidates of BLIP-2 are 0.2 GB
_CHECKED = ("id", "preview", "embedding", "states", CHECKSUM)
_CHECKED_AT_A_TIME = 64  # rows; token states of a large vision transformer are a megabyte each


class SpeechImageIndex:
    """Embeddings, previews and token states of a gallery in a LanceDB table, searched coarse-to-fine.

    Build one with :meth:`create` or :meth:`open`. Updates are incremental, and every write is whole or not there: an
    update that was killed is finished by the next one. Several processes may write at once, and several threads may
    use one object.
    """

    def __init__(
        self,
        uri: str,
        table: lancedb.table.Table,
        model: nn.Module | None = None,
        processor: Callable[..., Mapping[str, Tensor]] | None = None,
    ):
        self.uri, self.info = uri, read_info(uri, table)
        self._table, self._model, self._processor = table, model, processor  # the table is for writes
        self._versions = IndexVersions(self.uri)
        if model is not None:
            self._refuse_other_model(model, processor)

    @classmethod
    def create(
        cls,
        uri: str | Path,
        model: nn.Module,
        processor: Callable[..., Mapping[str, Tensor]],
        modality: Modality = "image",
        keep_states: bool = True,
    ) -> SpeechImageIndex:
        """An empty index, or the one that is there if it is of the same model and kind.

        Args:
            uri: a folder, or any address that LanceDB opens, like `s3://bucket/folder` or `db://name`.
            modality: of the gallery: "image" to be searched by speech, "speech" to be searched by pictures.
            keep_states: store token states in float16, so that re-ranking reads them instead of the files. A picture
                takes tokens x width x 2 bytes.

        Raises:
            IndexProblem: the folder holds something else, or an index of another model or kind.
        """
        info = IndexInfo(
            modality=modality,
            projection_dim=model.config.projection_dim,
            width=model.config.multimodal_config.hidden_size,
            model_name=model_name(model),
            model_digest=model_identity(model, processor),
            keep_states=keep_states,
        )
        index = cls(str(uri), create_table(str(uri), info), model, processor)
        if index.info.modality != modality:
            raise IndexProblem(
                f"{uri} is an index of {PLURAL[index.info.modality]}, not of {PLURAL[modality]}. Choose another "
                "folder."
            )
        if index.info.keep_states != keep_states:
            kept = "keeps" if index.info.keep_states else "does not keep"
            raise IndexProblem(f"{uri} {kept} token states. Update it the same way, or choose another folder.")
        return index

    @classmethod
    def open(
        cls,
        uri: str | Path,
        model: nn.Module | None = None,
        processor: Callable[..., Mapping[str, Tensor]] | None = None,
    ) -> SpeechImageIndex:
        """An index that exists. Without a model it can only be looked at.

        Raises:
            IndexProblem: there is none, it is damaged, of another format, or was made with another model.
        """
        return cls(str(uri), open_table(str(uri)), model, processor)

    def __len__(self) -> int:
        return self._versions.latest().count_rows()

    def rows(
        self, columns: Sequence[str] = ("id", "name", "path"), where: str | None = None
    ) -> Iterator[pa.RecordBatch]:
        """These columns of all rows, or of those that a SQL filter selects, batch by batch."""
        yield from self._versions.rows(columns, where)

    def add(
        self, items: Iterable[Item], *, batch_size: int = 64, num_workers: int = 2, progress: bool = False
    ) -> UpdateReport:
        """Index items that are new or changed; nothing is deleted. The options are those of :meth:`update_from`."""
        return self._update().add(items, batch_size=batch_size, num_workers=num_workers, progress=progress)

    def update_from(
        self, source: Source, *, batch_size: int = 64, num_workers: int = 2, progress: bool = False
    ) -> UpdateReport:
        """Make the index agree with a source: encode what is new or changed, delete what is gone from it.

        Rows of other sources are left alone. Where the model was loaded from is stored, for it may have moved. Memory
        does not grow with the gallery, except by 17 bytes a row.

        Args:
            batch_size: pictures or recordings encoded at a time.
            num_workers: threads that decode while the model computes.
            progress: show a bar with the time left.

        Raises:
            IndexProblem: the source has another modality, or the index is damaged.
            ValueError: the source cannot be read at all, or the model gives values that are not finite.
        """
        if source.modality != self.info.modality:
            raise IndexProblem(
                f"{self.uri} is an index of {PLURAL[self.info.modality]}, and {source.name} gives "
                f"{PLURAL[source.modality]}. Use another index for them."
            )
        return self._update().agree(source, batch_size=batch_size, num_workers=num_workers, progress=progress)

    def sources(self) -> list[HeldSource]:
        """What the index holds of which source, by name, and whether the source is still there."""
        return self._versions.read(lambda table: held_sources(read_rows(table, ("source", "id", "path"))))

    def remove(self, source: str) -> int:
        """Delete all rows of a source, and say how many they were. It needs no model.

        Searches that have begun may still read the rows, so their space on the disk returns with the next update that
        begins at least five minutes later; less than a tenth of a data file stays in it until more is deleted.

        Args:
            source: the name of one of :meth:`sources`.

        Raises:
            ValueError: the index holds nothing of it.
        """
        with writing(self.uri), damage_explained(self.uri):
            self._table.checkout_latest()
            deleted = self._table.delete(one_of("source", [source])).num_deleted_rows
        if not deleted:
            names = ", ".join(held.name for held in self.sources()) or "none, for it is empty"
            raise ValueError(f"{self.uri} holds nothing of {source}. Its sources: {names}.")
        compact(self.uri, self._table)
        return deleted

    def check(self) -> list[str]:
        """Read every row and compare it with its checksum.

        Returns:
            The ids of rows whose embedding, preview or token states are not what was written.

        Raises:
            IndexProblem: a data file cannot be read at all.
        """
        columns = [name for name in _CHECKED if name in self.info.schema().names]
        return self._versions.read(
            lambda table: damaged_rows(table.search().select(columns).to_batches(_CHECKED_AT_A_TIME))
        )

    def search(
        self,
        queries: Sequence[Any],
        top_k: int = 10,
        rerank_top_k: int = 32,
        score_rule: ScoreRule = "sim",
        where: str | None = None,
        *,
        query_names: Sequence[str] | None = None,
    ) -> list[list[Found]]:
        """Find for each query what fits it, the best first.

        Args:
            queries: recordings if the gallery is pictures, pictures if it is recordings; whatever the processor reads.
            top_k: results for each query; a smaller gallery is returned whole.
            rerank_top_k: the most similar candidates that the matching score re-orders; 0 for none.
            score_rule: what re-orders them, see :func:`..evaluation.reranking.rerank`.
            where: SQL filter on the columns, for instance `"language = 'en'"`. It applies before the search.
            query_names: what errors call the queries; without it their places.

        Raises:
            IndexProblem: the index is damaged, or states are needed that can be neither read nor recomputed.
            ValueError: no query, one that cannot be read, or an option out of range.
        """
        if isinstance(queries, str | bytes | Path | Mapping):
            raise ValueError("search takes a list of queries: search([query])")
        check_options(top_k, rerank_top_k, score_rule)
        model, processor = self._needed_model()
        if where is not None:
            check_filter(self._versions.latest(), where)
        options = {"top_k": top_k, "rerank_top_k": rerank_top_k, "score_rule": score_rule, "where": where}
        results = []
        for start in range(0, max(1, len(queries)), _QUERIES_AT_A_TIME):
            some = slice(start, start + _QUERIES_AT_A_TIME)
            names = query_names[some] if query_names else None
            encoded = encode_queries(
                model, processor, self.info.modality, queries[some], names, keep_states=rerank_top_k > 0
            )
            arguments = {"info": self.info, "model": model, "processor": processor, "queries": encoded}
            results += self._versions.read(partial(search_table, **arguments, **options))
        return results

    def explain(self, query: Any, item_id: str) -> Explanation:
        """Why a query and an item match, or do not: which stretch of the speech made which part of the picture count.

        Args:
            query: as for :meth:`search`; whether it finds the item does not matter.
            item_id: the `id` of a result or of a row.

        Returns:
            What :func:`.explanation_picture.draw_explanation` draws. The item is shown as its file has it; where that
            is gone or has changed, as its preview.

        Raises:
            IndexProblem: the index is damaged.
            ValueError: there is no such item, the query cannot be read, or the model cannot be explained.
        """
        model, processor = self._needed_model()
        return self._versions.read(lambda table: explain_row(table, self.info, model, processor, query, item_id))

    def build_ann(self) -> None:
        """Build an approximate index over the embeddings, for galleries of hundreds of thousands.

        Without one, searches are exact and read every embedding. Rows that are written later are found too.

        Raises:
            ValueError: there are too few rows to gain anything.
        """
        with writing(self.uri), damage_explained(self.uri):
            self._table.checkout_latest()
            config = ann_config(self._table.count_rows())
            self._table.create_index("embedding", config=config, replace=True)

    def _update(self) -> Update:
        model, processor = self._needed_model()
        name = model_name(model)
        if model.config._name_or_path and name != self.info.model_name:
            store_model_name(self.uri, self._table, name)
            self.info = replace(self.info, model_name=name)
        return Update(self.uri, self._table, self.info, model, processor)

    def _needed_model(self) -> tuple[nn.Module, Callable[..., Mapping[str, Tensor]]]:
        if self._model is None or self._processor is None:
            raise ValueError(
                f"{self.uri} was opened without a model. Open it with the model and processor of "
                f"{self.info.model_name}."
            )
        return self._model, self._processor

    def _refuse_other_model(self, model: nn.Module, processor: Callable | None) -> None:
        if processor is None:
            raise ValueError("A model needs its processor: pass processor=... too.")
        if model_identity(model, processor) != self.info.model_digest:
            made_with = Path(self.info.model_name)
            gone = ", which is not there any more" if made_with.is_absolute() and not made_with.is_dir() else ""
            raise IndexProblem(
                f"{self.uri} was made with the model {made_with}{gone}, and {model_name(model)} differs from it "
                "in weights, type, configuration or preprocessing, so their embeddings cannot be compared. Use that "
                "model, or build another index."
            )
