from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from speech_image_retrieval.corpora import check_page
from speech_image_retrieval.corpora.check import inspect_corpus
from speech_image_retrieval.corpora.check_page import HEARD_SECONDS, SAMPLES, THUMBNAIL, write_page

from ..html_page import Page
from .spoken_rows import RATE, at, corpus_with, dataset, embedded, encoded_samples, picture, row, sound_corpus

SCRIPT = "<script>alert('$x$')</script>"


def html_of(corpus, folder: Path, seed: int = 0, **options) -> str:
    out = folder / "new" / "page.html"
    write_page(inspect_corpus(corpus, num_proc=1, **options), "my/corpus", out, seed)
    return out.read_text(encoding="utf-8")


def decoded(uri: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(uri.partition(",")[2]))


def test_the_verdict_and_its_reasons_come_first(tmp_path):
    sound = Page(html_of(sound_corpus(), tmp_path)).text
    assert "Fit for use" in sound and "What is wrong" not in sound
    broken = Page(html_of(corpus_with(row(1, image=at(tmp_path / "lost.png"))), tmp_path)).text
    assert broken.index("Not fit for use") < broken.index("missing file") < broken.index("Splits")
    assert f"train, train-1#0: {tmp_path / 'lost.png'}: no such file" in broken
    assert "Restore these files" in broken


def test_nothing_is_loaded_and_nothing_runs(tmp_path):
    html = html_of(sound_corpus(), tmp_path)
    assert not re.search(r"https?://|//\w+\.", html)
    page = Page(html)
    assert not page.all("script") and not page.all("link") and "url(" not in html.replace("url(#", "")
    assert all(element["src"].startswith("data:") for tag in ("img", "audio") for element in page.all(tag))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_text_of_the_corpus_stays_text(tmp_path):
    columns = dict.fromkeys(("text", "speaker", "language", "image_id", "caption_id"), SCRIPT)
    corpus = corpus_with(row(1, **columns), row(2, caption_id=SCRIPT, image=at(tmp_path / "<i>lost.png")))
    html = html_of(corpus, tmp_path)
    page = Page(html)
    assert not page.all("script") and not page.all("i")
    assert page.text.count(SCRIPT) >= 5
    plotted = html[html.index("<h3>Languages") :]
    assert "&lt;script&gt;alert('$x$')" in plotted[: plotted.index("</svg>")]


def test_samples_can_be_seen_and_heard(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, 2))
    shown = row(1, image=embedded(picture(1, size=(900, 300))), audio=embedded(encoded_samples(samples)), text="مرحبا")
    page = Page(html_of({"train": dataset(shown)}, tmp_path))
    with Image.open(decoded(page.all("img")[0]["src"])) as thumbnail:
        assert thumbnail.size == (THUMBNAIL, THUMBNAIL // 3)
    heard, rate = soundfile.read(decoded(page.all("audio")[0]["src"]))
    assert rate == 16_000 and heard.shape == (16_000,)
    assert "controls" in page.all("audio")[0]
    assert {"dir": "auto", "lang": "en", "class": "text"} in page.all("p")
    for value in ("مرحبا", "train-1#0", "train-1", "speaker 1 of train"):
        assert value in page.text


def test_long_recordings_are_cut_and_it_says_so(tmp_path):
    long = embedded(encoded_samples(np.full(20 * RATE, 0.1)))
    page = Page(html_of({"train": dataset(row(1, audio=long))}, tmp_path))
    heard, rate = soundfile.read(decoded(page.all("audio")[0]["src"]))
    assert len(heard) == HEARD_SECONDS * rate
    assert "The first 15 of 20.0 seconds." in page.text


def test_a_sample_that_cannot_be_shown_says_why(tmp_path):
    broken = row(1, image=embedded(b"no picture"), audio=at(tmp_path / "lost.wav"))
    page = Page(html_of({"train": dataset(broken)}, tmp_path))
    assert not page.all("img") and not page.all("audio")
    assert "cannot be decoded as an image" in page.text and "lost.wav does not exist" in page.text


def test_samples_are_of_every_split_and_depend_on_the_seed(tmp_path):
    corpus = {split: dataset(*(row(n, split) for n in range(20))) for split in ("train", "test")}
    pages = [html_of(corpus, tmp_path, seed) for seed in (0, 0, 1)]
    assert pages[0] == pages[1]
    shown = [re.findall(r"<dd>(\w+-\d+#0)</dd>", page) for page in pages]
    assert set(shown[0]) != set(shown[2])
    for split in corpus:
        own = {caption for caption in shown[0] if caption.startswith(split)}
        assert len(own) == SAMPLES
    assert len(set(shown[0])) == 2 * SAMPLES


def test_plots_are_of_what_there_is(tmp_path):
    def titles(corpus):
        return re.findall(r"<h3>(.*?)</h3>", html_of(corpus, tmp_path))

    everything = ["Duration", "Captions per picture", "Picture sizes", "Sampling rates", "Languages"]
    assert titles(sound_corpus()) == [*everything, "Captions per speaker"]
    anonymous = {name: split.map(lambda _: {"speaker": None}) for name, split in sound_corpus().items()}
    assert titles(anonymous) == everything
    lost = {"image": at(tmp_path / "lost.png"), "audio": at(tmp_path / "lost.wav"), "language": None, "speaker": None}
    assert titles({"train": dataset(row(0, **lost))}) == ["Captions per picture"]


def test_plots_take_the_colour_of_the_text(tmp_path):
    html = html_of(sound_corpus(), tmp_path)
    assert "currentColor" in html and "#010203" not in html
    ids = re.findall(r'<clipPath id="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 0


def test_many_languages_and_odd_recordings_are_drawn(tmp_path):
    audio = [embedded(encoded_samples(np.full((900 * n + 900, 3), 0.1))) for n in range(20)]
    rows = (row(n, language=f"x-{n}", audio=audio[n]) for n in range(20))
    html = html_of({"train": dataset(*rows)}, tmp_path)
    assert "9 others" in html and "8 kHz, 3 channels" in html


def test_headers_only_says_what_it_did_not_look_for(tmp_path):
    page = Page(html_of(sound_corpus(), tmp_path, decode=False)).text
    assert "Only headers were read" in page
    assert "Only headers were read" not in Page(html_of(sound_corpus(), tmp_path)).text


@pytest.mark.parametrize("crash", [IndexError("bad table"), MemoryError()])
def test_a_decoder_that_crashes_costs_one_sample(crash, tmp_path, monkeypatch):
    def refuse(*_):
        raise crash

    monkeypatch.setattr(check_page, "load_image", refuse)
    page = Page(html_of(sound_corpus(1), tmp_path))
    assert not page.all("img") and len(page.all("audio")) == 3
