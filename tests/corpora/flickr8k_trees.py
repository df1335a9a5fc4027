"""Folders in the layouts in which people have Flickr8k Audio, with the defects that the archive has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

PICTURES = {
    "1000268201_693b08cb0e": "train",
    "1001773457_577c3a7d70": "train",
    "2090545563_a4e66ec76b": "validation",
    "3385593926_d3e9c21170": "test",
}
"""Pictures of the archive with their official splits."""
RATE = 16_000
EXTRA_PICTURE = "2258277193_586949ec62.jpg"
SILENCED = "1001773457_577c3a7d70_0.wav"  # by its header, in write_recordings(broken=True)


def caption(stem: str, number: int) -> str:
    return f'{stem} {number}: two dogs , one "spotted" , run .'


def wav_names() -> list[str]:
    return [f"{stem}_{number}.wav" for stem in PICTURES for number in range(5)]


def write_recordings(root: Path, broken: bool = False, capt: bool = True) -> None:
    """`wavs/` with `wav2capt.txt` and `wav2spk.txt`; a stray file whose suffix is "txt" lies there too."""
    wavs = root / "wavs"
    wavs.mkdir(parents=True)
    for number, name in enumerate(wav_names()):
        soundfile.write(wavs / name, np.full(RATE // 4, number, dtype=np.int16), RATE, subtype="PCM_16")
    (wavs / "1000268201_693b08cb0e_txt.wav").write_bytes(b"")
    if broken:
        whole = (wavs / SILENCED).read_bytes()
        (wavs / SILENCED).write_bytes(whole[:40] + (16).to_bytes(4, "little") + whole[44:])
    if capt:
        lines = [f"{name} {name.rpartition('_')[0]}.jpg #{name[-5]}" for name in wav_names()]
        (root / "wav2capt.txt").write_text("\n".join(reversed(lines)) + "\n")
        lines = [f"{name} {number % 3 + 1}" for number, name in enumerate(wav_names())]
        (root / "wav2spk.txt").write_text("\n".join(lines) + "\n")


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"{stem}.jpg" for stem in PICTURES), EXTRA_PICTURE]):
        Image.new("RGB", (40, 30), (number * 40, 90, 0)).save(folder / name)


def write_tokens(path: Path) -> None:
    lines = [f"{stem}.jpg#{number}\t{caption(stem, number)}" for stem in PICTURES for number in range(5)]
    lines += [f"2258277193_586949ec62.jpg.1#{number}\ta picture that is not there ." for number in range(5)]
    path.write_text("\n".join(lines) + "\n")


def write_lists(root: Path) -> None:
    for split, name in {"train": "train", "validation": "dev", "test": "test"}.items():
        lines = [f"{stem}.jpg" for stem, own in PICTURES.items() if own == split]
        (root / f"Flickr_8k.{name}Images.txt").write_text("\n".join([*lines, "", ""]))


def write_kaggle_captions(path: Path) -> None:
    """Captions with commas are quoted in some copies and not in others."""
    lines = ["image,caption"]
    for stem in PICTURES:
        for number in range(5):
            text = caption(stem, number)
            quoted = '"' + text.replace('"', '""') + '"'
            lines.append(f"{stem}.jpg,{quoted if number % 2 else text}")
    path.write_text("\n".join(lines) + "\n")


def write_karpathy(path: Path) -> None:
    names = {"train": "train", "validation": "val", "test": "test"}
    images = [
        {
            "filename": f"{stem}.jpg",
            "imgid": place,
            "split": names[split],
            "sentids": [place * 5 + number for number in range(5)],
            "sentences": [
                {"raw": caption(stem, number), "tokens": [], "imgid": place, "sentid": place * 5 + number}
                for number in range(5)
            ],
        }
        for place, (stem, split) in enumerate(PICTURES.items())
    ]
    path.write_text(json.dumps({"images": images, "dataset": "flickr8k"}))


def original(root: Path, images: str = "Flicker8k_Dataset", broken: bool = False) -> list[Path]:
    write_recordings(root / "flickr_audio", broken=broken)
    write_images(root / images)
    write_tokens(root / "Flickr8k.token.txt")
    write_lists(root)
    return [root]


def kaggle(root: Path) -> list[Path]:
    write_recordings(root / "flickr-8k-audio-caption-corpus" / "flickr_audio")
    write_images(root / "flickr8k" / "Images")
    write_kaggle_captions(root / "flickr8k" / "captions.txt")
    return [root / "flickr-8k-audio-caption-corpus", root / "flickr8k"]


def karpathy(root: Path) -> list[Path]:
    write_recordings(root / "flickr_audio")
    write_images(root / "Flickr8k" / "Images")
    write_karpathy(root / "Flickr8k" / "dataset.json")
    return [root]
