"""Small trees in the formats in which SpokenCOCO, SPEECH-COCO, Places Audio and Localized Narratives are published."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image

RATE = 16_000


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Names differ, and so do the pictures.
    Image.new("RGB", (16, 12), tuple(np.frombuffer(path.name.encode(), np.uint8)[-7:-4])).save(path, format="JPEG")
    return path


def recording(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.sin(np.arange(RATE // 5) / 10).astype(np.float32) / 2
    soundfile.write(path, samples, RATE, format="OGG" if path.suffix == ".ogg" else "WAV")
    return path


def write_json(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


class CocoCaption(NamedTuple):
    """A caption of SpokenCOCO; `split` is Karpathy's, with `restval` told from `train`."""

    coco_id: int
    folder: str
    split: str
    sentid: int

    @property
    def image(self) -> str:
        return f"{self.folder}/COCO_{self.folder}_{self.coco_id:012d}.jpg"

    @property
    def spoken_coco(self) -> dict[str, str]:
        uttid = f"m07{self.sentid}x-3LUY-{self.sentid}Q9_{self.coco_id}_{self.sentid}"
        return {
            "text": f"CAPTION {self.sentid} OF PICTURE {self.coco_id}",
            "speaker": f"m07{self.sentid}x",
            "uttid": uttid,
            "wav": f"wavs/{self.folder.removesuffix('2014')}/0/{uttid}.wav",
        }

    @property
    def speech_coco(self) -> str:
        return f"{self.coco_id}_{self.sentid}_Bronwen_None_0-9"


def _captions(coco_id: int, folder: str, split: str, count: int) -> list[CocoCaption]:
    return [CocoCaption(coco_id, folder, split, coco_id * 10 + number) for number in range(count)]


COCO = [
    *_captions(9, "train2014", "train", 5),
    *_captions(25, "train2014", "train", 5),
    *_captions(325114, "val2014", "restval", 5),
    *_captions(139, "val2014", "val", 5),
    *_captions(391895, "val2014", "test", 6),
    *_captions(42, "val2014", "test", 5),
]
"""Captions of pictures that are in these splits by Karpathy's lists. A picture of the test split has six."""


def _pictures(captions: Iterable[CocoCaption]) -> dict[int, list[CocoCaption]]:
    grouped: dict[int, list[CocoCaption]] = {}
    for caption in captions:
        grouped.setdefault(caption.coco_id, []).append(caption)
    return grouped


def write_coco_pictures(root: Path) -> Path:
    for own in _pictures(COCO).values():
        picture(root / own[0].image)
    return root


def write_spoken_coco_recordings(root: Path) -> Path:
    for caption in COCO:
        recording(root / caption.spoken_coco["wav"])
    return root


def _data(captions: Iterable[CocoCaption], **further: Any) -> dict[str, Any]:
    return {
        "data": [
            {"image": own[0].image, "captions": [caption.spoken_coco for caption in own], **further}
            for own in _pictures(captions).values()
        ]
    }


def _in_split(split: str) -> list[CocoCaption]:
    return [caption for caption in COCO if caption.split.replace("restval", "train") == split]


def write_release(root: Path) -> None:
    for split in ("train", "val"):
        captions = [caption for caption in COCO if caption.folder == f"{split}2014"]
        write_json(root / f"SpokenCOCO_{split}.json", _data(captions))


def write_karpathy(root: Path) -> None:
    for split in ("train", "val", "test"):
        write_json(root / f"SpokenCOCO_{split}_karpathy.json", _data(_in_split(split)))


def write_unrolled(root: Path) -> None:
    for split in ("train", "val", "test"):
        data = [{"image": caption.image, "caption": caption.spoken_coco} for caption in _in_split(split)]
        write_json(root / f"SpokenCOCO_{split}_unrolled_karpathy.json", {"data": data})


def write_ksplit(root: Path) -> None:
    for split in ("train", "val", "test"):
        values = _data(_in_split(split))
        for number, entry in enumerate(values["data"]):
            entry["reassign_id"] = 1000 * ["train", "val", "test"].index(split) + number
        write_json(root / f"SpokenCOCO_ksplit_{split}.json", values)


def karpathy_images() -> list[dict[str, Any]]:
    """The entries of Karpathy's `dataset_coco.json`."""
    return [
        {
            "filepath": own[0].folder,
            "filename": own[0].image.rpartition("/")[2],
            "cocoid": coco_id,
            "split": own[0].split,
            "sentids": [caption.sentid for caption in own],
            "sentences": [
                {"raw": f"Caption {caption.sentid} of picture {coco_id}.", "sentid": caption.sentid} for caption in own
            ],
        }
        for coco_id, own in _pictures(COCO).items()
    ]


def write_karpathys_file(path: Path) -> None:
    write_json(path, {"images": karpathy_images(), "dataset": "coco"})


def write_merged(path: Path, keys: Iterable[str] = ("split_karpathy", "split_spokencoco")) -> None:
    spoken = {caption.sentid: caption.spoken_coco for caption in COCO}
    images = karpathy_images()
    for image in images:
        splits = {"split_karpathy": image.pop("split"), "split_spokencoco": image["filepath"].removesuffix("2014")}
        image.update({key: splits[key] for key in keys})
        for sentence in image["sentences"]:
            sentence.update({key: spoken[sentence["sentid"]][key] for key in ("speaker", "uttid", "wav")})
    write_json(path, {"images": images, "dataset": "coco"})


def write_speech_coco(root: Path) -> Path:
    for caption in COCO:
        folder = root / caption.folder
        recording(folder / "wav" / f"{caption.speech_coco}.wav")
        facts = {
            "duration": 200.0,
            "speaker": "Bronwen",
            "synthesisedCaption": f"caption {caption.sentid} of um picture {caption.coco_id}",
            "timecode": [[0.0, "WORD", "caption"]],
            "speed": 0.9,
            "wavFilename": f"{caption.speech_coco}.wav",
            "captionID": caption.sentid,
            "imgID": caption.coco_id,
            "disfluency": ["um", "None"],
        }
        write_json(folder / "json" / f"{caption.speech_coco}.json", facts)
    return root


def places_entry(name: str) -> dict[str, str]:
    return {
        "uttid": f"A1{name}-GSUN_{name}",
        "speaker": f"A1{name}",
        "asr_text": f"there is a {name}",
        "wav": f"wavs/{name[-1]}/utterance_{name}.wav",
        "image": f"{name[0]}/{name}/gsun_{name}.jpg",
    }


def write_places_media(root: Path, names: Iterable[str], images: str = "images256") -> None:
    for entry in map(places_entry, names):
        recording(root / entry["wav"])
        picture(root / images / entry["image"])


def places_json(names: Iterable[str], **further: str) -> dict[str, Any]:
    bases = {"image_base_path": "/data/sls/places/images256", "audio_base_path": "/data/sls/placesaudio"}
    return {**bases, **further, "data": [places_entry(name) for name in names]}


PLACES_2020 = {
    "train": [f"abbey{number}" for number in range(3)],
    "dev_seen": ["bridge0", "bridge1"],
    "dev_unseen": ["canyon0"],
    "test_seen": ["dam0", "dam1"],
    "test_unseen": ["engine0"],
}
PLACES_2017 = {"train": [f"abbey{number}" for number in range(30)], "val": ["bridge0", "bridge1"]}


def write_places_2020(root: Path) -> None:
    for split, names in PLACES_2020.items():
        write_json(root / "metadata" / f"{split}_2020.json", places_json(names))
        write_places_media(root, names)


def write_places_2017(root: Path) -> None:
    for split, names in PLACES_2017.items():
        write_json(root / "metadata" / f"{split}.json", places_json(names))
        write_places_media(root, names)


def write_places_2017_tables(root: Path) -> None:
    keys = {"utt2wav": "wav", "utt2image": "image", "utt2spk": "speaker", "utt2ASR": "asr_text"}
    entries = [places_entry(name) for names in PLACES_2017.values() for name in names]
    (root / "metadata").mkdir(parents=True, exist_ok=True)
    (root / "lists").mkdir(exist_ok=True)
    for table, key in keys.items():
        # Not in the order of the lists.
        lines = [f"{entry['uttid']} {entry[key]}\n" for entry in reversed(entries)]
        (root / "metadata" / table).write_text("".join(lines), encoding="utf-8")
    for split, names in PLACES_2017.items():
        lines = [f"{places_entry(name)['uttid']}\n" for name in names]
        (root / "lists" / f"acl_2017_{split}_uttids").write_text("".join([*lines, "\n"]), encoding="utf-8")
        write_places_media(root, names)


def narrative(dataset_id: str, image_id: str, annotator: int, voice_recording: str) -> dict[str, Any]:
    return {
        "dataset_id": dataset_id,
        "image_id": image_id,
        "annotator_id": annotator,
        "caption": f"In this image there is {image_id}.",
        "timed_caption": [{"utterance": "In this", "start_time": 0.0, "end_time": 0.4}],
        "traces": [[{"x": 0.2, "y": -0.05, "t": 0.022}]],
        "voice_recording": voice_recording,
    }


def write_narratives(root: Path, name: str, narratives: Iterable[Mapping[str, Any]]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{name}.jsonl"
    path.write_text("".join(json.dumps(values) + "\n" for values in narratives), encoding="utf-8")
    return path
