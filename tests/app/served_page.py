"""A page of two tiny indexes in a process of its own, and what a browser says to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from speech_image_retrieval.retrieval.sources import Item

from ..retrieval.tiny_gallery import tiny_model, tiny_processor, write_picture, write_recording

HOSTILE_TEXT = (
    '<script>window.hacked = 1</script><img src="/x" onerror="window.hacked = 2"> ${window.hacked = 3} {{value}}'
)
MAX_MEGABYTES = 1
NOTE = "Speak <b>English</b>."


def build_index(folder: Path, uri: Path, modality: str, count: int) -> SpeechImageIndex:
    """An index whose second row has a hostile text, and whose names and texts are known."""
    write, suffix = (write_picture, ".png") if modality == "image" else (write_recording, ".wav")
    index = SpeechImageIndex.create(uri, tiny_model(), tiny_processor(), modality)
    items = []
    for number in range(count):
        path = write(folder / f"{number}{suffix}", seed=number)
        text = HOSTILE_TEXT if number == 1 else f"text {number}"
        known = {"text": text, "speaker": f"speaker {number}", "language": "en"}
        items.append(Item(str(path), "tests", path.name, str(path), "1", 1, str(path), **known))
    index.add(items)
    return index


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def served(*arguments: object, temporary: Path) -> Iterator[str]:
    """The address of `sir app` with these arguments, on a free port of this machine, and its temporary files here."""
    port = free_port()
    command = [sys.executable, "-m", "speech_image_retrieval.cli", "app", *map(str, arguments), "--port", str(port)]
    environment = {**os.environ, "NO_PROXY": "*", "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            said = process.stdout.readline()
            assert said.startswith("Serving at http://127.0.0.1:"), said
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=30)


class Visitor:
    """Speaks to the page as its own script in a browser does."""

    def __init__(self, address: str, session: str):
        # A connection that is kept may be closed by the page just when it is used again.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=address, timeout=60, trust_env=False, limits=limits)
        self.session = session

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        response = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        response.raise_for_status()
        return {"path": response.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def event(self, results: int) -> int:
        """The number of the first event that has this many results: 3 to search, 2 to explain."""
        dependencies = self.http.get("/config").json()["dependencies"]
        return next(event["id"] for event in dependencies if len(event["outputs"]) == results)

    def join(self, event: int, data: list[Any], event_data: Any = None) -> httpx.Response:
        body = {"fn_index": event, "data": data, "event_data": event_data, "session_hash": self.session}
        return self.http.post("/gradio_api/queue/join", json=body)

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the page says of the events that were joined."""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])

    def answer(self) -> list[Any]:
        """What the event that was joined gives."""
        with closing(self.messages()) as messages:
            for message in messages:
                if message["msg"] == "process_completed":
                    return message["output"].get("data") or [message["output"].get("error")]
        raise AssertionError("no answer")

    def search(self, name: str, content: bytes) -> list[Any]:
        joined = self.join(self.event(3), [self.upload(name, content)])
        joined.raise_for_status()
        return self.answer()
