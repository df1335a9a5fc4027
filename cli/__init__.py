"""The `sir` command."""

from . import build, corpus, evaluate, export, index, publish, report, search, serve, sources
from .app import app

__all__ = ["app", "build", "corpus", "evaluate", "export", "index", "publish", "report", "search", "serve", "sources"]
