from __future__ import annotations

from hypothesis import settings

# The machine may be busy training while the tests run.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
