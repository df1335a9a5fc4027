"""Why something is not published."""

from __future__ import annotations


class PublishError(ValueError):
    """What cannot be published as it is; the message says why and what to do."""
