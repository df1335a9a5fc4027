from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from speech_image_retrieval.corpora.emoji_artwork import (
    PACKAGES,
    STYLES,
    Concept,
    code_points,
    distinct_concepts,
    find_packages,
    find_pictures,
    picture_path,
    read_concepts,
    render_pictures,
    spoken_form,
    spoken_synonyms,
)
from speech_image_retrieval.corpora.schema import CorpusError

from .emoji_packages import CORNERS, EMOJI, Emoji, draw, same_name, write_packages


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    return write_packages(tmp_path / "artwork")


def concepts_of(prefix: Path) -> list[Concept]:
    root = find_packages(prefix)
    return read_concepts(root, find_pictures(root))


def test_packages_are_found_from_their_folder_its_parent_and_the_current_folder(installed, monkeypatch):
    root = installed / "node_modules"
    assert find_packages(installed) == find_packages(root) == root
    monkeypatch.chdir(installed)
    assert find_packages(None) == Path("node_modules")


def test_missing_packages_and_other_versions_are_named_in_the_command_that_installs_them(installed: Path):
    root = installed / "node_modules"
    shutil.rmtree(root / "@lobehub")
    (root / "openmoji" / "package.json").write_text('{"version": "16.0.0"}')
    command = f"npm install --prefix {installed} openmoji@17.0.0 @lobehub/fluent-emoji-3d@1.1.0"
    for source in (installed, root):
        with pytest.raises(CorpusError) as refusal:
            find_packages(source)
        assert str(refusal.value).endswith(f"Install them: {command}")
        assert "\n" not in str(refusal.value)


def test_an_empty_folder_lacks_all_packages_and_its_name_is_quoted(tmp_path: Path):
    with pytest.raises(CorpusError) as refusal:
        find_packages(tmp_path / "my emoji")
    command = shlex.split(str(refusal.value).partition("Install them: ")[2])
    assert command[2:4] == ["--prefix", str(tmp_path / "my emoji")]
    assert command[4:] == [f"{name}@{version}" for name, version in PACKAGES.items()]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("2764-fe0f", "2764", "2764-FE0F"), "2764"),
        (("0023-fe0f-20e3", "23-fe0f-20e3", "0023-20E3"), "23-20e3"),
        (("00a9-fe0f", "A9"), "a9"),
        (("1f468-200d-2764-fe0f-200d-1f468", "1F468-200D-2764-200D-1F468"), "1f468-200d-2764-200d-1f468"),
    ],
)
def test_the_houses_file_names_come_to_the_same_code_points(names: tuple[str, ...], expected: str):
    assert {code_points(name) for name in names} == {expected}


def test_concepts_are_what_every_style_has_but_no_flags_of_countries(installed: Path):
    labels = {code_points(one.hexcode): one.label for one in EMOJI}
    left_out = set(labels) - {concept.image_id for concept in concepts_of(installed)}
    assert {labels[image_id] for image_id in left_out} == {"lime", "flag: France"}


def test_of_concepts_that_are_spoken_alike_the_first_stays(tmp_path: Path):
    alike = tuple(
        Emoji(label, code.upper(), same_name(code))
        for label, code in (("Up!", "1f600"), ("up", "1f601"), ("Up", "1f602"))
    )
    found = concepts_of(write_packages(tmp_path, alike))
    assert [(one.image_id, one.name) for one in found] == [("1f600", "Up"), ("1f601", "up")]


@pytest.mark.parametrize(
    ("name", "spoken"),
    [
        ("man: red hair", "man, red hair"),
        ("keycap: #", "keycap, hash"),
        ("keycap: *", "keycap, asterisk"),
        ("keycap: 10", "keycap, 10"),
        ("AB button (blood type)", "A B button, blood type"),
        ("OK hand", "okay hand"),
        ("UP! button", "up button"),
        ("woman gesturing NO", "woman gesturing no"),
        ("Japanese “free of charge” button", "Japanese free of charge button"),
        ("twelve o’clock", "twelve o'clock"),
        ("Mrs. Claus", "Mrs Claus"),
        ("piñata", "pinata"),
        ("T-Rex", "T-Rex"),
    ],
)
def test_names_are_spoken_in_plain_letters(name: str, spoken: str):
    assert spoken_form(name) == spoken


def test_synonyms_are_words_that_add_to_the_name():
    tags = ["apple", "crêpe", "fruit", "red", ":)", "24", "brb", "omg", "g2g", "fruit", "x", "wi-fi", "apple red"]
    assert spoken_synonyms("red apple", tags) == ("crepe", "fruit", "wi-fi")


def test_pictures_are_rgb_png_on_white_and_are_not_enlarged(installed: Path, tmp_path: Path):
    files = find_pictures(find_packages(installed))
    render_pictures(concepts_of(installed), files, tmp_path / "pictures")
    for style, side in zip(STYLES, (64, 64, 64, 64, 128, 128), strict=True):
        with Image.open(picture_path(tmp_path / "pictures", style, "2764")) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (side, side))
            assert picture.getpixel((2, 2)) == CORNERS[style]
            assert picture.getpixel((side - 2, 2)) == (255, 255, 255)


def test_of_concepts_that_look_the_same_in_one_style_one_stays(installed: Path, tmp_path: Path):
    files = find_pictures(find_packages(installed))
    kept = render_pictures(concepts_of(installed), files, tmp_path / "pictures")
    names = {concept.name for concept in kept}
    assert "farmer" in names and "man farmer" not in names
    assert len(kept) == len(concepts_of(installed)) - 1


def test_a_concept_that_is_blank_in_one_style_is_left_out(installed: Path, tmp_path: Path):
    root = find_packages(installed)
    draw(root / STYLES["twitter"].replace("*", "1f40b"), (255, 255, 255), (255, 255, 255))
    kept = render_pictures(concepts_of(installed), find_pictures(root), tmp_path / "pictures")
    assert "whale" not in {concept.name for concept in kept}


def test_looking_alike_joins_through_others():
    names = {"a": "ant", "b": "bee", "c": "ox", "d": "emu", "e": "cow"}
    concepts = [Concept(image_id, name, ()) for image_id, name in names.items()]
    kept = distinct_concepts(concepts, [{"a", "b"}, {"d"}, {"d", "e"}, {"b", "c"}])
    assert [concept.image_id for concept in kept] == ["c", "d"]


def test_without_resvg_the_error_names_the_extra(installed: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(CorpusError, match=r"pip install 'speech-image-retrieval\[demo\]'"):
        render_pictures(concepts_of(installed), find_pictures(find_packages(installed)), tmp_path / "pictures")
