"""What a stranger who speaks to the page without a browser gets."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from .conftest import Page
from .hostile_files import long_silence, recording
from .served_page import MAX_MEGABYTES, Visitor


@pytest.fixture
def visitor(page: Page) -> Visitor:
    return Visitor(page.address, uuid4().hex)


@pytest.fixture
def tempting_server():
    """A server that only this machine can reach, and the addresses that were asked of it."""
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret.wav", asked
        server.shutdown()


def test_no_file_but_an_upload_is_served(page: Page, visitor: Visitor):
    uploaded = visitor.upload("mine.wav", recording(0.3))["path"]
    assert visitor.http.get(f"/gradio_api/file={uploaded}").content == recording(0.3)
    folder = Path(uploaded).parent.parent
    in_index = next(path for path in (page.folder / "index").rglob("*") if path.is_file())
    tries = [
        "/etc/passwd",
        in_index,
        page.folder / "pictures" / "0.png",
        f"{folder}/../../etc/passwd",
        "pyproject.toml",
    ]
    for path in tries:
        assert visitor.http.get(f"/gradio_api/file={path}").status_code in (403, 404), path
        assert visitor.http.get(f"/gradio_api/file/{path}").status_code in (403, 404), path


@pytest.mark.parametrize(
    "path",
    [
        "info",
        "openapi.json",
        "runs",
        "deep_link",
        "proxy=https://x.hf.space/",
        "call/search/1",
        "login_check",
        "token",
    ],
)
def test_what_the_page_does_not_need_is_not_there(path: str, visitor: Visitor):
    assert visitor.http.get(f"/gradio_api/{path}").status_code == 404


def test_the_queue_cannot_be_passed_by(visitor: Visitor):
    for path in ("/gradio_api/run/search", "/gradio_api/api/search", "/gradio_api/call/search", "/login"):
        assert visitor.http.post(path, json={"data": [None]}).status_code == 404
    for path in ("/docs", "/redoc", "/openapi.json", "/monitoring", "/monitoring/summary"):
        assert visitor.http.get(path).status_code == 404


def test_paths_and_addresses_in_place_of_an_upload_are_refused(visitor: Visitor, tempting_server):
    address, asked = tempting_server
    search = visitor.event(3)
    for path in ("/etc/passwd", "pyproject.toml", address, "file:///etc/passwd", "\0", ["/etc/passwd"]):
        file = {"path": path, "url": address, "meta": {"_type": "gradio.FileData"}}
        for data in ([file], [{"value": [file]}]):
            response = visitor.join(search, data)
            assert response.status_code == 403 and "uploaded here" in response.text, path
    assert visitor.http.get(f"/gradio_api/file={address}").status_code == 403
    assert asked == []


def test_requests_without_a_file_are_answered(visitor: Visitor):
    search = visitor.event(3)
    visitor.join(search, [None]).raise_for_status()
    status, results, _ = visitor.answer()
    assert "Record or upload what you want to see first." in status and results == ""
    for data in ([{"url": "data:,x"}], [[1]], ["x"], []):
        visitor.join(search, data).raise_for_status()
        assert visitor.answer() == [None]  # Gradio's own refusal: its sentence is in the log only
    assert visitor.http.post("/gradio_api/queue/join", content=b"{").status_code == 400
    assert visitor.http.post("/gradio_api/queue/join", content=b"[" * 60_000).status_code == 400
    assert visitor.http.post("/gradio_api/queue/join", content=b" " * 70_000).status_code == 413


def test_a_name_that_climbs_out_is_harmless(visitor: Visitor):
    file = visitor.upload("../../etc/passwd", recording(0.3))
    folder = Path(visitor.upload("other.wav", recording(0.4))["path"]).parent.parent
    assert Path(file["path"]).resolve().parent.parent == folder and Path(file["path"]).name == "passwd"
    status, results, _ = visitor.search("../../etc/passwd", recording(0.3))
    assert "The best 6 of 8" in status and "passwd" not in results


def test_uploads_beyond_the_limit_are_cut_off(visitor: Visitor):
    too_large = bytes(round((MAX_MEGABYTES + 0.1) * 1e6))
    assert visitor.http.post("/gradio_api/upload", files={"files": ("large.wav", too_large)}).status_code == 413
    many = [("files", (f"{number}.wav", bytes(400_000))) for number in range(3)]
    assert visitor.http.post("/gradio_api/upload", files=many).status_code == 413
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    response = visitor.http.post(
        "/gradio_api/upload",
        content=iter([head, too_large, b"\r\n--x--\r\n"]),  # of a length that is not declared
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert response.status_code == 413


def test_an_upload_that_is_gone_is_asked_for_again(visitor: Visitor):
    file = visitor.upload("old.wav", recording(0.35))
    Path(file["path"]).unlink()
    visitor.join(visitor.event(3), [file]).raise_for_status()
    assert "Please send it again" in visitor.answer()[0]


def test_fifty_visitors_at_once_are_all_answered(page: Page):
    def visit(number: int) -> str:
        visitor = Visitor(page.address, uuid4().hex)
        joined = visitor.join(search, [file])
        if joined.status_code == 503:
            return "busy"
        joined.raise_for_status()
        return "results" if "The best 6 of 8" in visitor.answer()[0] else "lost"

    first = Visitor(page.address, uuid4().hex)
    search, file = first.event(3), first.upload("query.wav", recording(0.5))
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(visit, range(50)))
    assert len(answers) == 50 and set(answers) <= {"busy", "results"} and "results" in answers
    assert "The best 6 of 8" in first.search("after.wav", recording(0.5))[0]


def test_who_reads_no_answer_cannot_go_on_asking(visitor: Visitor):
    search = visitor.event(3)
    accepted = 0
    while "Read the answers" not in (joined := visitor.join(search, [None])).text:
        accepted += joined.status_code == 200
    assert joined.status_code == 503
    read = [message["output"]["data"] for message in visitor.messages() if message["msg"] == "process_completed"]
    assert len(read) == accepted and all("Record or upload" in data[0] for data in read)
    visitor.join(search, [None]).raise_for_status()


def test_answers_that_nobody_fetches_make_room_for_others(page: Page, visitor: Visitor):
    strangers = [Visitor(page.address, uuid4().hex) for _ in range(36)]
    search = visitor.event(3)
    for stranger in strangers:
        while (joined := stranger.join(search, [None])).status_code == 503:  # the queue is full for a moment
            pass
        joined.raise_for_status()
    for _ in range(2):  # all questions before the first of these are answered when the second comes
        assert "The best 6 of 8" in visitor.search("query.wav", recording(0.5))[0]
    forgotten = next(strangers[0].messages())
    assert forgotten["msg"] == "unexpected_error" and forgotten["session_not_found"]
    assert "Record or upload" in strangers[-1].answer()[0]


def test_visitors_do_not_see_what_others_asked(page: Page, visitor: Visitor):
    visitor.search("mine.wav", recording(0.5))
    explain = visitor.event(2)
    visitor.join(explain, [None], {"row": 0})
    assert "is explained" in visitor.answer()[0]
    stranger = Visitor(page.address, uuid4().hex)
    for row in (0, 99, -1, "0", None, True):
        stranger.join(explain, [None], {"row": row})
        assert "Please search again" in stranger.answer()[0]
    forged = [["/etc/passwd", [{"id": "1"}]]]
    stranger.join(explain, forged, {"row": 0})
    assert "Please search again" in stranger.answer()[0]


def test_answers_name_no_path_of_this_machine(page: Page, visitor: Visitor):
    visible = str(visitor.search("query.wav", recording(0.5))[:2]) + visitor.http.get("/").text
    assert str(page.folder) not in visible
    assert "lasts 120 minutes" in visitor.search("long.flac", long_silence())[0]


def test_a_browser_is_told_to_stay_with_this_host(page: Page, visitor: Visitor):
    response = visitor.http.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert response.text.count("<script") == response.text.count(f'<script nonce="{nonce}"') > 0
    assert nonce not in visitor.http.get("/").text
    assert "og:image" not in response.text
    config = httpx.get(f"{page.address}/config", trust_env=False).json()
    assert config["footer_links"] == [] and not config["analytics_enabled"]
