"""A baseline with words in between: Whisper transcribes, and transcripts are compared with captions as text.

python -m benchmarks.cascade WHISPER --corpus spoken_emoji [--split test] [--language en] [--json FILE]

Every picture stands for its captions' texts, the very words that were spoken: what a perfect captioner of pictures
would give, so that all errors are of the transcription or of texts that two pictures share. Texts are compared by
their normalised edit distance (rapidfuzz, of the test extra). Ties count against the baseline. Written to
MODEL/cascade.json, it is published with the model, as a row of the card's table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rapidfuzz import fuzz, process, utils
from speech_image_retrieval.cli.corpus import load_split
from speech_image_retrieval.corpora.progress import counted_progress
from speech_image_retrieval.evaluation import distinct_images
from speech_image_retrieval.evaluation.recall import chance_recall, ranks_of_relevant, recall_summary
from speech_image_retrieval.processing.media import load_speech
from torch import Tensor
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

_RATE = 16_000
_MAX_TOKENS = 64


def main() -> None:
    """Transcribe a split, compare, and print recalls of both directions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whisper", help="Hub name or folder of a Whisper with its decoder")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--language", help="of a multilingual Whisper; English ones take none")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = load_split(options.corpus, options.split)
    first_rows, image_of_caption = distinct_images(rows["image_id"][:])
    texts = rows["text"][:]
    refuse_missing(texts)  # before an hour of transcribing
    heard = transcribe(options.whisper, rows, options.batch_size, options.language)
    similarity = text_similarity(heard, texts, image_of_caption, len(first_rows))
    report = {
        "protocol": {
            "corpus": options.corpus,
            "split": options.split,
            "images": len(first_rows),
            "captions": len(rows),
            "whisper": options.whisper,
        },
        **recalls(similarity, image_of_caption),
    }
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report | {"transcripts": heard}, indent=1) + "\n", encoding="utf-8")


def transcribe(whisper: str, rows: Dataset, batch_size: int, language: str | None) -> list[str]:
    """What Whisper hears in each row's recording, by greedy decoding. Recordings over 30 s are cut off there,
    transcripts over 64 tokens too."""
    model = WhisperForConditionalGeneration.from_pretrained(whisper, use_safetensors=True, dtype=torch.float32).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(whisper)
    tokenizer = AutoTokenizer.from_pretrained(whisper)
    told = {} if language is None else {"language": language, "task": "transcribe"}
    heard: list[str] = []
    clips = (load_speech(row["audio"], None, _RATE) for row in rows.select_columns(["audio"]))
    with counted_progress("transcribing") as progress, torch.inference_mode():
        bar = progress.add_task("recordings", total=len(rows), status="")
        while batch := list(islice(clips, batch_size)):
            inputs = extractor(batch, sampling_rate=_RATE, return_tensors="pt", return_attention_mask=True)
            tokens = model.generate(**inputs, max_length=_MAX_TOKENS, **told)
            heard += tokenizer.batch_decode(tokens, skip_special_tokens=True)
            progress.update(bar, completed=len(heard))
    return heard


def refuse_missing(texts: Sequence[str | None]) -> None:
    """Refuse captions without a text."""
    if missing := sum(not text for text in texts):
        sys.exit(
            f"Error: {missing} of {len(texts)} captions have no text, which the cascade compares transcripts with."
        )


def text_similarity(heard: Sequence[str], texts: Sequence[str], image_of_caption: Tensor, pictures: int) -> Tensor:
    """(captions, pictures) similarity of each transcript to the nearest text of each picture, 0 to 100."""
    different = sorted(set(texts))
    place = {text: number for number, text in enumerate(different)}
    by_text = process.cdist(heard, different, scorer=fuzz.ratio, processor=utils.default_process, workers=-1)
    similarity = np.full((len(heard), pictures), -np.inf, dtype=np.float32)
    for text, picture in zip(texts, image_of_caption.tolist(), strict=True):
        similarity[:, picture] = np.maximum(similarity[:, picture], by_text[:, place[text]])
    return torch.from_numpy(similarity)


def recalls(similarity: Tensor, image_of_caption: Tensor) -> dict[str, Any]:
    """Of both directions, as `sir evaluate` gives them."""
    relevant = image_of_caption.unsqueeze(1) == torch.arange(similarity.shape[1])
    return {
        name: {"cascade": recall_summary(ranks_of_relevant(scores, of)), "chance": chance_recall(of)}
        for name, scores, of in (
            ("speech_to_image", similarity, relevant),
            ("image_to_speech", similarity.T.contiguous(), relevant.T.contiguous()),
        )
    }


if __name__ == "__main__":
    main()
