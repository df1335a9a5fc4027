"""The `sir` command."""

from . import corpus, evaluate, search
from .app import app

__all__ = ["app", "corpus", "evaluate", "search"]
