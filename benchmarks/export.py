"""What ONNX Runtime and int8 cost in recall and give in speed and size, beside PyTorch, in one run.

python -m benchmarks.export MODEL --corpus spoken_shapes [--captions 1000] [--rerank-top-k 32] [--threads 1]

MODEL is exported in float32 and in int8 (`sir export`), and all three encode and re-rank the same rows of the test
split. Times are those of serving, in turns of all three: one clip, eight pictures, one clip with `--rerank-top-k`
pictures. The first turn warms up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import onnxruntime
import torch
from speech_image_retrieval.cli.app import load_model
from speech_image_retrieval.cli.corpus import load_split
from speech_image_retrieval.evaluation.protocol import DIRECTIONS, measure
from speech_image_retrieval.evaluation.ranking import coarse_scores, match_gallery, ranked_gallery
from speech_image_retrieval.evaluation.split import EncodedSplit, encode_split
from speech_image_retrieval.export.onnx_folder import export_onnx
from torch import Tensor, nn

_PICTURES_AT_ONCE = 8


class OnnxModel(nn.Module):
    """An exported folder, called as the model is that it was exported from."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, folder: Path, threads: int):
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        graphs = ("speech_encoder", "image_encoder", "matching")
        self.sessions = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx", options) for name in graphs}

    def _run(self, graph: str, **inputs: Tensor) -> dict[str, Tensor]:
        session = self.sessions[graph]
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {of.name: torch.from_numpy(output) for of, output in zip(session.get_outputs(), outputs, strict=True)}

    def get_speech_features(self, **inputs: Tensor) -> SimpleNamespace:
        """As of the model; speech that was split into chunks is not taken."""
        outputs = self._run("speech_encoder", **inputs)
        return SimpleNamespace(attention_mask=outputs.pop("states_mask"), **outputs)

    def get_image_features(self, pixel_values: Tensor) -> SimpleNamespace:
        """As of the model."""
        return SimpleNamespace(**self._run("image_encoder", pixel_values=pixel_values))

    def project_images(self, image_states: Tensor) -> Tensor:
        """The states themselves: the graph projects those that it matches."""
        return image_states

    def match(
        self, speech_states: Tensor, speech_mask: Tensor, image_states: Tensor, image_rows: Tensor, speech_rows: Tensor
    ) -> Tensor:
        """As of the model."""
        images, image_rows = image_rows.unique(return_inverse=True)
        return self._run(
            "matching",
            speech_states=speech_states,
            speech_mask=speech_mask,
            image_states=image_states[images],
            image_rows=image_rows,
            speech_rows=speech_rows,
        )["logits"]


def main() -> None:
    """Export, encode, rank and time, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--captions", type=int, default=1000, help="of the test split, with their pictures")
    parser.add_argument("--rerank-top-k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, processor = load_model(options.model)
    rows = load_split(options.corpus, "test")
    rows = rows.select(range(min(options.captions, len(rows))))
    with TemporaryDirectory() as place:
        folders = {"ONNX": Path(place) / "onnx", "ONNX int8": Path(place) / "int8"}
        for name, folder in folders.items():
            export_onnx(model, processor, folder, int8=name.endswith("int8"))
        models = {"PyTorch": model, **{name: OnnxModel(folder, options.threads) for name, folder in folders.items()}}
        megabytes = {
            name: sum(path.stat().st_size for path in of.glob("*.onnx*")) / 1e6 for name, of in folders.items()
        }
    megabytes["PyTorch"] = sum(weight.nbytes for weight in model.parameters()) / 1e6
    splits = {name: encode_split(of, processor, rows, name=options.corpus) for name, of in models.items()}
    temperature = model.temperature.item()
    table = {name: recalls(of, splits[name], options.rerank_top_k, temperature) for name, of in models.items()}
    for name, milliseconds in serving_times(models, processor, rows, splits["PyTorch"], options).items():
        table[name] |= milliseconds | {"MB": megabytes[name]}
    images = len(splits["PyTorch"].first_rows)
    print(f"{len(rows)} captions, {images} pictures, {options.rerank_top_k} re-ranked, {options.threads} thread(s)")
    print("", *table, sep=" | ")
    for figure in table["PyTorch"]:
        print(figure, *(f"{of[figure]:.1f}" for of in table.values()), sep=" | ")


def recalls(model: nn.Module, split: EncodedSplit, top_k: int, temperature: float) -> dict[str, float]:
    """R@1 in per cent of both directions: coarse, and re-ranked by either score rule."""
    coarse = coarse_scores(split.speech, split.images)
    matched = match_gallery(model, split.speech, split.images, top_k)
    found = {}
    for rule in ("sim", "sim+sic"):
        figures = measure(ranked_gallery(coarse, split.image_of_caption, matched, rule, temperature)).figures
        for direction in DIRECTIONS:
            found[f"R@1 {direction} coarse"] = figures[direction]["coarse"]["R@1"]
            found[f"R@1 {direction} {rule}"] = figures[direction]["reranked"]["R@1"]
    return found


def serving_times(
    models: dict[str, nn.Module],
    processor: Callable,
    rows: object,
    split: EncodedSplit,
    options: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Milliseconds of each model: for one clip, for some pictures, and to match one clip with the candidates."""
    clips = [processor(audio=row["audio"], return_tensors="pt") for row in rows.select(range(8))]
    pictures = processor(images=rows.select(range(_PICTURES_AT_ONCE))["image"][:], return_tensors="pt")
    states, mask = split.speech.states.padded(torch.tensor([0]))
    candidates = torch.arange(min(options.rerank_top_k, len(split.images.states)))
    pairs = (states, mask, split.images.states[candidates], candidates, torch.zeros_like(candidates))
    work: dict[str, Callable[[nn.Module, int], object]] = {
        "ms one clip": lambda model, turn: model.get_speech_features(**clips[turn % len(clips)]),
        f"ms {_PICTURES_AT_ONCE} pictures": lambda model, _: model.get_image_features(**pictures),
        f"ms {len(candidates)} pairs": lambda model, _: model.match(*pairs),
    }
    taken = {name: dict.fromkeys(work, 0.0) for name in models}
    with torch.inference_mode():
        for turn in range(options.rounds + 1):
            for name, model in models.items():
                for what, do in work.items():
                    started = time.perf_counter()
                    do(model, turn)
                    taken[name][what] += (time.perf_counter() - started) * 1000 / options.rounds if turn else 0.0
    return taken


if __name__ == "__main__":
    main()
