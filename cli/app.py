"""What all commands share. Heavy libraries are imported inside the commands, so that `sir --help` answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ..processing.media import PICTURE_SUFFIXES

if TYPE_CHECKING:
    from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
    from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor

_HUB_TIMEOUT = 10.0  # seconds


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:  # what users can put right; anything else is a bug and shows its trace
            typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    help="Find pictures by voice: build corpora, measure models, search.",
    no_args_is_help=True,
    add_completion=False,
)


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or a Hub id.")]


RerankOption = Annotated[
    int, typer.Option(min=0, help="Most similar candidates that the multimodal encoder re-ranks; 0 for none.")
]


ScoreRuleOption = Annotated[
    Literal["sim", "sim+sic"],
    typer.Option(help="What orders the re-ranked: sim, the matching score; sim+sic, plus similarity."),
]


BatchSizeOption = Annotated[int, typer.Option(min=1, help="Clips or pictures encoded at a time.")]


def load_model(name: str) -> tuple[SpeechImageRetrievalModel, SpeechImageRetrievalProcessor]:
    import torch
    from transformers import PreTrainedConfig

    from ..modeling.configuration_speech_image_retrieval import SpeechImageRetrievalConfig
    from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
    from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor

    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(f"{name} holds no model: there is no config.json in it.")
    if (Path(name) / "matching.onnx").is_file():
        raise ValueError(f"{name} is an export for ONNX Runtime. Give the model that it was made of.")
    offline = not Path(name).is_dir() and not _hub_answers(name)
    try:
        model_type = PreTrainedConfig.get_config_dict(name, local_files_only=offline)[0].get("model_type")
        if model_type != SpeechImageRetrievalConfig.model_type:
            raise ValueError(
                f"{name} is a model of type {model_type!r}, not {SpeechImageRetrievalConfig.model_type!r}."
            )
        model, loading = SpeechImageRetrievalModel.from_pretrained(
            name, output_loading_info=True, local_files_only=offline
        )
        processor = SpeechImageRetrievalProcessor.from_pretrained(name, local_files_only=offline)
    except OSError as error:
        where = "" if Path(name).is_dir() else ", which is no folder here,"
        raise ValueError(
            f"The model {name}{where} cannot be loaded: {' '.join(str(error).splitlines()[:2])}"
        ) from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(f"{name} lacks {len(missing)} of the model's weights, {missing[0]} first.")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.to(device), processor


def _hub_answers(name: str) -> bool:
    """Asked once: loading alone would ask for half a minute before it looks among what was downloaded earlier.

    Raises:
        ValueError: the name can only be meant as a folder.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(f"There is no folder {name}, and it cannot be the Hub id of a model either.") from None
    if Path(name).parent != Path() and Path(name).parent.is_dir():
        raise ValueError(f"There is no folder {name}.")
    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT)
    except HfHubHTTPError:  # it refuses; loading says why
        return True
    except (httpx.HTTPError, OfflineModeIsEnabled):
        return False
    return True


def check_picture_name(option: str, out: Path | None) -> None:
    """Refuse a file that no picture can be written to, before anything is computed."""
    if out is None:
        return
    if out.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(
            f"{option} {out} is no name of a picture: let it end in {', '.join(sorted(PICTURE_SUFFIXES))}."
        )
    if out.is_dir():
        raise ValueError(f"{option} {out} is a folder. Give the name of a picture in it.")


def write_json(content: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    typer.echo(f"Written to {out}")


def check_is_file(query: Path) -> None:
    if query.is_dir():
        raise ValueError(f"{query} is a folder. Queries are files.")
    if not query.is_file():
        raise ValueError(f"There is no file {query}.")


def warn(message: str) -> None:
    typer.secho(message, fg=typer.colors.YELLOW, err=True)
