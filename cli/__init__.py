"""The `sir` command."""

from . import build, corpus, evaluate, index, report, search, serve, sources
from .app import app

__all__ = ["app", "build", "corpus", "evaluate", "index", "report", "search", "serve", "sources"]
