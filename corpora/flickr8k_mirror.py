"""Flickr8k Audio Captions as the Hub mirrors them: recordings, pictures and which belongs to which, in one split.

`deep9539/flickr-audio-image` has the configurations `audio` (id, audio), `images` (id, image, text: the first caption
only) and `qrels` (image_id, audio_id), without speakers; a recording's id ends in the number of its caption. The
official splits are put back by file name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datasets import Audio, Dataset, Image, get_dataset_config_names, load_dataset

from .building import Reading
from .flickr8k_audio import NO_RECORDING, NO_TEXT, OFFICIAL_PICTURES, official_split
from .hub import is_hub_id
from .schema import CorpusError, SpokenCaption

CONFIGURATIONS = ("audio", "images", "qrels")


def is_mirror(source: str | Path) -> bool:
    """Whether it is a Hub id, or a folder of the mirror's Parquet files."""
    folder = Path(source)
    return (folder / "qrels").is_dir() or is_hub_id(str(source))


def read_flickr8k_mirror(source: str | Path) -> Reading:
    """Rows of the mirror, by its Hub id or from a folder that it was downloaded to. They hold their media, for the
    mirror has these in its Parquet files.

    Raises:
        CorpusError: a configuration or a column of it is missing.
    """
    audio, images, pairs = (_configuration(str(source), name) for name in CONFIGURATIONS)
    reading = Reading(rows=(), expected_rows=len(pairs))
    reading.notes += [
        f"Splits: the official lists that come with this package; {source} has none.",
        "Captions: the first of each picture, which is all that the mirror has.",
    ]
    reading.rows = _rows(audio, images, pairs, reading)
    return reading


def _configuration(source: str, name: str) -> Dataset:
    columns = {"audio": ("id", "audio"), "images": ("id", "image", "text"), "qrels": ("image_id", "audio_id")}[name]
    try:
        known = get_dataset_config_names(source)
        options = {"name": name} if name in known else {"data_dir": name}
        data = load_dataset(source, **options, split="train")
    except (ValueError, FileNotFoundError) as error:
        raise CorpusError(f"{source} has no configuration {name!r}: {str(error).splitlines()[0]}") from error
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        raise CorpusError(
            f"{source}, {name}: no column {', '.join(missing)}; there are {', '.join(data.column_names)}."
        )
    for column, undecoded in (("audio", Audio(decode=False)), ("image", Image(decode=False))):
        if column in columns:
            data = data.cast_column(column, undecoded)
    return data


def _rows(audio: Dataset, images: Dataset, pairs: Dataset, reading: Reading) -> Iterator[tuple[str, SpokenCaption]]:
    place_of = {image_id: place for place, image_id in enumerate(images["id"])}
    image_of = dict(zip(pairs["audio_id"], pairs["image_id"], strict=True))
    for image_id in sorted(place_of.keys() - set(image_of.values())):
        reading.findings.add(NO_RECORDING, image_id)
    found = {split: set() for split in OFFICIAL_PICTURES}
    for recording in audio:
        image_id = image_of.get(recording["id"])
        if image_id not in place_of:
            raise CorpusError(f"Recording {recording['id']!r} has no picture: qrels name {image_id!r} for it.")
        picture = images[place_of[image_id]]
        stem = image_id.removesuffix(".jpg")
        caption_id = recording["id"].removesuffix(".wav")
        text = picture["text"] if caption_id.endswith("_0") else None
        if text is None:
            reading.findings.add(NO_TEXT, caption_id)
        split = official_split(stem)
        found[split].add(stem)
        yield (
            split,
            SpokenCaption(
                image=picture["image"],
                audio=recording["audio"],
                image_id=stem,
                caption_id=caption_id,
                text=text,
                speaker=None,
                language="en",
            ),
        )
    counts = " / ".join(str(len(found[split])) for split in OFFICIAL_PICTURES)
    reading.notes.append(f"{counts} pictures; officially {' / '.join(map(str, OFFICIAL_PICTURES.values()))}.")
