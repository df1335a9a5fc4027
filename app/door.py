"""Stands before Gradio: lets in what the page needs, of the size it needs, and says what a browser may load.

Gradio serves more than this page: an API that passes by the queue, a proxy that fetches addresses, pages of its own.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .unread_answers import has_unread_answers, make_room
from .upload_folder import UploadFolder

_PAGE = ("", "config", "favicon.ico", "manifest.json", "robots.txt", "theme.css")
_EVENTS = ("queue/data", "startup-events", "upload_progress")
_GET = frozenset((*(f"/{name}" for name in _PAGE), *(f"/gradio_api/{name}" for name in _EVENTS)))
_GET_UNDER = ("/assets/", "/static/", "/gradio_api/heartbeat/")
_FILE = "/gradio_api/file="
_POST = frozenset(f"/gradio_api/{name}" for name in ("upload", "queue/join", "cancel", "reset"))
_MAX_REQUEST = 65_536  # bytes of a request that is no upload: it names an uploaded file and a session
_MULTIPART = 16_384  # bytes around the file in an upload
_SECONDS_TO_SEND = 120  # for the whole of a request
_FOREIGN_META = re.compile(rb"<meta\s+(?:property|name)=\"(?:og|twitter):[^>]*>")


class _Refused(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Door:
    """ASGI middleware around Gradio.

    Args:
        uploads: the only folder whose files are named in requests or served.
        max_bytes: of one upload.
    """

    def __init__(self, app: ASGIApp, uploads: UploadFolder, max_bytes: int):
        self._app, self._uploads, self._max_bytes = app, uploads, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        nonce = secrets.token_urlsafe(16)
        response = _Response(send, nonce)
        try:
            receive = await self._admitted(scope, receive)
            page = scope["path"] == "/" and scope["method"] == "GET"
            await self._app(scope, receive, response.page if page else response.other)
        except ClientDisconnect:
            return
        except _Refused as refused:
            if not response.started:
                await JSONResponse({"detail": refused.message}, refused.status)(scope, receive, response.other)

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        method, path = scope["method"], scope["path"].rstrip("/") or "/"
        if method == "POST" and path in _POST:
            return await (self._admitted_upload if path.endswith("/upload") else self._admitted_event)(scope, receive)
        if method not in ("GET", "HEAD") or ".." in path.split("/"):
            raise _Refused(404, "Not found")
        if path.startswith(_FILE):
            if not self._uploads.holds(path.removeprefix(_FILE)):
                raise _Refused(403, "Not allowed")
        elif path not in _GET and not path.startswith(_GET_UNDER):
            raise _Refused(404, "Not found")
        return receive

    async def _admitted_upload(self, _: Scope, receive: Receive) -> Receive:
        limited = _limited(receive, self._max_bytes + _MULTIPART)
        full = _Refused(503, "Too many files are here at the moment. Please try again in some minutes.")
        if not self._uploads.begin():
            raise full

        async def counted() -> Message:
            message = await limited()
            if not self._uploads.take(len(message.get("body", b""))):
                raise full
            return message

        return counted

    async def _admitted_event(self, scope: Scope, receive: Receive) -> Receive:
        body = await _whole(_limited(receive, _MAX_REQUEST))
        try:
            asked = json.loads(body)
            named = list(_paths(asked))
        except (ValueError, RecursionError):
            raise _Refused(400, "The request is not JSON.") from None
        if not all(self._uploads.holds(path) for path in named):
            raise _Refused(403, "Only files that were uploaded here can be used.")
        session = asked.get("session_hash") if isinstance(asked, dict) else None
        if isinstance(session, str):
            queue = scope["app"].get_blocks()._queue
            if has_unread_answers(queue, session):
                raise _Refused(503, "Read the answers to what you asked before.")
            make_room(queue, session)
        return _replayed(body, receive)


class _Response:
    """Adds headers to every response, and to the scripts of the page the nonce without which they would not run."""

    def __init__(self, send: Send, nonce: str):
        self._send, self._nonce = send, nonce
        self._start: Message | None = None
        self._body = b""
        self.started = False

    async def other(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message.get("headers", ()), *_headers(self._nonce)]
        await self._send(message)

    async def page(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        html = _FOREIGN_META.sub(b"", self._body)
        html = html.replace(b"<script", f'<script nonce="{self._nonce}"'.encode())
        kept = [header for header in self._start["headers"] if header[0].lower() != b"content-length"]
        await self.other({**self._start, "headers": [*kept, (b"content-length", str(len(html)).encode())]})
        await self._send({"type": "http.response.body", "body": html})


def _headers(nonce: str) -> list[tuple[bytes, bytes]]:
    # unsafe-eval, for gr.HTML makes functions of its template and of js_on_load: without it the page shows nothing
    # and answers no click (tried in Chromium). Scripts in attributes and foreign ones are still blocked.
    policy = (
        f"default-src 'self'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
        "form-action 'self'"
    )
    headers = {
        "content-security-policy": policy,
        "permissions-policy": "microphone=(self), camera=(self), geolocation=()",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _limited(receive: Receive, max_bytes: int) -> Receive:
    """Refuses a body that is too large, or too slow to come, as soon as it is."""
    deadline = asyncio.get_running_loop().time() + _SECONDS_TO_SEND
    size = 0

    async def limited() -> Message:
        nonlocal size
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise _Refused(408, "The request took too long to arrive.") from None
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise _Refused(413, f"At most {max_bytes / 1e6:.1f} MB are taken.")
        return message

    return limited


async def _whole(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _paths(value: Any) -> Iterator[Any]:
    """Whatever a request names as the path of a file."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _paths(part)
