"""Refuses captions without usable media, or says that they are left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from .schema import CorpusError

_LISTED = 5

logger = logging.getLogger(__name__)


def refuse_or_warn(problems: Mapping[str, Sequence[str]], captions: Mapping[str, int], skip_missing: bool) -> None:
    """Raise a CorpusError that counts the problems and lists the first of each part; with `skip_missing`, log it.

    `problems` and `captions` (how many there are in all) are keyed by the part of the corpus, such as a split.
    """
    found = sum(map(len, problems.values()))
    if not found:
        return
    parts = "\n".join(_part(name, problems[name], captions[name]) for name in problems if problems[name])
    counted = f"{found} of {sum(captions.values())} spoken captions"
    if skip_missing:
        logger.warning("Left out %s without a usable picture or recording.\n%s", counted, parts)
        return
    raise CorpusError(
        f"{counted} have no usable picture or recording.\n{parts}\n"
        "Restore these files, or pass --skip-missing to leave the captions out."
    )


def _part(name: str, problems: Sequence[str], captions: int) -> str:
    lines = [f"{name}: {len(problems)} of {captions}", *(f"  {problem}" for problem in problems[:_LISTED])]
    if len(problems) > _LISTED:
        lines.append(f"  and {len(problems) - _LISTED} more")
    return "\n".join(lines)
