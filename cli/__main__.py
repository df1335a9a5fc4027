"""`python -m speech_image_retrieval.cli`, for where the `sir` command is not on the path."""

from . import app

app(prog_name="sir")
