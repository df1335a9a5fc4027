from __future__ import annotations

import errno
import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from PIL import Image
from speech_image_retrieval.evaluation.model_identity import model_identity
from speech_image_retrieval.processing.media import load_speech
from speech_image_retrieval.retrieval import update
from speech_image_retrieval.retrieval.index import SpeechImageIndex
from speech_image_retrieval.retrieval.index_table import IndexProblem
from speech_image_retrieval.retrieval.known_rows import KnownRows
from speech_image_retrieval.retrieval.search import search_images
from speech_image_retrieval.retrieval.sources import CorpusSource, FolderSource, Item

from .tiny_gallery import (
    picture_folder,
    recording_folder,
    save_tiny,
    tiny_model,
    tiny_processor,
    write_picture,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture
def pictures(tmp_path: Path) -> FolderSource:
    return FolderSource(picture_folder(tmp_path / "pictures", 20), "image")


@pytest.fixture
def index(tmp_path: Path, model, processor) -> SpeechImageIndex:
    return SpeechImageIndex.create(tmp_path / "index", model, processor)


@pytest.fixture(scope="module")
def queries(tmp_path_factory) -> list[Path]:
    return sorted(recording_folder(tmp_path_factory.mktemp("queries"), 20).glob("*.wav"))


def ids(index: SpeechImageIndex) -> list[str]:
    return [item_id for batch in index.rows(["id"]) for item_id in batch["id"].to_pylist()]


@pytest.mark.parametrize("score_rule", ["sim", "sim+sic"])
@pytest.mark.parametrize("rerank_top_k", [0, 6, 32])
def test_finds_what_a_search_of_the_same_pictures_finds(
    tmp_path: Path, pictures, queries, model, processor, rerank_top_k: int, score_rule: str
):
    index = SpeechImageIndex.create(tmp_path / "index", model, processor, keep_states=False)  # float32, recomputed
    index.update_from(pictures)
    assert "states" not in index.info.schema().names
    options = {"top_k": 9, "rerank_top_k": rerank_top_k, "score_rule": score_rule}
    items = list(pictures)
    expected = search_images(model, processor, queries, [item.medium for item in items], **options)
    found = index.search(queries, **options)
    assert len({tuple(result.id for result in results) for results in found}) > 1
    for results, others in zip(found, expected, strict=True):
        assert [result.id for result in results] == [items[other.image].id for other in others]
        assert [result.coarse_rank for result in results] == [other.coarse_rank for other in others]
        for result, other in zip(results, others, strict=True):
            assert result.coarse_score == pytest.approx(other.coarse_score, abs=1e-6)
            assert result.matching_score == pytest.approx(other.matching_score, abs=1e-5)


def test_stored_states_score_like_states_that_are_not_rounded(index, pictures, queries, model, processor):
    index.update_from(pictures)
    items = list(pictures)
    expected = search_images(model, processor, queries, [item.medium for item in items], top_k=20)
    for results, others in zip(index.search(queries, top_k=20), expected, strict=True):
        scores = {items[other.image].id: other.matching_score for other in others}
        assert {result.id: result.matching_score for result in results} == pytest.approx(scores, abs=5e-3)
        ranked = [result.matching_score for result in results]
        assert ranked == sorted(ranked, reverse=True)


def test_states_that_can_be_neither_read_nor_recomputed(tmp_path: Path, queries, model, processor):
    index = SpeechImageIndex.create(tmp_path / "without", model, processor, keep_states=False)
    index.add([Item("embedded", "mine", "embedded", write_picture(tmp_path / "red.png", seed=0).read_bytes(), "1", 1)])
    with pytest.raises(IndexProblem, match=r"is embedded in its corpus\. Index again with states"):
        index.search(queries)
    assert index.search(queries, rerank_top_k=0)


def test_candidates_whose_files_are_not_what_was_indexed_are_not_reranked(
    tmp_path: Path, pictures, queries, model, processor, caplog
):
    index = SpeechImageIndex.create(tmp_path / "index", model, processor, keep_states=False)
    index.update_from(pictures)
    before = index.search(queries, top_k=20)
    gone, changed, broken, *others = list(pictures)
    gone.medium.unlink()
    write_picture(changed.medium, seed=100)
    status = broken.medium.stat()
    broken.medium.write_bytes(bytes(status.st_size))
    os.utime(broken.medium, ns=(status.st_atime_ns, status.st_mtime_ns))
    left_out = {gone.id, changed.id, broken.id}
    for results, all_ in zip(index.search(queries, top_k=20), before, strict=True):
        reranked = [result.id for result in results if result.id not in left_out]
        assert reranked == [one.id for one in all_ if one.id not in left_out]
        others_at = {place: one for place, one in enumerate(results, start=1) if one.id in left_out}
        assert len(others_at) == 3
        assert all(one.matching_score is None and one.coarse_rank == place for place, one in others_at.items())
    assert "3 candidates are not re-ranked" in caplog.text
    for item in others:
        item.medium.unlink()
    (results,) = index.search(queries[:1], top_k=20)
    assert [result.coarse_rank for result in results] == list(range(1, 21))


def test_pictures_find_recordings(tmp_path: Path, model, processor, pictures):
    recordings = FolderSource(recording_folder(tmp_path / "recordings", 12), "speech")
    index = SpeechImageIndex.create(tmp_path / "index", model, processor, "speech")
    assert index.update_from(recordings, batch_size=5).added == 12
    query = next(iter(pictures)).medium
    (found,) = index.search([query], top_k=12, rerank_top_k=4)
    assert {result.id for result in found} == {item.id for item in recordings}
    scores = [result.matching_score for result in found]
    assert scores[:4] == sorted(scores[:4], reverse=True) and scores[4:] == [None] * 8
    for result in found[:4]:
        (others,) = search_images(model, processor, [result.path], [query])
        assert result.matching_score == pytest.approx(others[0].matching_score, abs=1e-2)
        assert result.coarse_score == pytest.approx(others[0].coarse_score, abs=1e-5)
        heard, spoken = load_speech(result.preview, None, 16_000), load_speech(result.path, None, 16_000)
        assert heard == pytest.approx(spoken, abs=2**-15), "16 bits, and nothing lost"
    with pytest.raises(IndexProblem, match=r"index of recordings, and .* gives pictures"):
        index.update_from(pictures)


def test_only_what_is_new_or_changed_is_encoded_and_what_is_gone_is_deleted(index, pictures, tmp_path: Path):
    report = index.update_from(pictures, batch_size=7)
    assert (report.added, report.changed, report.unchanged, report.deleted) == (20, 0, 0, 0)
    before = ids(index)
    first, second, *_ = [item.medium for item in pictures]
    write_picture(first, seed=100)
    second.unlink()
    new = write_picture(tmp_path / "pictures" / 'it\'s a "new" \\ one é.png', seed=101)
    report = index.update_from(pictures)
    assert (report.added, report.changed, report.unchanged, report.deleted) == (1, 1, 18, 1)
    assert set(ids(index)) == {*before, str(new)} - {str(second)}
    new.unlink()
    assert index.update_from(pictures).deleted == 1
    report = index.update_from(pictures)
    assert (report.added, report.changed, report.unchanged, report.deleted) == (0, 0, 19, 0)


def test_two_sources_live_in_one_index(index, pictures, tmp_path: Path):
    others = FolderSource(picture_folder(tmp_path / "others", 3), "image")
    index.update_from(pictures)
    index.update_from(others)
    assert index.update_from(pictures).deleted == 0 and len(index) == 23
    shutil.rmtree(tmp_path / "others")
    (tmp_path / "others").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):  # an unmounted disk
        index.update_from(others)
    assert len(index) == 23


def test_a_folder_that_shares_files_with_another_source_is_refused(index, tmp_path: Path):
    for name in ("a", "ab"):
        picture_folder(tmp_path / "all" / name, 1)
    index.update_from(FolderSource(tmp_path / "all" / "a", "image"))
    for other in ("all", "all/a/0"):
        with pytest.raises(IndexProblem, match=r"already holds the folder .*/all/a, which shares files"):
            index.update_from(FolderSource(tmp_path / other, "image"))
    index.update_from(FolderSource(tmp_path / "all" / "ab", "image"))
    assert len(index) == 2


def test_a_source_is_removed(index, pictures, tmp_path: Path):
    others = FolderSource(picture_folder(tmp_path / "it's others", 3), "image")
    for source in (pictures, others):
        index.update_from(source)
    index.add([next(iter(pictures))._replace(id="1", source="mine")])
    shutil.rmtree(others.folder)
    held = [(source.name, source.rows, source.is_there) for source in index.sources()]
    assert held == [(others.name, 3, False), (pictures.name, 20, True), ("mine", 1, None)]
    reopened = SpeechImageIndex.open(index.uri)
    with pytest.raises(ValueError, match=r"holds nothing of other\. Its sources: .*others.*pictures, mine"):
        reopened.remove("other")
    assert reopened.remove(others.name) == 3
    assert [source.name for source in index.sources()] == [pictures.name, "mine"] and len(index) == 21


def test_an_item_that_another_writer_renews_meanwhile_is_not_deleted(index, pictures, model, processor):
    index.update_from(pictures)
    gone, *_ = list(pictures)
    gone.medium.unlink()
    slow = update.Update(index.uri, SpeechImageIndex.open(index.uri)._table, index.info, model, processor)
    write = slow._encode_and_write

    def meanwhile(*arguments, **options):
        write(*arguments, **options)
        write_picture(gone.medium, seed=100)
        assert index.update_from(pictures).changed == 1

    slow._encode_and_write = meanwhile
    assert slow.agree(pictures, batch_size=8, num_workers=1, progress=False).deleted == 0
    assert len(index) == 20


def test_a_corpus_inside_a_folder_shares_no_rows_with_it(index, pictures, tmp_path: Path):
    index.update_from(pictures)
    row = {"image": {"path": str(next(iter(pictures)).medium), "bytes": None}, "audio": None, "image_id": "1"}
    row |= {"caption_id": "1", "text": None, "speaker": None, "language": None}
    corpus = CorpusSource(Dataset.from_list([row]), f"{tmp_path / 'pictures' / 'corpus'}#test", "image")
    assert index.update_from(corpus).added == 1
    assert index.update_from(pictures).unchanged == 20 and len(index) == 21


def test_a_folder_of_the_other_modality_is_recognised(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no pictures .* It holds recordings: --modality speech"):
        len(FolderSource(recording_folder(tmp_path / "recordings", 1), "image"))


def test_single_items_are_added(index):
    stream = io.BytesIO()
    Image.new("RGB", (300, 600), "red").save(stream, "PNG")
    item = Item("red", "mine", "red", stream.getvalue(), "1", len(stream.getvalue()), text="a red picture")
    assert index.add([item]).added == 1
    assert index.add([item]).unchanged == 1
    assert index.add([item._replace(fingerprint="2")]).changed == 1
    (row,) = next(iter(index.rows(["preview", "text"]))).to_pylist()
    assert Image.open(io.BytesIO(row["preview"])).size == (128, 256) and row["text"] == "a red picture"


def test_unreadable_files_are_listed_and_the_others_indexed(index, pictures, tmp_path: Path):
    folder = tmp_path / "pictures"
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    (folder / "empty.jpg").touch()
    (folder / "broken link.png").symlink_to(folder / "nowhere.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).touch()
    for _ in range(2):
        report = index.update_from(pictures, batch_size=4)
        names = {Path(item.id).name for item in report.unreadable}
        assert names == {"text.png", "empty.jpg", "broken link.png", "\\udcff.png"}
        assert any("cannot be decoded" in item.reason for item in report.unreadable if item.id.endswith("text.png"))
        assert len(index) == 20


def test_a_file_that_the_disk_does_not_give_for_once_stays_in_the_index(index, pictures, monkeypatch):
    index.update_from(pictures)
    withheld = next(iter(pictures)).medium
    content = withheld.read_bytes()
    withheld.write_bytes(content[:50])
    open_file = Path.open

    def failing(path: Path, *options):
        if path == withheld:
            raise OSError(errno.EIO, "Input/output error")
        return open_file(path, *options)

    monkeypatch.setattr(Path, "open", failing)
    report = index.update_from(pictures)
    assert [item.id for item in report.unreadable] == [str(withheld)]
    assert report.deleted == 0 and len(index) == 20


def test_a_folder_that_cannot_be_listed_does_not_empty_the_index(index, tmp_path: Path, monkeypatch):
    for name in "ab":
        picture_folder(tmp_path / "pictures" / name, 2)
    source = FolderSource(tmp_path / "pictures", "image")
    index.update_from(source)
    scan = os.scandir

    def failing(path):
        if Path(path).name == "b":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(ValueError, match=r"b cannot be listed \(Input/output error\)"):
        index.update_from(source)
    assert len(index) == 4


def test_of_an_item_that_is_given_twice_one_stays(index, pictures):
    item = next(iter(pictures))
    assert index.add([item, item._replace(text="the last")]).added == 1
    assert [batch["text"].to_pylist() for batch in index.rows(["text"])] == [["the last"]]


def test_a_corrected_caption_arrives(index, pictures):
    def source(text: str) -> CorpusSource:
        rows = [
            {"image": {"path": str(item.medium), "bytes": None}, "audio": None, "image_id": item.name}
            | {"caption_id": item.name, "text": text, "speaker": None, "language": "en"}
            for item in pictures
        ]
        return CorpusSource(Dataset.from_list(rows), "corpus#test", "image")

    assert index.update_from(source("a dgo")).added == 20
    assert index.update_from(source("a dgo")).unchanged == 20
    assert index.update_from(source("a dog")).changed == 20
    assert {text for batch in index.rows(["text"]) for text in batch["text"].to_pylist()} == {"a dog"}


def test_a_file_address_is_the_folder(tmp_path: Path, model, processor, pictures):
    index = SpeechImageIndex.create(f"file://{tmp_path}/index", model, processor)
    index.update_from(pictures)
    assert (tmp_path / "index" / ".write.lock").exists(), "writers take turns"
    assert len(SpeechImageIndex.open(tmp_path / "index")) == 20


def test_a_file_that_became_unreadable_leaves_the_index(index, pictures):
    index.update_from(pictures)
    broken = next(iter(pictures)).medium
    broken.write_text("no picture", encoding="utf-8")
    report = index.update_from(pictures)
    assert [item.id for item in report.unreadable] == [str(broken)]
    assert report.deleted == 1 and str(broken) not in ids(index)


def test_a_recording_that_is_too_long_is_listed(tmp_path: Path, model, processor):
    short = tiny_processor()
    short.max_seconds = 0.05  # and a clip has a limited number of chunks
    recordings = FolderSource(recording_folder(tmp_path / "recordings", 3), "speech")
    soundfile.write(tmp_path / "recordings" / "long.wav", np.full(20 * 16_000, 0.1), 16_000)
    report = SpeechImageIndex.create(tmp_path / "index", model, short, "speech").update_from(recordings)
    assert report.added == 3
    assert report.unreadable[0].reason.startswith("The recording lasts 20.0 s")


def test_another_model_is_refused(index, pictures, tmp_path: Path, model, processor):
    index.update_from(pictures)
    other = tiny_model(seed=1)
    other.config._name_or_path = "org/other"
    with pytest.raises(IndexProblem, match=r"made with the model SpeechImageRetrievalModel, and org/other differs"):
        SpeechImageIndex.open(index.uri, other, processor)
    with pytest.raises(IndexProblem, match="differs"):
        SpeechImageIndex.create(index.uri, other, processor)
    half = tiny_processor()
    half.image_processor.image_mean = [0.1, 0.1, 0.1]
    with pytest.raises(IndexProblem, match="preprocessing"):
        SpeechImageIndex.open(index.uri, model, half)
    with pytest.raises(ValueError, match="opened without a model"):
        SpeechImageIndex.open(index.uri).search([b""])
    with pytest.raises(IndexProblem, match="index of pictures, not of recordings"):
        SpeechImageIndex.create(index.uri, model, processor, "speech")
    with pytest.raises(IndexProblem, match="keeps token states"):
        SpeechImageIndex.create(index.uri, model, processor, keep_states=False)


def test_a_model_is_the_same_when_it_was_saved_and_loaded(tmp_path: Path, model, processor):
    from speech_image_retrieval.cli.app import load_model

    assert model_identity(*load_model(str(save_tiny(tmp_path / "model")))) == model_identity(model, processor)


def test_filters_apply_before_the_search(index, pictures, queries):
    items = [
        item._replace(language="de" if number % 4 else "en", text=f"picture {number}")
        for number, item in enumerate(pictures)
    ]
    index.add(items)
    for results in index.search(queries[:3], top_k=20, where="language = 'en' AND text <> 'picture 0'"):
        assert {result.text for result in results} == {"picture 4", "picture 8", "picture 12", "picture 16"}
    assert index.search(queries[:2], where="language = 'fr'") == [[], []]
    for wrong in ("langage = 'en'", "language = = 'en'", "1/0 = 1"):
        for ask in (lambda where: index.search(queries[:1], where=where), lambda where: list(index.rows(where=where))):
            with pytest.raises(ValueError, match=r"filter .* cannot be used.*Columns: id, source"):
                ask(wrong)


def test_samples_alone_are_no_query(index):
    with pytest.raises(ValueError, match=r"Query 0: samples do not say their rate\. Give \{'array': "):
        index.search([np.ones(8_000, np.float32)])


def test_a_single_query_is_not_taken_for_a_list_of_letters(index):
    with pytest.raises(ValueError, match=r"a list of queries: search\(\[query\]\)"):
        index.search("query.wav")


def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path: Path):
    folder = picture_folder(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")), 1)
    with pytest.raises(ValueError, match=r"The name of the folder .*udcff is not valid UTF-8"):
        FolderSource(folder, "image")
    with pytest.raises(ValueError, match=r"The name of the index .*udcff is not valid UTF-8"):
        SpeechImageIndex.open(folder)


@pytest.mark.parametrize("loudness", [0.0, 5e-4])
def test_silence_is_no_query(index, pictures, queries, tmp_path: Path, loudness: float):
    index.update_from(pictures)
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.full(8_000, loudness), 16_000)
    with pytest.raises(ValueError, match=r"^the second: there is no sound in this recording, or it is too quiet"):
        index.search([queries[0], silent], query_names=["the first", "the second"])


def test_what_is_printed_of_a_result_fits_a_terminal(index, pictures, queries):
    index.update_from(pictures)
    (found,) = index.search(queries[:1], top_k=1)
    assert "JFIF" not in repr(found) and len(repr(found)) < 1_000


def test_an_empty_index_finds_nothing(index, queries):
    assert index.search(queries[:2]) == [[], []]


def test_more_queries_than_fit_at_a_time_give_the_same(index, pictures, queries, monkeypatch):
    from speech_image_retrieval.retrieval import index as module

    index.update_from(pictures)
    at_once = index.search(queries)
    monkeypatch.setattr(module, "_QUERIES_AT_A_TIME", 3)
    for results, others in zip(index.search(queries), at_once, strict=True):
        assert [result.id for result in results] == [other.id for other in others]


def test_many_writes_are_compacted(index, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(update, "_BYTES_PER_WRITE", 1)
    many = FolderSource(picture_folder(tmp_path / "many", 20), "image")
    index.update_from(many, batch_size=1)
    assert len(index) == len(set(ids(index))) == 20
    assert SpeechImageIndex.open(index.uri)._table.stats()["fragment_stats"]["num_fragments"] == 1


def test_known_rows():
    known = KnownRows([(["a", "b"], ["1", "1"]), ([], []), (["c", "d"], ["1", "1"])])
    assert [known.see(*pair) for pair in (("a", "1"), ("b", "2"), ("d", "1"), ("e", "1"))] == [
        "unchanged",
        "changed",
        "unchanged",
        "new",
    ]
    known.unsee("d")
    assert known.gone(["a", "b", "c", "d", "e"], ["1"] * 5) == [2, 3]
    assert known.gone(["a", "c", "d"], ["1", "2", "1"]) == [2], "another writer renewed c"
    assert KnownRows([]).see("a", "1") == "new"


def test_an_embedding_that_is_not_finite_is_refused(index, pictures):
    index._model.image_projection.bias.data[0] = torch.nan
    try:
        with pytest.raises(ValueError, match=r"embedding of .* is not finite"):
            index.update_from(pictures)
    finally:
        index._model.image_projection.bias.data[0] = 0.0


@pytest.mark.parametrize("scheme", ["", "file://", "file-object-store://"])  # the last is locked by nothing
def test_writers_at_once_write_every_row_once(tmp_path: Path, pictures, model, processor, scheme: str, monkeypatch):
    monkeypatch.setattr(update, "_BYTES_PER_WRITE", 1)
    uri = f"{scheme}{tmp_path / 'an index'}"
    SpeechImageIndex.create(uri, model, processor)
    writers = [SpeechImageIndex.open(uri, model, processor) for _ in range(3)]
    with ThreadPoolExecutor(len(writers)) as pool:
        list(pool.map(lambda writer: writer.update_from(pictures, batch_size=2, num_workers=1), writers))
    assert sorted(ids(writers[0])) == sorted(item.id for item in pictures)
    assert Path(tmp_path, "an index", ".write.lock").exists() == (scheme != "file-object-store://")
