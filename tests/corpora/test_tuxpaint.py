from __future__ import annotations

import base64
import io
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from speech_image_retrieval.corpora import tuxpaint
from speech_image_retrieval.corpora.schema import SPLITS, CorpusError
from speech_image_retrieval.corpora.tuxpaint import (
    INSTALLED,
    assign_splits,
    bcp47,
    build_tuxpaint,
    find_pictures,
    find_recordings,
    find_stamps,
    group_stamps,
    read_descriptions,
    render,
)

RED, WHITE = (255, 0, 0), (255, 255, 255)


def write_speech(path: Path, pitch: float) -> None:
    samples = 0.3 * np.sin(pitch * np.arange(1600) / 16000)
    soundfile.write(path, samples, 16000, format="OGG" if path.suffix == ".ogg" else "WAV")


def write_stamp(root: Path, name: str, *, number: int, text: str | None = None, locales: tuple[str, ...] = ("fr",)):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGBA", (20, 10), (number * 5 % 256, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.save(path.with_name(f"{path.name}.png"))
    lines = [text or f"Thing {number}.", f"fr.utf8=Objet {number} é.", f"pt_BR.utf8=Coisa {number}.", "de.utf8="]
    path.with_name(f"{path.name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for position, locale in enumerate(locales):
        write_speech(path.with_name(f"{path.name}_desc{locale and '_'}{locale}.ogg"), 20 + number * 7 + position)


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    root = tmp_path / "stamps"
    for number in range(20):
        write_stamp(root, f"folder{number % 3}/thing{number}", number=number, locales=("fr", "de"))
    return root


def svg(content: str, size: str = 'width="20" height="10"') -> str:
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {spaces} {size}>{content}</svg>"


def rows_by_id(corpus: DatasetDict) -> dict[str, dict]:
    return {row["caption_id"]: row | {"split": split} for split in SPLITS for row in corpus[split]}


def test_a_row_is_one_spoken_description(stamps, tmp_path):
    write_stamp(stamps, "animals/dog", number=40, text="A dog.", locales=("", "fr", "pt_BR", "ru"))
    write_speech(stamps / "animals/dog.ogg", 3)
    write_speech(stamps / "animals/dog_fr.ogg", 4)
    rows = rows_by_id(build_tuxpaint(stamps, tmp_path / "out"))
    dog = {row["language"]: row for row in rows.values() if row["image_id"] == "animals/dog"}
    assert {language: row["text"] for language, row in dog.items()} == {
        "en": "A dog.",
        "fr": "Objet 40 é.",
        "pt-BR": "Coisa 40.",
        "ru": None,
    }
    assert {row["speaker"] for row in rows.values()} == {None}
    assert len(rows) == 2 * 20 + 4
    recording = stamps / "animals/dog_desc_pt_BR.ogg"
    assert dog["pt-BR"]["caption_id"] == "animals/dog_desc_pt_BR.ogg"
    assert dog["pt-BR"]["audio"] == {"bytes": recording.read_bytes(), "path": None}
    assert rows["folder0/thing0_desc_de.ogg"]["text"] is None, "an empty line is no description"


def test_the_corpus_stands_without_the_stamps(stamps, tmp_path):
    corpus = build_tuxpaint(stamps, tmp_path / "out")
    for path in stamps.rglob("*.*"):
        path.unlink()
    for row in rows_by_id(corpus).values():
        assert row["image"]["path"] is None and row["audio"]["path"] is None
        with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (20, 10))
            assert picture.getpixel((0, 0)) == WHITE
            assert picture.getpixel((9, 9))[1:] == (0, 0)
        assert soundfile.info(io.BytesIO(row["audio"]["bytes"])).frames == 1600


def test_wave_recordings_and_locales_in_capitals_are_read(stamps, tmp_path):
    write_stamp(stamps, "food/yam", number=41, locales=())
    write_speech(stamps / "food/yam_desc_zh_tw.wav", 9)
    row = rows_by_id(build_tuxpaint(stamps, tmp_path / "out"))["food/yam_desc_zh_tw.wav"]
    assert (row["language"], row["image_id"]) == ("zh-TW", "food/yam")


@pytest.mark.parametrize("num_proc", [2, 30])
def test_processes_do_not_change_the_corpus(stamps, tmp_path, num_proc):
    alone = build_tuxpaint(stamps, tmp_path / "alone")
    shared = build_tuxpaint(stamps, tmp_path / "shared", num_proc=num_proc)
    assert {split: shared[split].to_list() for split in SPLITS} == {split: alone[split].to_list() for split in SPLITS}


@pytest.mark.parametrize("inside", ["", "usr/share/tuxpaint/stamps", "stamps"])
def test_stamps_are_found_in_an_unpacked_package(tmp_path, inside):
    write_stamp(tmp_path / inside, "animals/dog", number=1)
    assert find_stamps(tmp_path) == tmp_path / inside


def test_missing_stamps_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(tuxpaint, "INSTALLED", tmp_path / "nowhere")
    for source in (None, tmp_path):
        with pytest.raises(CorpusError, match=r"apt-get install tuxpaint-stamps-default.*--source"):
            build_tuxpaint(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("locale", "tag"),
    [
        ("fr", "fr"),
        ("pt_BR", "pt-BR"),
        ("zh_tw", "zh-TW"),
        ("nso", "nso"),
        ("sr@latin", "sr-Latn"),
        ("ca@valencia", "ca-valencia"),
        ("da.ogg", None),
        ("French", None),
        ("", None),
    ],
)
def test_locales_become_language_tags(locale, tag):
    assert bcp47(locale) == tag


def test_descriptions_of_a_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffA = b. \r\nes.utf8=a = b\r\nsr@latin.utf8=\r\n\r\nzh_TW.utf8=牛\r\n".encode())
    assert read_descriptions(path) == {"en": "A = b.", "es": "a = b", "zh-TW": "牛"}
    path.write_bytes(b"")
    assert read_descriptions(path) == {}


def empty_recording(root: Path) -> Path:
    write_stamp(root, "bad", number=42, locales=())
    path = root / "bad_desc_fr.ogg"
    path.write_bytes(b"")
    return path


def garbled_recording(root: Path) -> Path:
    path = empty_recording(root)
    path.write_bytes(b"OggS but nothing after it" * 9)
    return path


def missing_picture(root: Path) -> Path:
    write_stamp(root, "bad", number=42)
    (root / "bad.png").unlink()
    return root / "bad_desc_fr.ogg"


def broken_picture(root: Path) -> Path:
    write_stamp(root, "bad", number=42)
    picture = root / "bad.png"
    Image.effect_noise((64, 64), 50).save(picture)
    picture.write_bytes(picture.read_bytes()[:1000])
    return root / "bad_desc_fr.ogg"


def broken_svg(root: Path) -> Path:
    write_stamp(root, "bad", number=42)
    (root / "bad.png").rename(root / "bad.svg")
    return root / "bad_desc_fr.ogg"


def blank_picture(root: Path) -> Path:
    write_stamp(root, "bad", number=42)
    Image.new("RGBA", (9, 9), (255, 255, 255, 120)).save(root / "bad.png")
    return root / "bad_desc_fr.ogg"


def unknown_language(root: Path) -> Path:
    write_stamp(root, "bad", number=42)
    return (root / "bad_desc_fr.ogg").rename(root / "bad_desc_fr.ogg.ogg")


def latin1_text(root: Path) -> Path:
    write_stamp(root, "bad", number=42)
    (root / "bad.txt").write_bytes("A dog.\nfr.utf8=é".encode("latin-1"))
    return root / "bad_desc_fr.ogg"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (empty_recording, "an empty file"),
        (garbled_recording, "unreadable recording"),
        (missing_picture, "no picture bad.png or .svg"),
        (broken_picture, "bad.png: unreadable picture"),
        (broken_svg, "bad.svg: unreadable picture"),
        (blank_picture, "shows nothing on a white background"),
        (unknown_language, "no language"),
        (latin1_text, "bad.txt: not UTF-8"),
    ],
)
def test_a_defect_is_refused_and_left_out_only_on_request(stamps, tmp_path, caplog, spoil, reason):
    recording = spoil(stamps)
    with pytest.raises(CorpusError) as refusal:
        build_tuxpaint(stamps, tmp_path / "out")
    for part in ("1 of 41 spoken captions", recording.name, reason, "--skip-missing"):
        assert part in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["stamps"], "nothing is left behind"
    with caplog.at_level(logging.WARNING):
        rows = rows_by_id(build_tuxpaint(stamps, tmp_path / "out", skip_missing=True))
    assert len(rows) == 40 and recording.name not in rows
    assert "1 of 41" in caplog.text and reason in caplog.text


def test_a_defect_in_another_language_does_not_matter(stamps, tmp_path):
    empty_recording(stamps)
    rows = rows_by_id(build_tuxpaint(stamps, tmp_path / "out", languages=["de"]))
    assert {row["language"] for row in rows.values()} == {"de"} and len(rows) == 20


def test_languages_are_chosen_in_either_spelling(stamps, tmp_path):
    for number in range(20):
        write_speech(stamps / f"folder{number % 3}/thing{number}_desc_pt_BR.ogg", 200 + number)
    for position, spelling in enumerate(("pt-BR", "pt_br")):
        rows = rows_by_id(build_tuxpaint(stamps, tmp_path / f"out{position}", languages=[spelling]))
        assert {row["language"] for row in rows.values()} == {"pt-BR"} and len(rows) == 20
    with pytest.raises(CorpusError, match=r"spoken in ja, pt\. Languages: de, fr, pt-BR"):
        build_tuxpaint(stamps, tmp_path / "none", languages=["fr", "ja", "pt"])


def split_of_pictures(corpus: DatasetDict) -> dict[str, str]:
    rows = rows_by_id(corpus).values()
    split_of = {row["image_id"]: row["split"] for row in rows}
    assert all(split_of[row["image_id"]] == row["split"] for row in rows)
    return split_of


def test_splits_depend_on_pictures_and_seed_only(stamps, tmp_path):
    first = split_of_pictures(build_tuxpaint(stamps, tmp_path / "first", seed=1))
    assert first == split_of_pictures(build_tuxpaint(stamps, tmp_path / "again", seed=1))
    assert first == split_of_pictures(build_tuxpaint(stamps, tmp_path / "french", seed=1, languages=["fr"]))
    assert first != split_of_pictures(build_tuxpaint(stamps, tmp_path / "other", seed=2))
    assert [list(first.values()).count(split) for split in SPLITS] == [16, 2, 2]


@pytest.mark.parametrize("seed", range(3))
def test_a_picture_under_two_names_has_one_id_and_split(tmp_path, seed):
    root = tmp_path / "stamps"
    for number in range(9):
        write_stamp(root, f"first{number}", number=number)
        write_stamp(root, f"second{number}", number=number + 30)
        with Image.open(root / f"first{number}.png") as original:
            original.save(root / f"second{number}.png", compress_level=0)
    rows = rows_by_id(build_tuxpaint(root, tmp_path / "out", seed=seed))
    for number in range(9):
        first, second = (rows[f"{name}{number}_desc_fr.ogg"] for name in ("first", "second"))
        assert first["image_id"] == second["image_id"] == f"first{number}"
        assert first["split"] == second["split"]


@pytest.mark.parametrize("seed", range(4))
def test_variants_of_one_object_stay_in_one_split(tmp_path, seed):
    root = tmp_path / "stamps"
    for number in range(12):
        write_stamp(root, f"same_text{number}", number=number, text=f"The Thing {number // 3}{'!' * (number % 3)}")
        write_stamp(root, f"same_speech{number}", number=20 + number)
        speech = root / f"same_speech{number // 3 * 3}_desc_fr.ogg"
        (root / f"same_speech{number}_desc_fr.ogg").write_bytes(speech.read_bytes())
    split_of = split_of_pictures(build_tuxpaint(root, tmp_path / "out", seed=seed))
    for kind in ("same_text", "same_speech"):
        for first in range(0, 12, 3):
            assert len({split_of[f"{kind}{first + offset}"] for offset in range(3)}) == 1
    assert set(split_of.values()) == set(SPLITS)


def test_another_folder_is_left_alone(stamps, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/kept.txt").write_text("mine")
    with pytest.raises(CorpusError, match="not a corpus"):
        build_tuxpaint(stamps, tmp_path / "notes")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["kept.txt"]


def test_a_split_without_captions_is_refused(stamps, tmp_path):
    write_stamp(stamps, "animals/dog", number=40, locales=("nl",))
    with pytest.raises(CorpusError, match="No description is left for the split"):
        build_tuxpaint(stamps, tmp_path / "out", languages=["nl"])


keys = st.dictionaries(
    st.integers(0, 30).map(str), st.frozensets(st.sampled_from("abcdefghij"), max_size=3), max_size=20
)


@given(keys)
def test_groups_are_the_connected_components(keys):
    groups = group_stamps(keys)
    assert sorted(stamp for group in groups for stamp in group) == sorted(keys)
    for group in groups:
        reached, rest = {group[0]}, set(group[1:])
        while near := {one for one in rest if any(keys[one] & keys[other] for other in reached)}:
            reached, rest = reached | near, rest - near
        assert not rest
    for one in groups:
        for other in groups:
            assert one is other or not any(keys[a] & keys[b] for a in one for b in other)


@given(st.lists(st.integers(1, 6), min_size=3, max_size=60), st.integers(0, 9), st.randoms())
def test_splits_keep_groups_whole_and_about_a_tenth(sizes, seed, random):
    groups = [[f"{group}-{stamp}" for stamp in range(size)] for group, size in enumerate(sizes)]
    split_of = assign_splits(groups, seed)
    assert split_of.keys() == {stamp for group in groups for stamp in group}
    assert all(len({split_of[stamp] for stamp in group}) == 1 for group in groups)
    counts = {split: list(split_of.values()).count(split) for split in SPLITS}
    assert all(counts.values())
    left_by_test = [len(group) for group in groups if split_of[group[0]] != "test"]
    assert counts["test"] <= max(sum(sizes) / 10, min(sizes))
    assert counts["validation"] <= max(sum(sizes) / 10, min(left_by_test))
    random.shuffle(groups)
    assert assign_splits(groups, seed) == split_of


def test_too_few_pictures_cannot_be_split():
    with pytest.raises(CorpusError, match="2 unrelated pictures"):
        assign_splits([["a", "b", "c"], ["d"]], seed=0)


def test_large_pictures_shrink_and_keep_their_shape(tmp_path):
    path = tmp_path / "large.png"
    Image.new("LA", (100, 900), (0, 128)).save(path)
    rendered = render(path)
    assert (rendered.mode, rendered.size) == ("RGB", (25, 224))
    assert rendered.getpixel((12, 100)) == (127, 127, 127)


def test_png_is_preferred_to_svg(tmp_path):
    write_stamp(tmp_path, "both", number=1)
    (tmp_path / "both.svg").write_text(svg(""))
    (tmp_path / "vector.svg").write_text(svg(""))
    assert find_pictures(tmp_path) == {"both": tmp_path / "both.png", "vector": tmp_path / "vector.svg"}


@pytest.mark.parametrize("size", ['width="2cm" height="4cm"', 'width="9000" height="18000"', 'viewBox="0 0 10 20"'])
def test_svg_of_any_unit_and_size_is_rendered(tmp_path, size):
    pytest.importorskip("resvg_py")
    path = tmp_path / "a.svg"
    path.write_text(svg('<rect width="50%" height="100%" fill="red"/>', size))
    rendered = render(path)
    assert rendered.mode == "RGB" and rendered.height == 224 and abs(rendered.width - 112) <= 1
    assert (rendered.getpixel((20, 100)), rendered.getpixel((90, 100))) == (RED, WHITE)


def linked(href: str) -> str:
    return f'<image width="20" height="10" xlink:href="{href}"/>'


@pytest.mark.parametrize(
    "content",
    [
        linked("{secret}"),
        linked(" {secret}"),
        linked("{secret}").replace("xlink:", ""),
        '<filter id="f"><feImage href="{secret}"/></filter><rect width="20" height="10" filter="url(#f)"/>',
        linked("data:image/svg+xml;base64,{nested}"),
    ],
)
def test_svg_reads_no_other_file(tmp_path, content):
    pytest.importorskip("resvg_py")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (20, 10), RED).save(secret)
    nested = base64.b64encode(svg(linked(str(secret))).encode()).decode()
    path = tmp_path / "a.svg"
    path.write_text(svg(content.format(secret=secret, nested=nested)))
    assert RED not in [color for _, color in render(path).getcolors(maxcolors=100_000)]


def test_svg_keeps_what_it_holds_itself(tmp_path):
    pytest.importorskip("resvg_py")
    held = io.BytesIO()
    Image.new("RGB", (10, 10), RED).save(held, "PNG")
    data = base64.b64encode(held.getvalue()).decode()
    path = tmp_path / "a.svg"
    path.write_text(
        svg(
            f'<image width="10" height="10" xlink:href="data:image/png;base64,{data}"/>'
            '<defs><rect id="r" width="5" height="10" fill="blue"/></defs><use xlink:href="#r" x="10"/>'
        )
    )
    rendered = render(path)
    assert [rendered.getpixel((x, 50)) for x in (50, 130, 200)] == [RED, (0, 0, 255), WHITE]


@pytest.mark.parametrize("levels", [150, 3000])
def test_svg_nested_too_deep_is_an_error_not_a_crash(tmp_path, levels):
    pytest.importorskip("resvg_py")
    path = tmp_path / "a.svg"
    path.write_text(svg("<g>" * levels + "</g>" * levels))
    with pytest.raises(ValueError, match="nested more than 100"):
        render(path)


def test_svg_stamps_say_what_renders_them(stamps, tmp_path, monkeypatch):
    (stamps / "vector.svg").write_text(svg(""))
    monkeypatch.setattr(tuxpaint, "find_spec", lambda name: None)
    with pytest.raises(CorpusError, match=r"pip install 'speech-image-retrieval\[demo\]'"):
        build_tuxpaint(stamps, tmp_path / "out")


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="tuxpaint-stamps-default is not installed")
def test_the_installed_stamps_are_understood():
    root = find_stamps(None)
    pictures, recordings = find_pictures(root), find_recordings(root)
    assert len(pictures) > 900 and len(recordings) > 7000
    assert {"en", "fr", "pt-BR"} <= {recording.language for recording in recordings}
    spoken = [recording for recording in recordings if recording.language and recording.stamp in pictures]
    assert len(spoken) > 0.99 * len(recordings)
    described = {
        stamp: read_descriptions(root / f"{stamp}.txt") for stamp in {recording.stamp for recording in spoken}
    }
    with_text = sum(recording.language in described[recording.stamp] for recording in spoken)
    assert with_text > 0.98 * len(spoken)
