"""`sir`, with an explanation that needs no model."""

from __future__ import annotations

import sys
from types import ModuleType

from PIL import Image
from speech_image_retrieval.cli import app
from speech_image_retrieval.retrieval.index import SpeechImageIndex

drawing = ModuleType("speech_image_retrieval.retrieval.explanation_picture")
drawing.draw_explanation = lambda explanation: Image.new("RGB", (900, 300), "teal")
sys.modules[drawing.__name__] = drawing
SpeechImageIndex.explain = lambda self, query, item_id: None

app()
