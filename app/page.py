"""The page: one tab for each index, to ask in and to see or hear the answers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr

from . import markup
from .answers import Answering
from .events import Asked, Events
from .upload_folder import UploadFolder

STYLE = Path(__file__).with_name("page.css")
THEME = gr.themes.Base(
    primary_hue="indigo",
    neutral_hue="slate",
    font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
    font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
).set(button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700")

_WAITING = 16  # requests; who comes later is told that the page is busy
_ASKED_KEPT = 3600  # seconds
_SENTENCES = {
    "image": (
        "Say what you want to see",
        "Record or upload what you want to see.",
        "The pictures that fit appear here, the best first. Click one to see why.",
    ),
    "speech": (
        "Show a picture, hear its description",
        "Upload a picture to hear how people describe it.",
        "The spoken descriptions that fit appear here, the best first.",
    ),
}
_LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
_ASK_ON_CLICK = """
element.addEventListener('click', event => {
  const asked = event.target.closest('button[data-row]');
  if (!asked) return;
  asked.setAttribute('aria-busy', 'true');
  trigger('select', {row: Number(asked.dataset.row)});
});
"""
_SHOW = """
watch('value', () => {
  document.querySelectorAll('button[aria-busy]').forEach(asked => asked.removeAttribute('aria-busy'));
  const dialog = element.querySelector('dialog');
  if (dialog && !dialog.open) dialog.showModal();
});
element.addEventListener('click', event => { if (event.target.tagName === 'DIALOG') event.target.close(); });
"""


def build_page(answerings: Sequence[Answering], uploads: UploadFolder, note: str = "") -> gr.Blocks:
    """The page, with one tab for each index.

    Args:
        note: what visitors should know, shown below the title.
        uploads: where Gradio writes uploaded files; no other file is read.
    """
    titles = {_SENTENCES[answering.gallery][0] for answering in answerings}
    title = titles.pop() if len(titles) == 1 else "Search pictures by voice, and voices by picture"
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        shown_note = f'<p class="note">{escape(note)}</p>' if note else ""
        _html(f'<h1>{title}</h1>{shown_note}<p class="model">Model {escape(answerings[0].model)}</p>')
        if len(answerings) == 1:
            _build_tab(answerings[0], uploads)
        else:
            with gr.Tabs():
                for name, answering in zip(tab_names(answerings), answerings, strict=True):
                    with gr.Tab(name):
                        _build_tab(answering, uploads)
    page.queue(max_size=_WAITING, default_concurrency_limit=1)
    return page


def tab_names(answerings: Sequence[Answering]) -> list[str]:
    """What each index is searched for or, where that is the same of several, the names of the indexes."""
    kinds = {"image": "Speech → pictures", "speech": "Picture → descriptions"}
    names = [kinds[answering.gallery] for answering in answerings]
    if len(set(names)) < len(names):
        names = [answering.name for answering in answerings]
    return [f"{name} {number}" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]


def _build_tab(answering: Answering, uploads: UploadFolder) -> None:
    events = Events(answering, uploads)
    _, invitation, hint = _SENTENCES[answering.gallery]
    what = "pictures" if answering.gallery == "image" else "recordings"
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            upload = _recording_input(answering) if answering.gallery == "image" else _picture_input()
            button = gr.Button("Search", variant="primary")
            status = _html(markup.said(f"{len(answering)} {what}. {invitation}"), _LIVE, "status")
        with gr.Column(scale=3, min_width=300):
            results = _html(markup.empty(hint), _ASK_ON_CLICK, "results")
    dialog = _html("", _SHOW, "explanation")
    asked = gr.State(None, time_to_live=_ASKED_KEPT)
    recorded = [upload.stop_recording] if answering.gallery == "image" else []

    def explain(asked: Asked | None, event: gr.EventData) -> tuple[str, str]:
        return events.explain(asked, event._data.get("row") if isinstance(event._data, dict) else None)

    options = {
        "concurrency_id": "model",
        "concurrency_limit": 1,
        "api_visibility": "private",
        "show_progress": "minimal",
        "show_progress_on": status,
    }
    # Not preprocessed, because Gradio would open a picture before its size is known.
    triggers = [button.click, upload.upload, *recorded]
    gr.on(triggers, events.search, upload, [status, results, asked], preprocess=False, **options)
    results.select(explain, asked, [status, dialog], **options)


def _html(value: str, on_load: str | None = None, classes: str | None = None) -> gr.HTML:
    return gr.HTML(value, js_on_load=on_load, elem_classes=classes, apply_default_css=False)


def _recording_input(answering: Answering) -> gr.Audio:
    return gr.Audio(
        sources=["microphone", "upload"],
        type="filepath",
        label=f"Describe a picture, at most {answering.limits.max_seconds:g} seconds",
        editable=False,
        buttons=[],
    )


def _picture_input() -> gr.Image:
    sources = ["upload", "webcam", "clipboard"]
    return gr.Image(sources=sources, type="filepath", label="Show a picture", buttons=[], height=280)
