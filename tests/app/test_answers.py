from __future__ import annotations

import html
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from speech_image_retrieval.app import markup
from speech_image_retrieval.app.answers import Answer, Answering
from speech_image_retrieval.app.events import Asked, Events
from speech_image_retrieval.app.page import tab_names
from speech_image_retrieval.app.upload_folder import UploadFolder
from speech_image_retrieval.processing.uploads import UploadLimits, UploadRefused
from speech_image_retrieval.retrieval.index import SpeechImageIndex

from ..retrieval.tiny_gallery import tiny_model, tiny_processor, write_picture, write_recording
from .hostile_files import long_silence, recording
from .served_page import HOSTILE_TEXT, build_index


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> SpeechImageIndex:
    folder = tmp_path_factory.mktemp("answers")
    build_index(folder / "pictures", folder / "index", "image", count=6)
    return SpeechImageIndex.open(folder / "index", tiny_model(), tiny_processor())


@pytest.fixture(scope="module")
def answering(pictures: SpeechImageIndex) -> Answering:
    return Answering(pictures, UploadLimits(), top_k=4, rerank_top_k=3)


def answer(**changed: object) -> Answer:
    values = {
        "id": "/secret/path.png",
        "rank": 1,
        "coarse_rank": 3,
        "similarity": 0.25,
        "match": -1.5,
        "name": "path.png",
        "text": "a dog",
        "speaker": "Ann",
        "language": "en",
        "preview": b"preview",
    }
    return Answer(**{**values, **changed})


def shown_text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", page))


def test_answers_are_those_of_the_index(answering: Answering, pictures: SpeechImageIndex, tmp_path: Path):
    query = write_recording(tmp_path / "query.wav", seed=3)
    (found,) = pictures.search([query], top_k=4, rerank_top_k=3)
    for upload in (query, query.read_bytes()):
        answers = answering.find(upload)
        assert [(a.id, a.coarse_rank, a.match) for a in answers] == [
            (f.id, f.coarse_rank, pytest.approx(f.matching_score, abs=1e-5) if f.matching_score is not None else None)
            for f in found
        ]
        assert [a.rank for a in answers] == [1, 2, 3, 4]
    assert (answering.gallery, len(answering)) == ("image", 6)


def test_uploads_are_checked_on_the_way(answering: Answering):
    with pytest.raises(UploadRefused, match="120 minutes"):
        answering.find(long_silence())
    with pytest.raises(UploadRefused, match="cannot be read as a recording"):
        answering.explain(b"no sound", "id")


def test_recordings_are_found_by_pictures(tmp_path: Path):
    build_index(tmp_path / "recordings", tmp_path / "index", "speech", count=3)
    index = SpeechImageIndex.open(tmp_path / "index", tiny_model(), tiny_processor())
    query = write_picture(tmp_path / "query.png", seed=0)
    answers = Answering(index, UploadLimits(), rerank_top_k=0).find(query)
    assert len(answers) == 3 and answers[0].preview.startswith(b"fLaC") and answers[0].match is None


def test_an_option_out_of_range_is_refused(pictures: SpeechImageIndex):
    with pytest.raises(ValueError, match="score_rule"):
        Answering(pictures, UploadLimits(), score_rule="best")


def test_only_the_end_of_a_models_folder_is_told(answering: Answering):
    for name, told in (("/home/ann/models/base", "models/base"), ("org/sir-base", "org/sir-base")):
        answering_other = Answering(SimpleNamespace(info=SimpleNamespace(model_name=name)), UploadLimits())
        assert answering_other.model == told


@pytest.mark.parametrize("show", [markup.pictures, markup.recordings])
@pytest.mark.parametrize("field", ["text", "name", "speaker", "language"])
def test_what_strangers_wrote_is_escaped(show, field: str):
    hostile = HOSTILE_TEXT + "'\"&"
    page = show([answer(**{"text": None} if field == "name" else {}, **{field: hostile})])
    assert "<script" not in page and '<img src="/x"' not in page
    assert not re.search(r"<[^>]*\sonerror=\"window", page)


def test_no_id_is_shown(tmp_path: Path):
    for page in (
        markup.pictures([answer()]),
        markup.recordings([answer()]),
        markup.explanation(b"", b"", answer(), 1),
    ):
        assert "secret" not in page


def test_ranks_are_side_by_side():
    text = shown_text(markup.pictures([answer(), answer(rank=2, coarse_rank=1), answer(rank=3, match=None)]))
    rows = re.split(r"Similarity\s+Name\s+Text", text)[1]
    assert rows.split()[:9] == ["1", "3", "▲", "up", "2", "−1.50", "0.250", "path.png", "a"]
    assert rows.split()[12:15] == ["▼", "down", "1"] and "as before" in rows and "–" in rows


def test_a_recording_of_an_hour_is_not_sent_along():
    assert "<audio" in markup.recordings([answer()])
    assert "too long to be played" in markup.recordings([answer(preview=bytes(3_000_001))])


def test_tabs_of_one_kind_have_the_names_of_their_indexes():
    def tabs(*indexes: tuple[str, str]) -> list[str]:
        infos = [SimpleNamespace(uri=uri, info=SimpleNamespace(modality=kind)) for uri, kind in indexes]
        return tab_names([Answering(info, UploadLimits()) for info in infos])

    assert tabs(("/data/a", "image"), ("/data/b", "speech")) == ["Speech → pictures", "Picture → descriptions"]
    assert tabs(("/data/a/", "image"), ("s3://bucket/b", "image"), ("c", "speech")) == ["a", "b", "c"]
    assert tabs(("x/index", "image"), ("y/index", "image")) == ["index 1", "index 2"]


class FailingAnswering:
    gallery = "image"

    def find(self, upload: Path):
        raise OSError("/secret/path cannot be read")


def test_an_error_of_the_index_tells_a_visitor_no_path(tmp_path: Path, caplog):
    (tmp_path / "a.wav").write_bytes(recording(0.3))
    status, results, asked = Events(FailingAnswering(), UploadFolder(tmp_path)).search(
        {"path": str(tmp_path / "a.wav")}
    )
    assert "Something went wrong" in status and "secret" not in status and (results, asked) == ("", None)
    assert "/secret/path cannot be read" in caplog.text


def test_only_uploads_are_read(answering: Answering, tmp_path: Path):
    outside = tmp_path / "outside.wav"
    outside.write_bytes(recording(0.3))
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "link.wav").symlink_to(outside)
    for path in (outside, uploads / "link.wav", uploads / ".." / "outside.wav", uploads, 3):
        given = {"path": path if isinstance(path, int) else str(path)}
        assert "Only files that were uploaded" in Events(answering, UploadFolder(uploads)).search(given)[0]


def test_an_explanation_is_asked_of_the_row_that_was_shown(answering: Answering, tmp_path: Path, monkeypatch):
    explained = []

    def explain(upload: Path, item_id: str) -> tuple[Image.Image, Image.Image]:
        explained.append((upload, item_id))
        return Image.new("RGB", (20, 10)), Image.new("RGB", (10, 20))

    monkeypatch.setattr(answering, "explain", explain)
    events = Events(answering, UploadFolder(tmp_path))
    asked = Asked(tmp_path / "query.wav", [answer(id="a"), answer(id="b", rank=2)])
    first, again = (events.explain(asked, 1) for _ in range(2))
    assert explained == [(tmp_path / "query.wav", "b")] * 2
    assert "Why result 2?" in first[1] and first[1] != again[1]  # or the page would not open it again
    for nobody, row in ((asked, 2), (asked, -1), (asked, True), (asked, "0"), (None, 0)):
        assert "search again" in events.explain(nobody, row)[0]
