"""The Space in a process of its own and in a real browser."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from playwright.sync_api import Page, TimeoutError, expect, sync_playwright
from speech_image_retrieval import SpeechImageRetrievalPipeline
from transformers import pipeline

from ..hub_server import TOKEN, HubServer
from .conftest import HUB_CARDS, Media, Published

SPACE = HUB_CARDS / "space"
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address(published: Published, tmp_path_factory) -> Iterator[str]:
    """The Space's files alone in a folder, started as the Hub starts them, over a revision of a private model on the
    Hub, which is not its last."""
    hub = HubServer()
    files = {path.relative_to(published.folder).as_posix(): path for path in published.folder.rglob("*")}
    content = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    revision = hub.publish("model", "org/tiny", content, "private")
    hub.publish("model", "org/tiny", {"README.md": b"nothing any more"})
    folder = tmp_path_factory.mktemp("space")
    shutil.copytree(SPACE, folder, dirs_exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    own |= {
        "MODEL_ID": "org/tiny",
        "MODEL_REVISION": revision,
        "HF_TOKEN": TOKEN,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(folder / "hf"),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "temporary"),
        "NO_PROXY": "*",
    }
    command = [sys.executable, "-I", "-u", "app.py"]
    with subprocess.Popen(command, cwd=folder, env=own, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = next((line for line in process.stdout if "Running on local URL" in line), None)
            assert said, "the Space ended"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=30)
            hub.stop()


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=PHONE)
        page.goto(address)
        expect(page.get_by_role("button", name="Search").first).to_be_visible(timeout=30_000)
        yield page
        browser.close()


def send(page: Page, upload: Path) -> None:
    choose = page.get_by_role("button", name="Upload file").and_(page.locator(":visible"))
    for patience in (1_000, 2_000, 30_000):  # what is clicked before the page's scripts have it is lost
        if choose.count():  # a recording can be spoken, too
            choose.click()
        with suppress(TimeoutError):
            return page.locator("input[type=file]").last.set_input_files(upload, timeout=patience)
    raise AssertionError("no place to upload to appears")


def test_a_visitor_with_a_phone_speaks_and_shows(page: Page, published: Published, media: Media, tmp_path: Path):
    def overflow() -> int:
        return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    found = published.pipe(media.recordings[0], top_k=12)
    send(page, media.recordings[0])
    expect(page.locator(".card")).to_have_count(len(found), timeout=30_000)
    assert [image.get_attribute("alt") for image in page.locator(".card img").all()] == [
        answer["label"] for answer in found
    ]
    page.wait_for_function("[...document.querySelectorAll('.card img')].every(image => image.naturalWidth > 0)")
    assert overflow() == 0
    page.screenshot(path=tmp_path / "pictures.png")

    expect(page.get_by_role("tab").and_(page.locator(":visible"))).to_have_count(2)  # none hides in a menu
    page.get_by_role("tab", name="Show a picture").last.click()
    found = published.pipe(media.pictures[0], top_k=12)
    send(page, media.pictures[0])
    expect(page.locator(".description")).to_have_count(len(found), timeout=30_000)
    assert [player.get_attribute("aria-label") for player in page.locator(".description audio").all()] == [
        answer["label"] for answer in found
    ]
    assert overflow() == 0
    page.screenshot(path=tmp_path / "descriptions.png")
    print(f"Look at {tmp_path}")


def test_a_letter_is_no_recording(page: Page, tmp_path: Path):
    (tmp_path / "letter.wav").write_text("dear")
    send(page, tmp_path / "letter.wav")
    expect(page.get_by_role("alert")).to_contain_text("cannot be read as a recording", timeout=30_000)


@pytest.fixture(scope="module")
def code() -> Iterator[dict[str, Any]]:
    """What `app.py` defines."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the page sets it
        yield runpy.run_path(str(SPACE / "app.py"))


def test_a_damaged_gallery_is_not_taken_for_none(code: dict[str, Any], published: Published, tmp_path: Path):
    folder = Path(shutil.copytree(published.folder, tmp_path / "model"))
    shutil.rmtree(folder / "gallery" / "images")
    (folder / "gallery" / "speech" / "gallery.json").write_text("{")
    pipe = pipeline(model=str(folder), pipeline_class=SpeechImageRetrievalPipeline, device="cpu")
    assert code["_gallery"](pipe, {"model": str(folder)}, "image") == 0
    with pytest.raises(ValueError, match=r"The gallery .*gallery/speech is damaged"):
        code["_gallery"](pipe, {"model": str(folder)}, "speech")


def test_a_model_on_the_hub_must_be_pinned(code: dict[str, Any], monkeypatch, tmp_path: Path):
    chosen_model = code["chosen_model"]
    monkeypatch.delenv("MODEL_ID", raising=False)
    with pytest.raises(SystemExit, match="Set MODEL_ID"):
        chosen_model()
    monkeypatch.setenv("MODEL_ID", "org/sir-base")
    monkeypatch.setenv("MODEL_REVISION", "main")
    with pytest.raises(SystemExit, match="Set MODEL_REVISION"):
        chosen_model()
    monkeypatch.setenv("MODEL_REVISION", "0" * 40)
    assert chosen_model() == {"model": "org/sir-base", "revision": "0" * 40}
    monkeypatch.setenv("MODEL_ID", str(tmp_path))
    assert chosen_model() == {"model": str(tmp_path)}


def test_the_space_names_what_it_was_tried_with():
    metadata = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert (metadata["sdk"], metadata["app_file"]) == ("gradio", "app.py")
    tried = dict(
        line.split("==") for line in (HUB_CARDS.parent / "constraints.txt").read_text().split() if "==" in line
    )
    assert metadata["sdk_version"] == tried["gradio"]
    pinned = re.findall(r"^([\w-]+)==(\S+)$", (SPACE / "requirements.txt").read_text(), flags=re.MULTILINE)
    normal = {name.replace("_", "-").lower(): version for name, version in tried.items()}
    assert len(pinned) == 8
    assert all(normal[name] == version for name, version in pinned)
