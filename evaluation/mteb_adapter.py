"""mteb's audio-to-image and image-to-audio retrieval tasks: embeddings as its encoder, matching as its cross-encoder.

mteb hands out data sets whose rows decode their audio by torchcodec. Here rows are read as encoded bytes and paths,
and the model's own processor decodes and resamples them, as it does everywhere else.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Audio, Dataset, Image
from huggingface_hub import ResolvedRevision
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig
from transformers.utils.hub import resolve_revision

from ..modeling.configuration_speech_image_retrieval import SpeechImageRetrievalConfig
from ..modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from ..processing.processing_speech_image_retrieval import SpeechImageRetrievalProcessor
from .embedding import EncodedImages, EncodedSpeech, distinct_images, encode_images, encode_speech
from .reranking import ScoreRule, check_score_rule, score_pairs

_MODALITIES = {"audio", "image", "text", "video"}


def model_meta(model: str, *, revision: str | None = None, rerank: ScoreRule | None = None) -> ModelMeta:
    """What mteb knows a model by. `mteb.evaluate` takes it as it is; its `load_model` loads the model.

    Args:
        model: a Hub id or a folder, which is called `local/NAME`. mteb keeps results by name and revision; the latter
            is the commit, or the digest of the folder's files, so that no model is given another one's results.
        revision: branch, tag or commit of a Hub id.
        rerank: None for the encoder, which ranks a whole corpus. A score rule of :func:`.reranking.rerank` for the
            cross-encoder, which re-ranks what the encoder found (`task.convert_to_reranking`); mteb files its results
            apart from the encoder's.

    Raises:
        ValueError: there is no such model, it is of another type, or there is no such rule.
    """
    config = _config(model, revision)
    if rerank is not None:
        check_score_rule(rerank)
    folder = Path(model).resolve() if Path(model).is_dir() else None
    with torch.device("meta"):
        parameters = SpeechImageRetrievalModel(config).num_parameters()
    return _Meta(
        loader=partial(MtebEncoder if rerank is None else MtebReranker, source=model),
        name=f"local/{folder.name}" if folder else model,
        revision=_digest(folder) if folder else _commit(model, revision),
        experiment_kwargs=None if rerank is None else {"score_rule": rerank},
        model_type=["dense" if rerank is None else "cross-encoder"],
        modalities=["audio", "image"],
        embed_dim=config.projection_dim,
        similarity_fn_name=ScoringFunction.COSINE,
        n_parameters=parameters,
        memory_usage_mb=parameters * 4 / 2**20,
        framework=["PyTorch", "Transformers", "safetensors"],
        reference=None if folder else f"https://huggingface.co/{model}",
        use_instructions=False,
        max_tokens=None,
        release_date=None,
        languages=None,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        training_datasets=None,
    )


def load_undecoded(task: AbsTaskRetrieval) -> AbsTaskRetrieval:
    """Load the data of a task where torchcodec does not work; returns the task.

    mteb's loader looks at one row of each data set for its log, which decodes it. Tasks that do not use that loader
    (Flickr's) load as they always do.
    """
    dataset = task.metadata.dataset
    if type(task).load_data is not AbsTaskRetrieval.load_data and "name" not in dataset:
        task.load_data()
        return task
    subsets = task.hf_subsets if task.metadata.is_multilingual else ["default"]
    task.dataset = {
        subset: {
            split: _UndecodedLoader(
                dataset["path"], dataset["revision"], split=split, config=dataset.get("name", subset)
            ).load()
            for split in task.eval_splits
        }
        for subset in subsets
    }
    task.dataset_transform()
    task.data_loaded = True
    return task


class MtebEncoder(AbsEncoder):
    """mteb's `EncoderProtocol`: speech and pictures to embeddings whose cosine similarity ranks.

    Args:
        model_name: what mteb calls the model.
        revision: of a Hub id.
        device: where it runs; the accelerator if there is one.
        source: the Hub id or folder, where that is not its name.
    """

    def __init__(
        self, model_name: str, revision: str | None = None, *, device: str | None = None, source: str | None = None
    ):
        self.model, self.processor = _load(source or model_name, revision, device)

    def encode(self, inputs: DataLoader, **kwargs: Any) -> Tensor:
        """(items, projection) float32 of unit length, on the CPU, in the order of the data set behind `inputs`.

        Raises:
            ValueError: items are neither recordings nor pictures, or one cannot be read (it is named by its id).
        """
        return _encode(self.model, self.processor, inputs, inputs.dataset, keep_states=False, **kwargs).embeddings


class MtebReranker:
    """mteb's `CrossEncoderProtocol`: scores of pairs of a recording and a picture, in either order.

    Args:
        model_name, revision, device, source: as of :class:`MtebEncoder`.
        score_rule: of :func:`.reranking.rerank`; "sim+sic" takes `model.rerank_temperature`.
    """

    mteb_model_meta: ModelMeta | None = None  # set by mteb when it has loaded the model

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        source: str | None = None,
        score_rule: ScoreRule = "sim",
    ):
        check_score_rule(score_rule)
        self.model, self.processor = _load(source or model_name, revision, device)
        self.score_rule = score_rule

    def predict(self, inputs1: DataLoader, inputs2: DataLoader, **kwargs: Any) -> Tensor:
        """(pairs,) float32, row i for item i of both. An item that occurs in many pairs is encoded once.

        Token states of all items are kept in float16, as in the index.

        Raises:
            ValueError: pairs are not of recordings and pictures, or an item cannot be read (it is named by its id).
        """
        sides = {}
        for inputs in (inputs1, inputs2):
            rows, places = distinct_images(inputs.dataset["id"])
            encoded = _encode(self.model, self.processor, inputs, inputs.dataset.select(rows), True, **kwargs)
            sides[type(encoded)] = encoded, places
        if len(sides) < 2:
            raise ValueError("The cross-encoder scores pairs of a recording and a picture; these are of one kind.")
        (speech, clips), (images, pictures) = sides[EncodedSpeech], sides[EncodedImages]
        scores = score_pairs(self.model, speech.states, images.states, clips, pictures)
        if self.score_rule == "sim+sic":
            similarities = (speech.embeddings[clips] * images.embeddings[pictures]).sum(dim=1)
            scores += similarities / self.model.rerank_temperature
        return scores


class _Meta(ModelMeta):
    def _check_requirements(self) -> None:
        """mteb wants torchvision and torchaudio for all that sees or hears; this model needs neither."""


class _UndecodedLoader(RetrievalDatasetLoader):
    def _load_dataset_split(self, config: str, num_proc: int | None) -> Dataset:
        return _undecoded(super()._load_dataset_split(config, num_proc))


def _undecoded(dataset: Dataset) -> Dataset:
    for name, feature in dataset.features.items():
        if isinstance(feature, Audio | Image):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset


def _encode(
    model: SpeechImageRetrievalModel,
    processor: SpeechImageRetrievalProcessor,
    inputs: DataLoader,
    rows: Dataset,
    keep_states: bool,
    show_progress_bar: bool = False,
    **_: Any,
) -> EncodedSpeech | EncodedImages:
    """Encode `rows` of the data set behind `inputs`, whose batch size and workers are taken."""
    modalities = _MODALITIES & set(rows.column_names)
    if modalities not in ({"audio"}, {"image"}):
        raise ValueError(
            f"This model encodes recordings or pictures, each alone; this task's items are {sorted(modalities)}."
        )
    (modality,) = modalities
    encode = encode_speech if modality == "audio" else encode_images
    return encode(
        model,
        processor,
        _undecoded(rows.select_columns([modality]))[modality],
        batch_size=inputs.batch_size,
        names=rows["id"] if "id" in rows.column_names else None,
        keep_states=keep_states,
        states_dtype=torch.float16,
        num_workers=inputs.num_workers,
        progress=show_progress_bar,
    )


def _load(
    source: str, revision: str | None, device: str | None
) -> tuple[SpeechImageRetrievalModel, SpeechImageRetrievalProcessor]:
    _config(source, revision)
    options = {} if Path(source).is_dir() else {"revision": revision}
    model, loading = SpeechImageRetrievalModel.from_pretrained(source, output_loading_info=True, **options)
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(f"{source} lacks {len(missing)} of the model's weights, {missing[0]} first.")
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device), SpeechImageRetrievalProcessor.from_pretrained(source, **options)


def _config(source: str, revision: str | None) -> SpeechImageRetrievalConfig:
    try:
        values, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    except OSError as error:
        raise ValueError(f"The model {source} cannot be loaded: {str(error).splitlines()[0]}") from error
    if values.get("model_type") != SpeechImageRetrievalConfig.model_type:
        raise ValueError(
            f"{source} is a model of type {values.get('model_type')!r}, not {SpeechImageRetrievalConfig.model_type!r}."
        )
    return SpeechImageRetrievalConfig.from_dict(values)


def _commit(model: str, revision: str | None) -> str | None:
    resolved = resolve_revision(model, revision)
    return resolved.resolved if isinstance(resolved, ResolvedRevision) else revision


def _digest(folder: Path) -> str:
    """Of the weights and configurations in a folder, without its figures; 40 digits, like a commit."""
    digest = hashlib.sha1(usedforsecurity=False)
    figures = {*folder.glob("evaluation*.json"), folder / "training.json"}
    for path in sorted({*folder.glob("*.safetensors"), *folder.glob("*.json")} - figures):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha1').hexdigest()}\n".encode())
    return digest.hexdigest()


__all__ = ["MtebEncoder", "MtebReranker", "load_undecoded", "model_meta"]
