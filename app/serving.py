"""Serves the page: on its own, without anything from elsewhere, and with nothing kept."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from .answers import Answering
from .upload_folder import UploadFolder


def serve(answerings: Sequence[Answering], host: str, port: int, note: str = "") -> None:
    """Serve until interrupted. Uploads lie in a folder of their own, which is deleted at the end.

    Args:
        answerings: of one model, each a tab of the page.
        host: address to listen at, 0.0.0.0 for all.
        port: a free one.
        note: what visitors should know, shown on the page.

    Raises:
        OSError: the port is taken.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # which deletes the folder, as Ctrl+C does
    with TemporaryDirectory(prefix="sir-app-") as folder:
        # Gradio reads these when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        from starlette.middleware import Middleware

        from .door import Door
        from .page import STYLE, THEME, build_page

        uploads = UploadFolder(Path(folder))
        uploads.keep_swept()  # Gradio's own cleaning leaves what was cut off on its way
        max_bytes = answerings[0].limits.max_bytes
        page = build_page(answerings, uploads, note)
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            show_error=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            inbrowser=False,
            max_file_size=max_bytes,
            state_session_capacity=1000,
            theme=THEME,
            css_paths=[STYLE],
            app_kwargs={
                "middleware": [Middleware(Door, uploads=uploads, max_bytes=max_bytes)],
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
            },
        )
        print(f"Serving at {page.local_url} until Ctrl+C", flush=True)
        page.block_thread()
