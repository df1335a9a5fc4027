"""How fast a corpus in Flickr8k Audio's layout is built and checked, and how much memory that takes.

python -m benchmarks.corpus_build [--clips 10000 40000] [--num-proc 2]

The corpus is generated: recordings of noise of about two seconds, five a picture, and pictures of noise. Memory is the
largest sum over the process and its children, sampled ten times a second, of what each does not share with others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile
from PIL import Image
from rich.progress import track
from speech_image_retrieval.corpora.flickr8k_audio import OFFICIAL_PICTURES

RATE = 16_000
CAPTIONS = 5


def main() -> None:
    """Generate, build, check, and print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 40_000])
    parser.add_argument("--num-proc", type=int, default=None)
    parser.add_argument("--keep", type=Path, help="generate here, and leave it there")
    options = parser.parse_args()
    processes = [] if options.num_proc is None else ["--num-proc", str(options.num_proc)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        for clips in options.clips:
            source, corpus = folder / f"source-{clips}", folder / f"corpus-{clips}"
            if not source.exists():
                generate(source, clips)
            build = ["corpus", "build", "flickr8k_audio", "--source", str(source), "--out", str(corpus), *processes]
            check = ["corpus", "check", str(corpus), *processes]
            for name, command in (("build", build), ("check", check)):
                seconds, memory = measured([sys.executable, "-m", "speech_image_retrieval.cli", *command])
                print(
                    f"{name} {clips:>7,} clips x {clips // CAPTIONS:>6,} pictures: {seconds:7.1f} s, "
                    f"{clips / seconds:7.0f} clips/s, {memory / 1e6:7.0f} MB at most"
                )


def generate(root: Path, clips: int) -> None:
    """The original layout, with split lists in the official proportion."""
    random = np.random.default_rng(0)
    wavs, images = root / "flickr_audio" / "wavs", root / "Images"
    wavs.mkdir(parents=True)
    images.mkdir()
    names = [f"{1_000_000 + number}_{number:010x}" for number in range(clips // CAPTIONS)]
    capt, spk, tokens = [], [], []
    for name in track(names, f"generating {clips:,} clips"):
        pixels = random.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((500, 375)).save(images / f"{name}.jpg", quality=90)
        for number in range(CAPTIONS):
            samples = random.integers(-9000, 9000, int(RATE * random.uniform(1, 3)), dtype=np.int16)
            soundfile.write(wavs / f"{name}_{number}.wav", samples, RATE, subtype="PCM_16")
            capt.append(f"{name}_{number}.wav {name}.jpg #{number}\n")
            spk.append(f"{name}_{number}.wav {random.integers(1, 184)}\n")
            tokens.append(f"{name}.jpg#{number}\tA generated caption , number {number} , of {name} .\n")
    (root / "flickr_audio" / "wav2capt.txt").write_text("".join(capt))
    (root / "flickr_audio" / "wav2spk.txt").write_text("".join(spk))
    (root / "Flickr8k.token.txt").write_text("".join(tokens))
    shares = np.cumsum(list(OFFICIAL_PICTURES.values())) / sum(OFFICIAL_PICTURES.values())
    bounds = [0, *(int(share * len(names)) for share in shares)]
    for start, end, split in zip(bounds[:-1], bounds[1:], ("train", "dev", "test"), strict=True):
        lines = "".join(f"{name}.jpg\n" for name in names[start:end])
        (root / f"Flickr_8k.{split}Images.txt").write_text(lines)


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds of a command, and the largest memory that it and its children held together."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, _private_memory(process.pid))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return time.perf_counter() - started, peak


def _private_memory(pid: int) -> int:
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


if __name__ == "__main__":
    main()
