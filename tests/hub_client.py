"""Run a script against a Hub on loopback, in a fresh process."""

from __future__ import annotations

import ast
import os
import textwrap
from pathlib import Path
from typing import Any

from .fresh_process import run_script
from .hub_server import HubServer

ANYONE = "hf_anyone"

# The Hub's clients also look elsewhere, and say nothing if that fails.
LOOPBACK_ONLY = """
import os, socket
look_up = socket.getaddrinfo
def look_up_loopback(host, *args, **options):
    if host != "127.0.0.1":
        os.write(2, f"{host} was looked up".encode())
        os._exit(1)
    return look_up(host, *args, **options)
socket.getaddrinfo = look_up_loopback
"""


def run(hub: HubServer, home: Path, script: str, token: str | None = ANYONE) -> Any:
    """What a script prints at last, in a process that knows nothing but the Hub and what is in `home`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "no_proxy": "127.0.0.1",
    }
    if token:
        own["HF_TOKEN"] = token
    done = run_script(LOOPBACK_ONLY + textwrap.dedent(script), cwd=home, env=own)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.splitlines()[-1])
