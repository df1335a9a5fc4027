from __future__ import annotations

from collections.abc import Iterator

import pytest

from .hub_server import HubServer


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """An empty Hub on loopback."""
    server = HubServer()
    yield server
    server.stop()
