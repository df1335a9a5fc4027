"""Everything a training run can be told, typed; misspelt names are refused."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml


class ArgumentError(ValueError):
    """A training argument that does not exist or has an impossible value."""


_AT_LEAST_ONE = (
    "num_epochs",
    "max_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "group_size",
    "hard_negatives",
    "log_every_steps",
    "validation_every_epochs",
    "checkpoint_every_epochs",
    "checkpoint_every_steps",
    "push_every_checkpoints",
    "evaluation_batch_size",
)
_NOT_NEGATIVE = (
    "queue_size",
    "num_workers",
    "warmup_steps",
    "validation_rerank_top_k",
    "rerank_top_k",
    "trainable_speech_layers",
    "trainable_vision_layers",
)


@dataclass
class TrainingArguments:
    """One training run. The defaults of the method are ALBEF's, for the paper's own are not public."""

    corpus: str  # folder made by `sir corpus build`; with `stream` the Hub id of a corpus
    output_dir: str  # everything of the run goes here
    speech_backbone: str | None = None  # Hub name or folder of a pretrained speech encoder; null = new weights
    vision_backbone: str | None = None  # the same of an image encoder; both or none
    # Of from_pretrained, for instance `{revision: 1a2b3c}`. A token written here is kept in output_dir: set HF_TOKEN.
    speech_hub_options: dict[str, Any] | None = None
    vision_hub_options: dict[str, Any] | None = None
    qformer: bool = False  # read a BLIP-2 backbone out by its Q-Former: 32 image tokens instead of 257
    model: dict[str, Any] = field(default_factory=dict)  # SpeechImageRetrievalConfig, or what to change of it
    # SpeechImageRetrievalProcessor; without backbones feature_extractor and image_processor with a class as `type`.
    processor: dict[str, Any] = field(default_factory=dict)

    num_epochs: int = 10
    max_steps: int | None = None  # stop earlier than num_epochs
    batch_size: int = 64  # pairs per process and micro-batch
    gradient_accumulation_steps: int = 1
    length_bucketing: bool = False  # random batches of similar speech length: less padding, harder negatives
    group_size: int = 1  # pairs per group of hard neighbours mined through the queue; 1 = random batches
    group_start_step: int = 0  # from the next epoch on; random batches before, for neighbours need trained embeddings

    learning_rate: float = 1e-4
    muon_learning_rate: float | None = None  # Muon's, for the matrices inside layers; None = AdamW for everything
    min_learning_rate_ratio: float = 0.1  # the cosine ends at this share of the peak
    warmup_steps: int = 1000
    weight_decay: float = 0.02
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"  # auto: bf16 where the device has it in hardware
    attention: Literal["auto", "eager", "sdpa"] = "auto"  # auto: eager on a CPU, where SDPA's backward is slow
    activation_checkpointing: bool = False

    trainable_speech_layers: int | None = None  # top layers of the speech backbone; 0 = frozen, null = all of it
    trainable_vision_layers: int | None = None  # the same of the vision backbone
    speech_learning_rate: float | None = None  # of the speech backbone; None = learning_rate
    vision_learning_rate: float | None = None  # of the vision backbone
    layer_decay: float = 1.0  # each backbone layer's rate is this times that of the layer above
    speech_lora: dict[str, Any] | None = None  # fields of peft.LoraConfig; the rest of the speech backbone is frozen
    vision_lora: dict[str, Any] | None = None  # the same of the vision backbone

    contrastive_weight: float = 1.0
    matching_weight: float = 1.0
    listwise_weight: float = 0.0  # of the listwise form of the matching loss
    matching_start_step: int = 0  # contrastive steps first
    hard_negatives: int = 1  # per speech and per image
    negative_sampling: Literal["similarity", "random"] = "similarity"
    queue_size: int = 65536  # at most the training set; 0 = no queue
    momentum: float | None = 0.995  # of the teacher; None = no teacher
    momentum_start_step: int = 0  # in-batch SIC until then: while embeddings move fast, queued ones mislead
    alpha: float = 0.4  # momentum distillation; 0 = hard targets only
    alpha_warmup_steps: int = 1000

    # Effects of training/augmentation.py by name, for instance `{noise: {snr_db: [5, 30], probability: 0.5}}`. They
    # bypass cache_examples, for every epoch hears and sees others.
    speech_augmentation: dict[str, Any] | None = None
    image_augmentation: dict[str, Any] | None = None

    stream: bool = False  # read the training split from the Hub as it arrives
    feature_cache: bool = False  # compute what frozen backbones give once, and keep it beside the corpus
    cache_examples: bool = False  # keep processed examples in memory (float16); for corpora that fit
    num_workers: int = 0
    log_every_steps: int = 10
    validation_every_epochs: int = 1
    validation_rerank_top_k: int = 16
    rerank_top_k: int = 32  # of the final evaluation on the test split
    score_rule: Literal["sim", "sim+sic"] = "sim"
    evaluation_batch_size: int = 64
    checkpoint_every_epochs: int = 1
    checkpoint_every_steps: int | None = None  # also within epochs, for long ones
    push_to_hub: str | None = None  # Hub id the best model is published to at the end; private if new
    license: str | None = None  # of the weights, as the Hub names it; what is published needs one
    push_every_checkpoints: int | None = None  # also with every n-th checkpoint, with the figures of validation
    seed: int = 0

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for spec in fields(self):
            setattr(self, spec.name, _checked(spec.name, getattr(self, spec.name), hints[spec.name]))
        self._check_ranges()

    def _check_ranges(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise ArgumentError(f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("learning_rate", "muon_learning_rate", "speech_learning_rate", "vision_learning_rate"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ArgumentError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ArgumentError(f"layer_decay must be above 0 and at most 1, not {self.layer_decay}")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ArgumentError(f"momentum must be at least 0 and below 1, not {self.momentum}")
        if (self.speech_backbone is None) != (self.vision_backbone is None):
            raise ArgumentError("speech_backbone and vision_backbone go together: set both, or neither")
        if self.speech_backbone is None and not self.model:
            raise ArgumentError("set speech_backbone and vision_backbone, or describe the model")
        for name in ("speech_hub_options", "vision_hub_options"):
            if getattr(self, name) and self.speech_backbone is None:
                raise ArgumentError(f"{name} say where a pretrained backbone comes from: set the backbones with it")
        if self.qformer and self.vision_backbone is None:
            raise ArgumentError("qformer reads out a pretrained BLIP-2: set vision_backbone with it")
        if self.feature_cache and self.cache_examples:
            raise ArgumentError("feature_cache and cache_examples keep the same examples: set one of them")
        if self.cache_examples and self.num_workers:
            raise ArgumentError(
                "cache_examples keeps examples in this process: set num_workers=0, or cache_examples=false"
            )
        if self.group_size > 1 and not self.queue_size:
            raise ArgumentError("group_size above 1 mines neighbours in the queue: set queue_size above 0")
        if self.alpha and self.momentum is None:
            raise ArgumentError("alpha mixes in the teacher's targets: set momentum, or alpha=0")
        if self.push_to_hub and not self.license:
            raise ArgumentError(
                "push_to_hub publishes the weights: set license with it, as the Hub names it, such as "
                "license=apache-2.0. What the licences of backbones and corpus ask for holds for the weights, too"
            )
        if self.push_every_checkpoints and self.push_to_hub is None:
            raise ArgumentError("push_every_checkpoints says how often to publish: set push_to_hub with it")
        if not 0 <= self.alpha <= 1:
            raise ArgumentError(f"alpha must be between 0 and 1, not {self.alpha}")
        self._check_stream()
        self._check_augmentation("speech_augmentation", "waveforms", "speech")
        self._check_augmentation("image_augmentation", "pixels", "vision")

    def _check_stream(self) -> None:
        needing_rows = ("feature_cache", "cache_examples", "length_bucketing")
        asked = [f"{name}=false" for name in needing_rows if getattr(self, name)]
        asked += ["group_size=1"] if self.group_size > 1 else []
        if self.stream and asked:
            raise ArgumentError(
                f"stream reads rows in the order in which they come: set {', '.join(asked)}, or build the corpus "
                f"first: sir corpus build columns --source {self.corpus} --out DIR"
            )

    def _check_augmentation(self, name: str, material: str, side: str) -> None:
        layers = f"trainable_{side}_layers"
        frozen = getattr(self, layers) == 0 and getattr(self, f"{side}_lora") is None
        if getattr(self, name) and self.feature_cache and frozen:
            raise ArgumentError(
                f"{name} needs {material}, but feature_cache reads what the frozen {side} backbone once made of them: "
                f"set feature_cache=false, or {layers}=1 or more"
            )


def load_arguments(config: str | Path, overrides: list[str]) -> TrainingArguments:
    """Read a YAML file and apply `field=value` overrides; `model.projection_dim=128` reaches into dictionaries.

    Raises:
        ArgumentError: the file or a field does not exist (the nearest valid name is given), or a value does not fit.
    """
    path = Path(config)
    if not path.is_file():
        near = nearest(path.name, [other.name for other in path.parent.glob("*.yaml")])
        raise ArgumentError(f"There is no configuration {path}.{near}")
    values = _parsed(path.read_text(encoding="utf-8"), where=str(path))
    if not isinstance(values, dict):
        raise ArgumentError(f"{path} must hold `field: value` lines")
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ArgumentError(f"{override!r} is no override; write field=value")
        _check_field(name.strip().partition(".")[0], where=override)
        _assign(values, name.strip(), _parsed(text, where=override))
    return arguments_from_dict(values, where=str(path))


def arguments_from_dict(values: dict[str, Any], where: str = "the configuration") -> TrainingArguments:
    """Arguments from a dictionary; every unknown or missing name is an :class:`ArgumentError`."""
    for name in values:
        _check_field(name, where)
    missing = [
        spec.name
        for spec in fields(TrainingArguments)
        if spec.default is MISSING and spec.default_factory is MISSING and spec.name not in values
    ]
    if missing:
        raise ArgumentError(f"{where}: {', '.join(missing)} must be given")
    return TrainingArguments(**values)


def _check_field(name: str, where: str) -> None:
    known = [spec.name for spec in fields(TrainingArguments)]
    if name not in known:
        raise ArgumentError(f"{where}: unknown field {name!r}.{nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about a misspelt name: a space and a question, or nothing if no known name is near."""
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def refuse_unknown_names(names: Iterable[str], known: Collection[str], where: str) -> None:
    """Raise an :class:`ArgumentError` with the nearest name if one of the names is not known."""
    for name in names:
        if name not in known:
            raise ArgumentError(f"{where} has no field {name!r}.{nearest(name, known)}")


def save_arguments(arguments: TrainingArguments, path: Path) -> None:
    """Write the arguments as YAML that :func:`load_arguments` reads back."""
    path.write_text(yaml.safe_dump(asdict(arguments), sort_keys=False), encoding="utf-8")


def changed_fields(arguments: TrainingArguments, path: Path) -> list[str]:
    """Names of the fields whose values differ from those that :func:`save_arguments` wrote; none without a file."""
    return differing_fields(arguments, yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else []


def differing_fields(arguments: TrainingArguments, before: Mapping[str, Any]) -> list[str]:
    """Names of the fields whose values differ. A field that is not in `before` had the effect of its default."""
    before = {spec.name: spec.default for spec in fields(arguments)} | before
    return [name for name, value in asdict(arguments).items() if before[name] != value]


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ArgumentError(f"{where} is not valid YAML: {problem}") from error


def _assign(values: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ArgumentError(f"{name}: {parent!r} holds a value, not fields")
    values[last] = value


def _checked(name: str, value: Any, kind: Any) -> Any:
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    for option in options:
        if typing.get_origin(option) is Literal:
            choice = "no" if value is False else value  # YAML 1.1 reads no as false
            if choice in typing.get_args(option):
                return choice
        elif option is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:  # YAML 1.1 reads 1e-4 as text
                return float(value)
            except ValueError:
                continue
        elif isinstance(value, typing.get_origin(option) or option) and not (
            option is int and isinstance(value, bool)
        ):
            return value
    expected = " or ".join(
        ", ".join(map(repr, typing.get_args(option)))
        if typing.get_origin(option) is Literal
        else getattr(option, "__name__", str(option))
        for option in options
    )
    raise ArgumentError(f"{name} must be {expected}, not {value!r}")


__all__ = [
    "ArgumentError",
    "TrainingArguments",
    "arguments_from_dict",
    "changed_fields",
    "load_arguments",
    "nearest",
    "refuse_unknown_names",
    "save_arguments",
]
