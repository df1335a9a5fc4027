"""`sir app`: a page to search indexes with."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from .app import RerankOption, ScoreRuleOption, app
from .search_index import load_model_of, require_lancedb


@app.command("app")
def serve(
    indexes: Annotated[
        list[str], typer.Argument(metavar="INDEX...", help="Indexes of one model; each becomes a tab of the page.")
    ],
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Where the model of the indexes is now.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 7860,
    top_k: Annotated[int, typer.Option(min=1, max=100, help="Results for each query.")] = 12,
    rerank_top_k: RerankOption = 32,
    score_rule: ScoreRuleOption = "sim",
    note: Annotated[
        str, typer.Option(metavar="TEXT", help="Shown on the page: for instance, which languages and voices it knows.")
    ] = "",
    max_seconds: Annotated[float, typer.Option(min=1, help="Longest recording that is taken, in seconds.")] = 30,
    max_megabytes: Annotated[float, typer.Option(min=0.1, help="Largest file that is taken, in MB.")] = 10,
) -> None:
    """Serve a page: speak and see pictures, show a picture and hear its descriptions.

    Nothing that visitors send is kept. There is no log-in: to expose the page, put it behind a proxy that has one.
    """
    require_lancedb()
    if find_spec("gradio") is None:
        raise ValueError("The page needs Gradio. Install it: pip install 'speech-image-retrieval[app]'")
    from ..app.address import check_address
    from ..retrieval.index import SpeechImageIndex
    from ..retrieval.search import check_options

    check_options(top_k, rerank_top_k, score_rule)
    infos = [SpeechImageIndex.open(uri).info for uri in indexes]
    for uri, info in zip(indexes, infos, strict=True):
        if info.model_digest != infos[0].model_digest:
            raise ValueError(
                f"{indexes[0]} was made with the model {infos[0].model_name}, and {uri} with {info.model_name}. One "
                "page has one model: serve them on two ports."
            )
    check_address(host, port)
    loaded, processor = load_model_of(indexes[0], infos[0], model)
    from ..app.answers import Answering
    from ..app.serving import serve as serve_page
    from ..processing.uploads import UploadLimits

    limits = UploadLimits(max_seconds, max_megabytes)
    opened = [SpeechImageIndex.open(uri, loaded, processor) for uri in indexes]
    answerings = [Answering(index, limits, top_k, rerank_top_k, score_rule) for index in opened]
    serve_page(answerings, host, port, note)
