from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import soundfile
from PIL import Image
from speech_image_retrieval.corpora.schema import save_corpus, split_from_rows
from speech_image_retrieval.gallery.media import HEARD_SECONDS, THUMBNAIL
from speech_image_retrieval.gallery.page import QUERIES, RESULTS

from ..html_page import Page
from ..retrieval.tiny_gallery import save_tiny
from ..test_cli import refused, sir

RATE = 16_000
SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>"
SCENES = [
    f"{colour}-{shape}-{relation}-blue-star"
    for colour in ("red", "green", "white")
    for shape in ("circle", "ring")
    for relation in ("above", "to-the-left-of")
]


def rows_of(split: str, names: tuple[str, ...], seconds: float = 0.3):
    for number, name in enumerate(names):
        noise = np.random.default_rng(crc32(f"{split} {name}".encode()))
        picture, speech = io.BytesIO(), io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (400, 200, 3), dtype=np.uint8)).save(picture, "PNG")
        soundfile.write(speech, noise.normal(0, 0.1, round(seconds * RATE)), RATE, format="WAV")
        yield {
            "image": {"bytes": picture.getvalue(), "path": None},
            "audio": {"bytes": speech.getvalue(), "path": None},
            "image_id": name,
            "caption_id": f"{split}/{name}#0",
            "text": SCRIPT if number % 2 else f"a {name.replace('-', ' ')}",
            "speaker": f"voice {number % 3}",
            "language": "en",
        }


def build(folder: Path, test: list[str], seconds: float = 0.3) -> Path:
    splits = {name: split_from_rows(rows_of, split=name, names=tuple(SCENES[:2])) for name in ("train", "validation")}
    save_corpus({**splits, "test": split_from_rows(rows_of, split="test", names=tuple(test), seconds=seconds)}, folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def html(model: Path, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("report")
    corpus, out = build(folder / "spoken_shapes", SCENES), folder / "new" / "report.html"
    result = sir("report", model, "--corpus", corpus, "--out", out, "--rerank-top-k", 4, "--score-rule", "validation")
    assert result.exit_code == 0, result.output
    return out.read_text(encoding="utf-8")


def decoded(uri: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(uri.partition(",")[2]))


def test_the_protocol_and_the_figures_come_first(html):
    text = Page(html).text
    for said in (
        "12 distinct images, 12 spoken captions",
        "Non-standard pool: the literature has no pool of spoken_shapes.",
        "chosen on split validation (2 images, 2 captions)",
        "Checkpoint: ",
        "Re-ranked: top 4 by the matching score",
    ):
        assert said in text
    assert text.index("Figures") < text.index("Spoken queries") < text.index("Image queries")


def test_nothing_is_loaded_and_nothing_runs(html):
    page = Page(html)
    assert not page.all("script") and not page.all("link") and "url(" not in html and "@import" not in html
    assert all(element["src"].startswith("data:") for tag in ("img", "audio") for element in page.all(tag))
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_text_of_the_corpus_stays_text(html):
    page = Page(html)
    assert page.text.count(SCRIPT) > 3
    assert not [image for image in page.all("img") if image["src"] == "x"]
    assert [image for image in page.all("img") if image["alt"] == SCRIPT]


def test_every_kind_of_query_is_there_with_both_lists(html):
    page = Page(html)
    headings = re.findall(r"<h3[^>]*>(.*?)</h3>", html)
    assert headings[:6] == ["Random queries", "Best queries", "Worst queries"] * 2
    assert html.count('<article class="query">') == 6 * QUERIES
    assert html.count("<h4>Coarse</h4>") == html.count("<h4>Re-ranked</h4>") == 6 * QUERIES
    clips_per_card = 2 * RESULTS
    assert len(page.all("audio")) == 3 * QUERIES * (1 + clips_per_card)
    assert len(page.all("img")) == 3 * QUERIES * (1 + clips_per_card) + 3 * QUERIES


def test_pictures_can_be_seen_and_speech_can_be_heard(html):
    page = Page(html)
    assert all("controls" in audio and audio["aria-label"] for audio in page.all("audio"))
    assert all(image["alt"] for image in page.all("img"))
    for audio in page.all("audio")[:3]:
        encoded = decoded(audio["src"])
        assert soundfile.info(encoded).subtype == "OPUS"
        encoded.seek(0)
        heard, rate = soundfile.read(encoded)
        assert len(heard) / rate == pytest.approx(0.3, abs=0.05) and np.abs(heard).max() > 0.01
    with Image.open(decoded(page.all("img")[0]["src"])) as thumbnail:
        assert thumbnail.size == (THUMBNAIL // 2, THUMBNAIL)


def test_what_scrolls_can_be_reached_by_keyboard_and_targets_of_links_exist(html):
    page = Page(html)
    scrolling = [element for element in page.all("div") if element.get("class") == "scroll"]
    assert scrolling and all(element["tabindex"] == "0" and element["aria-label"] for element in scrolling)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)


def test_attributes_of_the_corpus_have_tables_and_matrices(html):
    page = Page(html)
    captions = re.findall(r"<caption>(.*?)</caption>", html)
    assert captions[:3] == ["colour of the upper or left figure", "shape of the upper or left figure", "relation"]
    assert captions[3:7] == ["both figures, in either order", "speaker", "number of words", "relation said"]
    assert "language" not in captions, "all queries have the same one"
    matrix = html[html.index('<table class="matrix">') :]
    cells = re.findall(r"<td[^>]*>([\d·]+)</td>", matrix[: matrix.index("</table>")])
    assert sum(int(cell) for cell in cells if cell != "·") == len(SCENES)
    assert "both figures, in either order" in page.text


def test_long_recordings_are_cut_and_it_says_so(model, tmp_path, monkeypatch):
    monkeypatch.setattr("speech_image_retrieval.gallery.media.HEARD_SECONDS", 0.2)
    corpus = build(tmp_path / "corpus", SCENES[:3], seconds=1.0)
    result = sir("report", model, "--corpus", corpus, "--out", tmp_path / "page.html", "--rerank-top-k", 0)
    assert result.exit_code == 0, result.output
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    heard, rate = soundfile.read(decoded(Page(html).all("audio")[0]["src"]))
    assert len(heard) / rate == pytest.approx(0.2, abs=0.05)
    assert "of 1.0 s" in html and HEARD_SECONDS > 1
    assert "Re-ranked" not in html and "<h4>Coarse</h4>" in html


def test_other_names_than_those_of_pages_are_refused(tmp_path):
    nothing = ["report", tmp_path / "none", "--corpus", tmp_path / "none", "--out"]
    assert "let it end in .html" in refused(*nothing, tmp_path / "page.pdf")
    assert "would flatter" in refused(
        *nothing, tmp_path / "page.html", "--split", "validation", "--score-rule", "validation"
    )
