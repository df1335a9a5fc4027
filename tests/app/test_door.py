from __future__ import annotations

import asyncio
from pathlib import Path

from speech_image_retrieval.app import upload_folder
from speech_image_retrieval.app.door import Door
from speech_image_retrieval.app.upload_folder import UploadFolder


async def take_all(scope, receive, send) -> None:
    """What Gradio does with an upload, as far as the door sees it."""
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def upload(door: Door, parts: list[bytes]) -> int:
    """The status of the response to an upload that arrives in parts, between which others arrive too."""
    waiting, sent = list(parts), []

    async def receive() -> dict:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message) -> None:
        sent.append(message)

    await door({"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": []}, receive, send)
    return sent[0]["status"]


def test_uploads_at_once_do_not_pass_the_limit_together(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(upload_folder, "_MAX_BYTES", 400_000)

    async def uploads() -> list[int]:
        door = Door(take_all, UploadFolder(tmp_path), max_bytes=1_000_000)
        return await asyncio.gather(*(upload(door, [bytes(50_000)] * count) for count in (2, 6)))

    assert asyncio.run(uploads()) == [200, 503]
