"""Token states of the candidates that are re-ranked: as they are stored, or computed again from their files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from ..evaluation import PackedStates
from ..evaluation.embedding import read_batch
from ..modeling.token_states import join
from .encoding import encode_inputs
from .index_table import IndexInfo, IndexProblem
from .sources import is_unchanged

_RECOMPUTED_AT_A_TIME = 32
_log = logging.getLogger(__name__)


def candidate_states(
    table: lancedb.table.Table,
    info: IndexInfo,
    model: nn.Module,
    processor: Callable[..., Mapping[str, Tensor]],
    rows: list[int],
) -> tuple[dict[int, int], PackedStates | None]:
    """Token states of rows of the table, and the place of each row among them.

    Rows without stored states whose files are gone, changed or unreadable have no place: what a file holds now is not
    what was found. None of any row: None.

    Raises:
        IndexProblem: states are neither stored nor can ever be computed from a file.
    """
    if info.keep_states:
        taken = table.take_row_ids(rows).select(["token_count", "states"]).with_row_id().to_arrow()
        return _places(taken["_rowid"].to_pylist()), _stored_states(taken, info)
    taken = table.take_row_ids(rows).select(["id", "path", "fingerprint"]).with_row_id().to_arrow()
    return _recomputed(taken, info, model, processor)


def _places(rows: list[int]) -> dict[int, int]:
    return {row: place for place, row in enumerate(rows)}


def _stored_states(taken: pa.Table, info: IndexInfo) -> PackedStates:
    values = bytearray().join(taken["states"].to_pylist())
    tokens = torch.from_numpy(np.frombuffer(values, dtype=np.float16)).view(-1, info.width)
    return PackedStates.from_tokens(tokens, torch.from_numpy(taken["token_count"].to_numpy().astype(np.int64)))


def _recomputed(
    taken: pa.Table, info: IndexInfo, model: nn.Module, processor: Callable[..., Mapping[str, Tensor]]
) -> tuple[dict[int, int], PackedStates | None]:
    candidates = taken.to_pylist()
    for candidate in candidates:
        if candidate["path"] is None:
            raise IndexProblem(
                f"Re-ranking needs token states, which this index does not keep, and {candidate['id']} is embedded in "
                "its corpus. Index again with states, or set rerank_top_k=0."
            )
    unchanged = [
        candidate for candidate in candidates if is_unchanged(Path(candidate["path"]), candidate["fingerprint"])
    ]
    rows, tokens, lengths = [], [], []
    for start in range(0, len(unchanged), _RECOMPUTED_AT_A_TIME):
        for some, inputs in _inputs(processor, info, unchanged[start : start + _RECOMPUTED_AT_A_TIME]):
            _, states = encode_inputs(model, inputs, info.modality)
            rows += [candidate["_rowid"] for candidate in some]
            tokens.append(states.tokens)
            lengths.append(states.lengths)
    place_of = _places(rows)
    _warn([candidate["id"] for candidate in candidates if candidate["_rowid"] not in place_of])
    return place_of, PackedStates.from_tokens(join(tokens), join(lengths)) if rows else None


def _inputs(
    processor: Callable[..., Mapping[str, Tensor]], info: IndexInfo, candidates: list[dict]
) -> list[tuple[list[dict], Mapping[str, Tensor]]]:
    """What the processor gives of these files, all together; if it cannot read one, of each that it can."""
    argument = "images" if info.modality == "image" else "audio"
    try:
        files = [(candidate["id"], candidate["path"]) for candidate in candidates]
        return [(candidates, read_batch(processor, argument, files))]
    except (ValueError, OSError):
        if len(candidates) == 1:
            return []
        return [group for candidate in candidates for group in _inputs(processor, info, [candidate])]


def _warn(left_out: list[str]) -> None:
    if left_out:
        _log.warning(
            "%d candidates are not re-ranked: this index keeps no token states, and their files are gone, changed or "
            "unreadable (%s first). Update the index.",
            len(left_out),
            left_out[0],
        )
