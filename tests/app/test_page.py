"""The page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, expect, sync_playwright
from playwright.sync_api import Page as Tab

from ..retrieval.tiny_gallery import write_picture, write_recording
from .conftest import Page
from .hostile_files import bomb_png, long_silence, recording
from .served_page import HOSTILE_TEXT, NOTE

PHONE = {"width": 390, "height": 844}
MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *MICROPHONE])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, page: Page) -> Iterator[Callable[..., Tab]]:
    """Opens the page; at the end no request may have gone elsewhere, and no script may have been blocked."""
    contexts: list[BrowserContext] = []
    elsewhere, complaints = [], []

    def note_request(request) -> None:
        if not request.url.startswith((page.address, "data:", "blob:")):
            elsewhere.append(request.url)

    def note_complaint(message) -> None:
        if "Content Security Policy" in message.text:
            complaints.append(message.text)

    def open_page(**options: object) -> Tab:
        context = browser.new_context(**options)
        contexts.append(context)
        context.on("request", note_request)
        tab = context.new_page()
        tab.on("console", note_complaint)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(page.address)
        expect(shown_button(tab, "Search")).to_be_visible(timeout=20_000)
        return tab

    yield open_page
    for context in contexts:
        assert [tab.evaluate("typeof window.hacked") for tab in context.pages] == [
            "undefined"
        ]  # by a text of the index
        context.close()
    assert elsewhere == [] and complaints == []


def shown_button(tab: Tab, name: str) -> Locator:
    return tab.get_by_role("button", name=name, exact=True).and_(tab.locator(":visible"))


def status(tab: Tab) -> Locator:
    return tab.locator(".block.status:visible")


def speak(tab: Tab, path: Path) -> None:
    """Send a recording, as the first or instead of the one before."""
    for name in ("Clear", "Upload file"):
        if shown_button(tab, name).count():
            shown_button(tab, name).first.click()
    tab.locator("input[type=file]").first.set_input_files(path)


def show(tab: Tab, path: Path) -> None:
    tab.get_by_role("tab", name="Picture → descriptions").last.click()
    expect(shown_button(tab, "Search")).to_be_visible()
    tab.locator("input[type=file]").last.set_input_files(path)


def overflow(tab: Tab) -> int:
    return tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_speech_finds_the_pictures_that_the_index_finds(visit, page: Page, tmp_path: Path):
    query = write_recording(tmp_path / "query.wav", seed=5)
    (found,) = page.pictures.search([query], top_k=6, rerank_top_k=4)
    tab = visit()
    assert "8 pictures" in status(tab).inner_text() and tab.locator(".note").inner_text() == NOTE
    speak(tab, query)
    expect(tab.locator(".card")).to_have_count(6, timeout=30_000)  # the first search of all is slow
    assert [image.get_attribute("alt") for image in tab.locator(".card img").all()] == [f.text for f in found]
    rows = [row.locator("td").all_inner_texts() for row in tab.locator("tbody tr").all()]
    assert [(row[0], row[1], row[5]) for row in rows] == [
        (str(rank), str(f.coarse_rank), f.name) for rank, f in enumerate(found, start=1)
    ]
    assert tab.evaluate("[...document.querySelectorAll('.card img')].every(image => image.naturalWidth > 0)")
    assert "The best 6 of 8" in status(tab).inner_text() and "higher fits better" in status(tab).inner_text()
    tab.screenshot(path=tmp_path / "speech.png", full_page=True)
    print(f"Look at {tmp_path / 'speech.png'}")


def test_a_recording_of_the_microphone_is_searched_with(visit):
    tab = visit(permissions=["microphone"])
    shown_button(tab, "Record").click()
    expect(shown_button(tab, "Stop")).to_be_visible()
    tab.wait_for_timeout(1000)
    shown_button(tab, "Stop").click()
    expect(tab.locator(".card")).to_have_count(6, timeout=15_000)


def test_pictures_find_descriptions_that_play(visit, page: Page, tmp_path: Path):
    query = write_picture(tmp_path / "query.png", seed=0)
    (found,) = page.recordings.search([query], top_k=6, rerank_top_k=4)
    tab = visit()
    show(tab, query)
    expect(tab.locator(".description")).to_have_count(5)
    assert tab.locator(".description .text").all_inner_texts() == [f.text for f in found]
    assert HOSTILE_TEXT in [f.text for f in found]  # shown as it is, not run
    assert found[0].speaker in tab.locator(".description").first.inner_text()
    durations = "[...document.querySelectorAll('.description audio')].map(player => player.duration)"
    tab.wait_for_function(f"{durations}.every(duration => duration > 0)")
    lengths = tab.evaluate(durations)
    player = tab.locator(".description audio").nth(lengths.index(min(lengths)))  # which fills no usual frame of FLAC
    assert min(lengths) < 0.25
    player.evaluate("player => player.play()")
    tab.wait_for_function("player => player.currentTime > 0", arg=player.element_handle())
    tab.screenshot(path=tmp_path / "picture.png", full_page=True)
    print(f"Look at {tmp_path / 'picture.png'}")


def test_the_keyboard_is_enough(visit, tmp_path: Path):
    tab = visit()
    for _ in range(15):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.innerText") == "Search":
            break
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("alert")).to_have_text("Record or upload what you want to see first.")
    speak(tab, write_recording(tmp_path / "query.wav", seed=5))
    expect(tab.locator(".card")).to_have_count(6)
    shown_button(tab, "Search").focus()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.dataset.row") == "0"
    for _ in range(2):  # the same explanation opens again
        tab.keyboard.press("Enter")
        expect(tab.get_by_role("dialog", name="Why result 1?").get_by_role("img")).to_be_visible()
        tab.keyboard.press("Escape")
        expect(tab.get_by_role("dialog")).to_have_count(0)
        assert tab.evaluate("document.activeElement.dataset.row") == "0"
    assert tab.locator(".card[aria-busy]").count() == 0


def test_a_phone_does_not_scroll_sideways(visit, tmp_path: Path):
    tab = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    assert overflow(tab) == 0
    expect(tab.get_by_role("tab").and_(tab.locator(":visible"))).to_have_count(2)  # none hides in a menu
    speak(tab, write_recording(tmp_path / "query.wav", seed=5))
    expect(tab.locator(".card")).to_have_count(6)
    assert overflow(tab) == 0
    tab.locator(".card").first.tap()
    drawing = tab.get_by_role("dialog").get_by_role("img")
    expect(drawing).to_be_visible()
    shape = drawing.evaluate("image => [image.naturalWidth, image.naturalHeight, image.getBoundingClientRect().width]")
    assert shape[1] > shape[0] and 0.75 * shape[0] < shape[2] <= PHONE["width"], "panels below each other, in full"
    assert overflow(tab) == 0
    tab.screenshot(path=tmp_path / "phone_why.png")
    shown_button(tab, "Close").tap()
    show(tab, write_picture(tmp_path / "query.png", seed=0))
    expect(tab.locator(".description")).to_have_count(5)
    assert overflow(tab) == 0
    tab.screenshot(path=tmp_path / "phone.png")
    print(f"Look at {tmp_path / 'phone.png'}")


def test_hostile_recordings_are_answered_and_the_page_lives_on(visit, tmp_path: Path):
    tab = visit()
    uploads = {
        "letter.wav": (b"dear", "cannot be read as a recording"),
        "empty.wav": (b"", "empty"),
        "night.flac": (long_silence(), "lasts 120 minutes"),
        "muted.wav": (long_silence(1, "WAV"), "There is no sound"),
    }
    for name, (content, message) in uploads.items():
        (tmp_path / name).write_bytes(content)
        speak(tab, tmp_path / name)
        expect(tab.get_by_role("alert").and_(tab.locator(":visible"))).to_contain_text(message)
        assert tab.locator(".card").count() == 0
    (tmp_path / "good.wav").write_bytes(recording(0.5))
    speak(tab, tmp_path / "good.wav")
    expect(tab.locator(".card")).to_have_count(6)


def test_hostile_pictures_are_answered_and_the_page_lives_on(visit, tmp_path: Path):
    tab = visit()
    (tmp_path / "bomb.png").write_bytes(bomb_png())
    (tmp_path / "letter.png").write_bytes(b"dear")
    show(tab, tmp_path / "bomb.png")
    expect(status(tab).get_by_role("alert")).to_contain_text("12000 x 12000 pixels")
    for upload, shown in (
        (tmp_path / "letter.png", status(tab).get_by_text("cannot be read as a picture")),
        (write_picture(tmp_path / "query.png", seed=0), tab.locator(".description").nth(4)),
    ):
        shown_button(tab, "Clear").or_(shown_button(tab, "Remove Image")).first.click()
        tab.locator("input[type=file]").last.set_input_files(upload)
        expect(shown).to_be_visible()


def test_a_busy_page_says_so(visit, tmp_path: Path):
    tab = visit()
    full = {"detail": "Queue is full. Max size is 16 and size is 16."}
    tab.route("**/queue/join*", lambda route: route.fulfill(status=503, json=full))
    speak(tab, write_recording(tmp_path / "query.wav", seed=5))
    expect(tab.get_by_text("busy")).to_be_visible()


def test_a_large_file_is_refused_before_it_is_sent(visit, tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    tab = visit()
    show(tab, tmp_path / "large.png")
    expect(tab.get_by_text("maximum allowed size")).to_be_visible()
