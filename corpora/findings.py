"""What a reader came across: counted, with the first few of each kind by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .schema import CorpusError

_LISTED = 5
_KEPT = 1000  # by name, in reports; all that people need who mend a corpus, and a bound for one that is all broken


@dataclass
class Findings:
    """Kind -> how many, and the first thousand by name. A kind is a phrase by itself, such as `missing file`."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str) -> None:
        """Count one more of a kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _KEPT:
            shown.append(example)

    def merge(self, other: Findings) -> None:
        """Add what another part of the same corpus came across."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            shown = self.examples.setdefault(kind, [])
            shown += other.examples[kind][: _KEPT - len(shown)]

    def listed(self, kind: str) -> str:
        """`3 x missing file:` and the first few, a line each."""
        lines = [f"{self.counts[kind]} x {kind}:", *(f"  {example}" for example in self.examples[kind][:_LISTED])]
        if self.counts[kind] > _LISTED:
            lines.append(f"  and {self.counts[kind] - _LISTED} more")
        return "\n".join(lines)

    @property
    def total(self) -> int:
        """How many of all kinds."""
        return sum(self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {kind: {"count": self.counts[kind], "first": self.examples[kind]} for kind in sorted(self.counts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Findings:
        """From what :meth:`to_dict` gave."""
        return cls(
            {kind: found["count"] for kind, found in values.items()},
            {kind: list(found["first"]) for kind, found in values.items()},
        )


def refuse_losses(losses: Findings, captions: int) -> None:
    """
    Args:
        captions: how many there are in all.

    Raises:
        CorpusError: there are losses; it counts them, lists the first of each kind, and says what to do.
    """
    if losses.counts:
        lines = [f"{losses.total} of {captions} spoken captions have no usable picture or recording."]
        lines += map(losses.listed, losses.counts)
        lines.append("Restore these files, or pass --skip-missing to leave the captions out.")
        raise CorpusError("\n".join(lines))
