"""Explanation of a query and a row of an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import torch
from torch import nn

from ..processing.media import load_image, load_speech
from .explain_pair import Encoded, Processor, encode_one, explain_encoded
from .explanation import Explanation
from .index_table import IndexInfo
from .sources import file_fingerprint


def explain_row(
    table: lancedb.table.Table, info: IndexInfo, model: nn.Module, processor: Processor, query: Any, item_id: str
) -> Explanation:
    """See :meth:`.index.SpeechImageIndex.explain`."""
    row = _row(table, info, item_id)
    medium = _medium(row)
    words = row["text"] or row["name"]
    name = Path(query).name if isinstance(query, str | Path) else ""
    if info.modality == "image":
        samples, picture = load_speech(query, None, processor.sampling_rate), load_image(medium)
        heard = encode_one(model, processor, samples, "speech")
        seen = _encoded(row, info) or encode_one(model, processor, picture, "image")
        title, caption = name, words
    else:
        samples, picture = load_speech(medium, None, processor.sampling_rate), load_image(query)
        heard = _encoded(row, info) or encode_one(model, processor, samples, "speech")
        seen = encode_one(model, processor, picture, "image")
        title, caption = words, name
    return explain_encoded(model, processor, samples, picture, heard, seen, title=title, caption=caption)


def _row(table: lancedb.table.Table, info: IndexInfo, item_id: str) -> dict[str, Any]:
    columns = ["name", "path", "fingerprint", "text", "preview", "embedding"]
    if info.keep_states:
        columns.append("states")
    literal = item_id.replace("'", "''")
    rows = table.search().where(f"id = '{literal}'").select(columns).limit(1).to_list()
    if not rows:
        raise ValueError(
            f"The index holds nothing with the id {item_id!r}. Give the id of a result, Found.id, or of a row, "
            "index.rows(['id']): for what came from a folder that is the whole path."
        )
    return rows[0]


def _medium(row: dict[str, Any]) -> str | bytes:
    """The file, if it is still what was indexed, else its preview."""
    path = row["path"]
    try:
        unchanged = path is not None and file_fingerprint(Path(path).stat()) == row["fingerprint"]
    except OSError:
        unchanged = False
    return path if unchanged else row["preview"]


def _encoded(row: dict[str, Any], info: IndexInfo) -> Encoded | None:
    """What the index keeps of a row, if it keeps states."""
    if not info.keep_states:
        return None
    states = torch.from_numpy(np.frombuffer(row["states"], dtype=np.float16).copy()).view(-1, info.width)
    return Encoded(torch.tensor(row["embedding"]), states)
