"""The ablation runs what is missing and nothing else, and its intervals are right."""

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from speech_image_retrieval.training.arguments import ArgumentError, load_arguments, save_arguments

from benchmarks import ablation
from benchmarks.ablation_report import Part, added, interval, mean_r1, parts_table, table

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cell_of_every_configuration_can_be_trained(config):
    names = set()
    for cell in ablation.cells(load_arguments(config, [])):
        arguments = load_arguments(config, list(cell.overrides))
        names.add(cell.name)
        has_matching = bool(arguments.matching_weight or arguments.listwise_weight)
        assert has_matching == ("queue" not in cell.name and not cell.name.startswith("SIC (")) or "+ queue in" in (
            cell.name
        )
    assert len(names) == 8


def _taught(*recipe: str) -> list[tuple[float, float, int]]:
    """Momentum, alpha and the teacher's start of the cells that have one, as they are trained."""
    config = CONFIGS / "spoken_shapes.yaml"
    cells = ablation.cells(load_arguments(config, list(recipe)))
    trained = [load_arguments(config, [*recipe, *cell.overrides]) for cell in cells]
    return [(cell.momentum, cell.alpha, cell.momentum_start_step) for cell in trained if cell.momentum is not None]


def test_cells_with_a_teacher_have_that_of_the_recipe():
    taught = _taught("momentum=0.9", "momentum_start_step=60", "alpha=0.3")
    assert taught == [(0.9, 0, 60)] * 2 + [(0.9, 0.3, 60)] * 2


def test_a_recipe_without_a_teacher_gets_one_after_all_else_has_started():
    taught = _taught("group_start_step=400", "matching_start_step=600")
    assert taught == [(0.995, 0, 600)] * 2 + [(0.995, 0.4, 600)] * 2


class FakeTraining:
    """Stands for the training processes: each leaves a report, but for those that are told to die."""

    def __init__(self, monkeypatch):
        self.seeds: list[tuple[str, str]] = []
        self.dies_at: int | None = None
        monkeypatch.setattr(subprocess, "run", self)

    def __call__(self, command, **_):
        options = dict(part.split("=", 1) for part in command if "=" in part)
        if len(self.seeds) == self.dies_at:
            return SimpleNamespace(returncode=1)
        self.seeds.append((options["seed"], options["negative_sampling"]))
        report = {"protocol": {"split": "test"}, "mean_r1": {"coarse": 50.0 + int(options["seed"])}}
        Path(options["output_dir"], "evaluation.json").write_text(json.dumps(report))
        return SimpleNamespace(returncode=0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["ablation", str(CONFIGS / "spoken_shapes.yaml"), "--out", "figures", "--cell", "3", "--cell", "4"]

    def call(*more):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        ablation.main()
        return Path("figures/table.md").read_text()

    return call


def test_an_interrupted_ablation_runs_only_what_is_missing(run, monkeypatch):
    training = FakeTraining(monkeypatch)
    training.dies_at = 3
    with pytest.raises(RuntimeError, match=r"ended with 1; see .*run\.log"):
        run()
    assert training.seeds == [("0", "random"), ("0", "similarity"), ("1", "random")]
    training.dies_at = None
    assert "| + hard negatives in the batch | 3 | 51.0 ± 2.5 |" in run()
    assert len(training.seeds) == 6 and len(set(training.seeds)) == 6
    assert Path("figures/plot.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_another_experiment_are_not_mixed_in(run, monkeypatch):
    FakeTraining(monkeypatch)
    run("--seeds", "1")
    with pytest.raises(ArgumentError, match="choose another --out"):
        run("--seeds", "1", "max_steps=5")


def test_figures_of_a_recipe_that_has_changed_since_are_not_mixed_in(run, monkeypatch, tmp_path):
    FakeTraining(monkeypatch)
    text = (CONFIGS / "spoken_shapes.yaml").read_text()
    changed = tmp_path / "spoken_shapes.yaml"
    run("--seeds", "1")
    changed.write_text(text.replace("hard_negatives: 2", "hard_negatives: 1"))
    monkeypatch.setattr(sys, "argv", ["ablation", str(changed), "--out", "figures", "--cell", "3", "--seeds", "1"])
    with pytest.raises(ArgumentError, match="other values of hard_negatives: choose another --out"):
        ablation.main()


def test_figures_that_do_not_say_what_they_are_of_are_not_taken(run):
    Path("figures").mkdir()
    old = [{"cell": "SIC + SIM, random negatives", "seed": 0, "overrides": [], "reports": []}]
    Path("figures/results.json").write_text(json.dumps(old))
    with pytest.raises(ArgumentError, match="earlier version"):
        run("--seeds", "1")


def test_an_interrupted_run_does_not_go_on_with_other_settings(run, monkeypatch):
    training = FakeTraining(monkeypatch)
    training.dies_at = 0
    with pytest.raises(RuntimeError):
        run("--seeds", "1")
    (folder,) = Path("outputs/ablation/figures").glob("*random*")
    begun = ["negative_sampling=random", "queue_size=0", "group_size=1"]
    save_arguments(load_arguments(CONFIGS / "spoken_shapes.yaml", begun), folder / "arguments.yaml")
    training.dies_at = None
    with pytest.raises(ArgumentError, match="other values of max_steps"):
        run("--seeds", "1", "max_steps=5")


def test_intervals_are_students():
    mean, width = interval([1.0, 2.0, 3.0])
    assert (mean, width) == (2.0, pytest.approx(4.302653 / math.sqrt(3), abs=1e-5))
    assert math.isinf(interval([4.0])[1])


def _made(cell, seed, **means):
    return {"cell": cell, "seed": seed, "reports": [{"protocol": {"split": "test"}, "mean_r1": means}]}


def test_the_final_ranking_is_the_re_ranked_one_where_there_is_one():
    runs = [_made("a", 0, coarse=1.0), _made("b", 0, coarse=2.0, reranked=3.0)]
    assert mean_r1(runs, "a", "test", "final") == {0: 1.0} and mean_r1(runs, "b", "test", "final") == {0: 3.0}
    assert "| a | 1 | 1.0 |  |" in table(runs, ["a", "b", "missing"])
    assert "missing" not in table(runs, ["a", "b", "missing"])


def test_what_a_part_adds_is_the_difference_of_the_same_seed():
    """Whatever the order in which runs ended, and only of seeds that both cells have."""
    runs = [_made("without", seed, coarse=10.0 * seed) for seed in (2, 0, 1)]
    runs += [_made("with", seed, coarse=0.0, reranked=10.0 * seed + 4 - seed) for seed in (0, 2)]
    part = Part("a part", "with", "without")
    assert added(runs, part, "test", "final") == [4.0, 2.0]
    shown = parts_table(runs, [part, Part("unmeasured", "with", "missing")], "final")
    assert "| a part | with | without | 2 | +3.0 ± 12.7 |" in shown and "unmeasured" not in shown
    assert added(runs, part, "test", "coarse") == [0.0, -20.0]
    assert parts_table(runs, [Part("unmeasured", "with", "missing")], "final") == ""


def test_cells_that_show_a_part_differ_in_that_part_alone():
    config = CONFIGS / "spoken_emoji.yaml"
    cells = ablation.cells(load_arguments(config, []))
    trained = {cell.name: asdict(load_arguments(config, list(cell.overrides))) for cell in cells}
    changes = {
        part.name: {
            name: (trained[part.without][name], value)
            for name, value in trained[part.cell].items()
            if value != trained[part.without][name]
        }
        for part in ablation.parts(list(trained))
    }
    queue = {"queue_size": (0, 65536), "momentum": (None, 0.9)}
    matching = {"matching_weight": (0, 0.2), "listwise_weight": (0, 0.2)}
    assert changes == {
        "queue and its teacher, to SIC alone": queue,
        "SIM with random negatives, to SIC alone": matching | {"negative_sampling": ("similarity", "random")},
        "SIM with hard negatives, to SIC alone": matching,
        "hard instead of random negatives": {"negative_sampling": ("random", "similarity")},
        "queue and its teacher, to SIC and SIM": queue,
        "SIM with hard negatives, to SIC and queue": matching,
        "MoD": {"alpha": (0, 0.4)},
        "negatives mined beyond the batch": {"group_size": (1, 4)},
        "margin InfoNCE over all pairs, to SIC alone": matching,
    }
    assert [cell.name for cell in cells if "benchmarks.margin_infonce" in cell.program] == [cells[-1].name]
