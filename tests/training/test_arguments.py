from __future__ import annotations

import pytest
from speech_image_retrieval.training.arguments import (
    ArgumentError,
    arguments_from_dict,
    changed_fields,
    load_arguments,
    save_arguments,
)

NEEDED = {"corpus": "corpus", "output_dir": "run", "model": {"projection_dim": 8}, "processor": {}}


def make(**changes):
    return arguments_from_dict({**NEEDED, **changes})


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("corpus: corpus\noutput_dir: run\nmodel: {projection_dim: 8}\nprocessor: {}\nbatch_size: 3\n")
    return path


def test_saved_arguments_read_back_as_they_were(tmp_path):
    arguments = make(learning_rate=3e-5, max_steps=7, momentum=None, alpha=0.0, mixed_precision="no")
    save_arguments(arguments, tmp_path / "arguments.yaml")
    assert load_arguments(tmp_path / "arguments.yaml", []) == arguments


def test_a_field_that_is_newer_than_the_run_has_changed_only_if_set(tmp_path):
    path = tmp_path / "arguments.yaml"
    save_arguments(make(), path)
    path.write_text("".join(line for line in path.open() if not line.startswith("layer_decay")))
    assert changed_fields(make(), path) == []
    assert changed_fields(make(layer_decay=0.5, batch_size=3), path) == ["batch_size", "layer_decay"]


def test_overrides_replace_fields_and_reach_into_dictionaries(config):
    overrides = [
        "batch_size=5",
        "learning_rate=1e-3",
        "momentum=null",
        "alpha=0",
        "cache_examples=true",
        "mixed_precision=no",
        "model.projection_dim=16",
        "model.speech_config.conv_dim=[4, 4]",
        "output_dir=a=b",
    ]
    arguments = load_arguments(config, overrides)
    assert (arguments.batch_size, arguments.learning_rate, arguments.momentum) == (5, 1e-3, None)
    assert (arguments.alpha, arguments.cache_examples, arguments.mixed_precision) == (0.0, True, "no")
    assert arguments.model == {"projection_dim": 16, "speech_config": {"conv_dim": [4, 4]}}
    assert arguments.output_dir == "a=b"


def test_later_overrides_win(config):
    assert load_arguments(config, ["batch_size=5", "batch_size=6"]).batch_size == 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_sise=5", "unknown field 'batch_sise'. Did you mean 'batch_size'"),
        ("batch_size", "write field=value"),
        ("batch_size=[1", "not valid YAML"),
        ("batch_size.deep=1", "holds a value, not fields"),
        ("batch_size=", "batch_size must be int"),
    ],
)
def test_impossible_overrides_are_refused(override, message, config):
    with pytest.raises(ArgumentError, match=message.replace("[", r"\[")):
        load_arguments(config, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold"),
        ("- a", "must hold"),
        ("a: [", "not valid YAML"),
        ("corpus: here", "output_dir must be given"),
    ],
)
def test_files_that_are_no_configuration_are_refused(text, message, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ArgumentError, match=message):
        load_arguments(tmp_path / "run.yaml", [])


def test_a_missing_file_names_its_nearest_neighbour(config):
    with pytest.raises(ArgumentError, match=r"Did you mean 'run\.yaml'"):
        load_arguments(config.with_name("runn.yaml"), [])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", 1, 1.0),
        ("muon_learning_rate", None, None),
        ("max_steps", 5, 5),
        ("trainable_speech_layers", 0, 0),
        ("layer_decay", "5e-1", 0.5),
        ("vision_lora", {"r": 4}, {"r": 4}),
        ("mixed_precision", False, "no"),
    ],
)
def test_values_that_fit_are_taken(name, value, expected):
    taken = getattr(make(**{name: value}), name)
    assert taken == expected and type(taken) is type(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", "fast"),
        ("learning_rate", True),
        ("learning_rate", None),
        ("batch_size", 2.5),
        ("batch_size", True),
        ("batch_size", "8"),
        ("max_steps", "all"),
        ("cache_examples", 1),
        ("mixed_precision", "fp8"),
        ("mixed_precision", True),
        ("attention", False),
        ("model", [1]),
        ("corpus", 5),
        ("trainable_vision_layers", "all"),
        ("speech_lora", True),
    ],
)
def test_values_of_another_type_are_refused_by_name(name, value):
    with pytest.raises(ArgumentError, match=f"^{name} must be .*not"):
        make(**{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {name: 0}
            for name in ("num_epochs", "max_steps", "batch_size", "gradient_accumulation_steps", "group_size")
        ),
        *({name: 0} for name in ("log_every_steps", "validation_every_epochs", "checkpoint_every_epochs")),
        {"hard_negatives": 0},
        {"evaluation_batch_size": 0},
        {"queue_size": -1},
        {"num_workers": -1},
        {"learning_rate": 0},
        {"muon_learning_rate": 0.0},
        {"speech_learning_rate": -1e-4},
        {"vision_learning_rate": 0},
        {"trainable_speech_layers": -1},
        {"trainable_vision_layers": -1},
        {"layer_decay": 0},
        {"layer_decay": 1.1},
        {"momentum": 1.0},
        {"alpha": 1.5},
        {"alpha": -0.1},
        {"momentum": None},
        {"group_size": 2, "queue_size": 0},
        {"cache_examples": True, "num_workers": 1},
        {"push_every_checkpoints": 1},
        {"license": None, "push_to_hub": "org/a"},
    ],
    ids=str,
)
def test_impossible_values_are_refused_by_name(changes):
    with pytest.raises(ArgumentError, match="|".join(changes)):
        make(**changes)


def test_hub_options_need_backbones():
    assert (
        make(speech_backbone="a", vision_backbone="b", speech_hub_options={"revision": "c"}).vision_hub_options is None
    )
    with pytest.raises(ArgumentError, match="vision_hub_options"):
        make(vision_hub_options={"revision": "c"})
