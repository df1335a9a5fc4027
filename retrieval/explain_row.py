"""Explanation of a query and a row of an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
from torch import nn

from .explain_pair import Processor, explain_pair
from .explanation import Explanation
from .index_table import IndexInfo, one_of
from .sources import is_unchanged


def explain_row(
    table: lancedb.table.Table, info: IndexInfo, model: nn.Module, processor: Processor, query: Any, item_id: str
) -> Explanation:
    """See :meth:`.index.SpeechImageIndex.explain`."""
    row = _row(table, item_id)
    medium, words = _medium(row), row["text"] or row["name"]
    if medium is row["preview"]:
        words += " (from its preview, so scores may differ a little)"
    name = Path(query).name if isinstance(query, str | Path) else ""
    if info.modality == "image":
        return explain_pair(model, processor, query, medium, title=name, caption=words)
    return explain_pair(model, processor, medium, query, title=words, caption=name)


def _row(table: lancedb.table.Table, item_id: str) -> dict[str, Any]:
    columns = ["name", "path", "fingerprint", "text", "preview"]
    rows = table.search().where(one_of("id", [item_id])).select(columns).limit(1).to_list()
    if not rows:
        raise ValueError(
            f"The index holds nothing with the id {item_id!r}. Give the id of a result, Found.id, or of a row, "
            "index.rows(['id']); what came from a folder has its whole path as id."
        )
    return rows[0]


def _medium(row: dict[str, Any]) -> str | bytes:
    """The file, if it is still what was indexed, else its preview."""
    path = row["path"]
    return path if path is not None and is_unchanged(Path(path), row["fingerprint"]) else row["preview"]
