"""Places Audio: about 400,000 descriptions of Places205 pictures, spoken freely by Mechanical Turk workers.

Harwath, Torralba & Glass (NeurIPS 2016), Harwath et al. (ECCV 2018); recordings and their JSON are at
https://groups.csail.mit.edu/sls/downloads/placesaudio/, the pictures at http://places.csail.mit.edu. A picture has one
caption, and results are reported on pools of 1,000 pairs. Transcripts are a speech recogniser's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .building import Reading
from .entries import top_level_text
from .findings import Findings
from .harwath_json import stream_utterances
from .kaldi_table import KaldiTable
from .locating import MediaFolders, checked_relative, find_files, nothing_found, walk
from .media_facts import EMPTY, NO_SAMPLES, UNREADABLE
from .schema import Media, SpokenCaption
from .splits import drawn_validation_note, with_drawn_validation

NO_TEXT = "caption without a transcript, kept"
NO_SPEAKER = "caption without a speaker, kept"

_RELEASE_2020 = {
    "train": "train_2020.json",
    "validation": "dev_seen_2020.json",
    "test": "test_seen_2020.json",
    "test_unseen": "test_unseen_2020.json",
    "test_dev_unseen": "dev_unseen_2020.json",
}
_NEEDED_2020 = ("train", "validation", "test")
_RELEASE_2017 = {"train": "train.json", "test": "val.json"}
_LISTS_2017 = {"train": "acl_2017_train_uttids", "test": "acl_2017_val_uttids"}
_TABLES = ("utt2wav", "utt2image", "utt2spk", "utt2ASR")
_NEEDED_TABLES = ("utt2wav", "utt2image")
_BASE_PATHS = ("audio_base_path", "image_base_path")
# Releases and copies differ in these; `asr_text` and `speaker` are the first.
_TEXT = ("asr_text", "text", "caption")
_SPEAKER = ("speaker", "spk")


class _Caption(NamedTuple):
    image: str
    wav: str
    caption_id: str
    text: str | None
    speaker: str | None


class _Layout(NamedTuple):
    """A form of the metadata: by split, a function that reads its captions, and folders that paths may start from."""

    name: str
    captions: Mapping[str, Callable[[], Iterator[_Caption]]]
    likely: Sequence[Path]
    has_validation: bool


def read_places_audio(sources: Sequence[Path]) -> Reading:
    """Rows of Places Audio as it lies in one or several folders.

    The metadata may be in any of these forms. If several are there, the first is read:

    1. The release of 2020, `metadata/{train,dev_seen,test_seen}_2020.json` and, if they are there,
       `metadata/{dev_unseen,test_unseen}_2020.json`. Of the splits, `validation` is dev_seen, `test` is test_seen,
       `test_unseen` has its name and dev_unseen is `test_dev_unseen`.
    2. The release of 2017, `metadata/{train,val}.json`.
    3. The same in Kaldi's tables, `metadata/{utt2wav,utt2image,utt2spk,utt2ASR}`, with `lists/acl_2017_train_uttids`
       and `lists/acl_2017_val_uttids`.

    The release of 2017 has no test split, and results are reported on its val: that is `test`, and `validation` is
    drawn from train by picture, the same on every machine.

    Paths start from `audio_base_path` and `image_base_path` of the JSON if these exist here and have the files, else
    from whichever folder of the sources has them. `image_id` is the path of the picture, `caption_id` the `uttid`.
    The corpus has recordings that are empty or broken; their captions are left out and reported.

    Raises:
        CorpusError: none of these there, a file that is no valid JSON, an entry without a key that it needs, or a path
            that leads out of the corpus.
    """
    layouts = _layouts(sources)
    if not layouts:
        raise nothing_found("Places Audio", sources, _looked_for())
    layout = layouts[0]
    reading = Reading(rows=(), known_defects=frozenset((EMPTY, UNREADABLE, NO_SAMPLES)))
    reading.notes.append(f"Read: {layout.name}.")
    if layouts[1:]:
        reading.notes.append(f"Also there and not read: {'; '.join(other.name for other in layouts[1:])}.")
    reading.rows = _rows(layout, MediaFolders(sources, layout.likely), reading.findings)
    if not layout.has_validation:
        reading.notes.append(drawn_validation_note("The release of 2017"))
        training = layout.captions["train"]()
        reading.rows = with_drawn_validation(reading.rows, (caption.image for caption in training))
    return reading


def _layouts(sources: Sequence[Path]) -> list[_Layout]:
    """Those of which all needed files are there, the latest first."""
    layouts = []
    files = find_files(sources, _RELEASE_2020.values())
    if all(_RELEASE_2020[split] in files for split in _NEEDED_2020):
        there = {split: files[name] for split, name in _RELEASE_2020.items() if name in files}
        layouts.append(_json_layout("the release of 2020", there, has_validation=True))
    folder = next((folder for folder in walk(sources) if _holds(folder, _RELEASE_2017.values())), None)
    if folder:
        there = {split: folder / name for split, name in _RELEASE_2017.items()}
        layouts.append(_json_layout("the release of 2017", there, has_validation=False))
    files = find_files(sources, [*_TABLES, *_LISTS_2017.values()])
    if files.keys() >= {*_NEEDED_TABLES, *_LISTS_2017.values()}:
        layouts.append(_kaldi_layout(files))
    return layouts


def _looked_for() -> list[str]:
    return [
        " and ".join(_RELEASE_2020[split] for split in _NEEDED_2020),
        " and ".join(_RELEASE_2017.values()) + " in one folder",
        " and ".join([*_NEEDED_TABLES, *_LISTS_2017.values()]),
    ]


def _holds(folder: Path, names: Iterator[str]) -> bool:
    return all((folder / name).is_file() for name in names)


def _json_layout(release: str, files: Mapping[str, Path], has_validation: bool) -> _Layout:
    stated = [top_level_text(file, key) for file in files.values() for key in _BASE_PATHS]
    # Made on the machine of the authors, so that most exist nowhere else.
    bases = [Path(path) for path in stated if path and Path(path).is_absolute() and Path(path).is_dir()]
    likely = [folder for file in files.values() for folder in (file.parent.parent, file.parent)]
    return _Layout(
        name=f"{release} ({', '.join(map(str, files.values()))})",
        captions={split: partial(_json_captions, file) for split, file in files.items()},
        likely=[*bases, *likely],
        has_validation=has_validation,
    )


def _kaldi_layout(files: Mapping[str, Path]) -> _Layout:
    tables = {name: files[name] for name in _TABLES if name in files}
    lists = {split: files[name] for split, name in _LISTS_2017.items()}
    return _Layout(
        name=f"the release of 2017 in Kaldi's tables ({', '.join(map(str, [*tables.values(), *lists.values()]))})",
        captions={split: partial(_kaldi_captions, tables, file) for split, file in lists.items()},
        likely=[folder for file in tables.values() for folder in (file.parent.parent, file.parent)],
        has_validation=False,
    )


def _json_captions(path: Path) -> Iterator[_Caption]:
    for picture, caption in stream_utterances(path):
        yield _Caption(
            image=picture.relative_path("image"),
            wav=caption.relative_path("wav"),
            caption_id=caption.required_text("uttid"),
            text=caption.text(*_TEXT),
            speaker=caption.text(*_SPEAKER),
        )


def _kaldi_captions(paths: Mapping[str, Path], uttids: Path) -> Iterator[_Caption]:
    tables = {name: KaldiTable(path) for name, path in paths.items()}

    def path(name: str, uttid: str) -> str:
        return checked_relative(tables[name].required(uttid), f"{paths[name]}, {uttid}")

    with uttids.open(encoding="utf-8") as lines:
        for uttid in filter(None, map(str.strip, lines)):
            yield _Caption(
                image=path("utt2image", uttid),
                wav=path("utt2wav", uttid),
                caption_id=uttid,
                text=tables["utt2ASR"].get(uttid) if "utt2ASR" in tables else None,
                speaker=tables["utt2spk"].get(uttid) if "utt2spk" in tables else None,
            )


def _rows(layout: _Layout, folders: MediaFolders, findings: Findings) -> Iterator[tuple[str, SpokenCaption]]:
    for split, captions in layout.captions.items():
        for caption in captions():
            if caption.text is None:
                findings.add(NO_TEXT, caption.caption_id)
            if caption.speaker is None:
                findings.add(NO_SPEAKER, caption.caption_id)
            yield split, _row(caption, folders)


def _row(caption: _Caption, folders: MediaFolders) -> SpokenCaption:
    return SpokenCaption(
        image=Media(bytes=None, path=str(folders.path(caption.image, "picture"))),
        audio=Media(bytes=None, path=str(folders.path(caption.wav, "recording"))),
        image_id=caption.image,
        caption_id=caption.caption_id,
        text=caption.text,
        speaker=caption.speaker,
        language="en",
    )
