"""A page over a published model and the galleries that it ships: speak and see, show and hear.

MODEL_ID is a model on the Hub, with MODEL_REVISION, a commit; or a folder.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import has_file

Image.MAX_IMAGE_PIXELS = 40_000_000  # Gradio opens what is sent before anything here can look at it
_GALLERIES = {"image": "gallery/images", "speech": "gallery/speech"}
_ANSWERS = 12
_MAX_BYTES = 10_000_000
_KEPT_SECONDS = 1800
_TITLE = "Say what you want to see"
_THEME = gr.themes.Base(font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")])  # asks no other host
_STYLE = """
.cards { display: grid; gap: 0.8rem; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(min(150px, 45%), 1fr)); }
.cards li, .descriptions li { list-style: none; margin: 0 0 0.6rem; min-width: 0; overflow-wrap: anywhere; }
.cards img { width: 100%; aspect-ratio: 1; object-fit: contain; }
.descriptions { padding: 0; }
.descriptions audio { width: 100%; }
.scores { font-size: 0.8rem; opacity: 0.75; }
.problem { border-left: 3px solid #d97706; padding: 0.6rem 0.8rem; }
"""


def chosen_model() -> dict[str, str]:
    """Which model, pinned: its code is run here."""
    model, revision = os.environ.get("MODEL_ID"), os.environ.get("MODEL_REVISION", "")
    if not model:
        raise SystemExit("Set MODEL_ID to a model on the Hub, in the settings of the Space, or to a folder.")
    if Path(model).is_dir():
        return {"model": model}
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise SystemExit(f"Set MODEL_REVISION to the commit of {model} whose code you read, 40 hexadecimal digits.")
    return {"model": model, "revision": revision}


def cards(answers: Sequence[dict[str, Any]]) -> str:
    """Pictures, the best first. Labels are strangers' words."""
    items = "".join(
        f'<li class="card"><img src="data:image/jpeg;base64,{_base64(answer)}" alt="{escape(answer["label"])}">'
        f"{_caption(answer)}</li>"
        for answer in answers
    )
    return f'<ol class="cards">{items}</ol>'


def players(answers: Sequence[dict[str, Any]]) -> str:
    """Recordings, the best first."""
    items = "".join(
        f'<li class="description">{_caption(answer)}<audio controls preload="metadata" '
        f'aria-label="{escape(answer["label"])}" src="data:audio/flac;base64,{_base64(answer)}"></audio></li>'
        for answer in answers
    )
    return f'<ol class="descriptions">{items}</ol>'


def _caption(answer: dict[str, Any]) -> str:
    match = "" if answer["match"] is None else f"match {answer['match']:+.2f}, "
    return f'<div>{escape(answer["label"])}</div><div class="scores">{match}similarity {answer["score"]:.3f}</div>'


def _base64(answer: dict[str, Any]) -> str:
    return b64encode(Path(answer["file"]).read_bytes()).decode()


def build_page() -> gr.Blocks:
    """One tab for each gallery that the model ships."""
    model = chosen_model()
    pipe = pipeline("speech-image-retrieval", trust_remote_code=True, **model)
    source = {"pretrained_model_name_or_path": model["model"], "revision": model.get("revision")}
    limits = get_class_from_dynamic_module("uploads.UploadLimits", **source)(max_megabytes=_MAX_BYTES / 1e6)

    def answering(reader: str, show: Callable) -> Callable[[str | None], str]:
        read = get_class_from_dynamic_module(f"uploads.{reader}", **source)

        def search(upload: str | None) -> str:
            if upload is None:
                return '<p class="problem" role="alert">Record, upload or take something first.</p>'
            try:
                return show(pipe(read(Path(upload), limits), top_k=_ANSWERS))
            except ValueError as error:  # which says what was wrong with the file
                return f'<p class="problem" role="alert">{escape(str(error))}</p>'

        return search

    galleries = {modality: _gallery(pipe, model, modality) for modality in _GALLERIES}
    if not any(galleries.values()):
        raise SystemExit(f"{model['model']} ships no gallery to search. Publish it with one.")
    with gr.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as page:
        gr.Markdown(f"# {_TITLE}")
        if galleries["image"]:
            with gr.Tab("Speak"):
                spoken = gr.Audio(sources=["microphone", "upload"], type="filepath", label="Describe a picture")
                _build_tab(spoken, answering("read_recording", cards), galleries["image"], "pictures")
        if galleries["speech"]:
            with gr.Tab("Show a picture"):
                shown = gr.Image(
                    sources=["upload", "webcam"], type="filepath", label="To hear its descriptions", height=280
                )
                _build_tab(shown, answering("read_picture", players), galleries["speech"], "spoken descriptions")
    return page.queue(max_size=16, default_concurrency_limit=1)


def _gallery(pipe: Any, model: dict[str, str], modality: str) -> int:
    """How many items it has; 0 for none.

    Raises:
        ValueError: it is damaged, or another model's.
    """
    there = has_file(model["model"], f"{_GALLERIES[modality]}/gallery.json", revision=model.get("revision"))
    return len(pipe.shipped_gallery(modality)) if there else 0


def _build_tab(upload: gr.components.Component, search: Callable, count: int, what: str) -> None:
    button = gr.Button("Search", variant="primary")
    results = gr.HTML(f"<p>{count} {what} to be found.</p>")
    recorded = [upload.stop_recording] if isinstance(upload, gr.Audio) else []
    gr.on(
        [button.click, upload.upload, *recorded],
        search,
        upload,
        results,
        concurrency_id="model",
        api_visibility="private",
    )


if __name__ == "__main__":
    build_page().launch(max_file_size=_MAX_BYTES, theme=_THEME, css=_STYLE, ssr_mode=False, show_error=False)
