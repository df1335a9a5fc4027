"""Serves the page: on its own, without anything from elsewhere, and with nothing kept."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .answers import Answering
from .temporary_folder import temporary_folder
from .upload_folder import UploadFolder


def serve(answerings: Sequence[Answering], host: str, port: int, note: str = "") -> None:
    """Serve until interrupted. Uploads lie in a folder of their own, which is deleted at the end.

    Args:
        answerings: of one model, each a tab of the page.
        host: address to listen at, 0.0.0.0 for all.
        port: a free one.
        note: what visitors should know, shown on the page.

    Raises:
        OSError: nothing can listen there; see :func:`.address.check_address`.
    """
    with temporary_folder() as folder:
        # Gradio reads these when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
        from starlette.middleware import Middleware

        from .door import Door
        from .page import STYLE, THEME, build_page

        uploads = UploadFolder(folder)
        uploads.keep_swept()  # Gradio's own cleaning leaves what was cut off on its way
        max_bytes = answerings[0].limits.max_bytes
        page = build_page(answerings, uploads, note)
        try:
            page.launch(
                server_name=f"[{host}]" if ":" in host else host,
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
        except OSError as error:
            raise OSError(
                f"Nothing came to listen at port {port} of {host}. Another program may hold the port at 127.0.0.1, or "
                "this machine is too busy: try again, or choose another port with --port."
            ) from error
        print(f"Serving at {page.local_url} until Ctrl+C", flush=True)
        page.block_thread()
