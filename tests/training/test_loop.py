from __future__ import annotations

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from speech_image_retrieval.corpora.schema import CorpusError
from speech_image_retrieval.evaluation import evaluate_retrieval
from speech_image_retrieval.modeling.modeling_speech_image_retrieval import SpeechImageRetrievalModel
from speech_image_retrieval.training import checkpoint as checkpoint_module
from speech_image_retrieval.training.arguments import ArgumentError, save_arguments
from speech_image_retrieval.training.checkpoint import latest_checkpoint
from speech_image_retrieval.training.examples import SpokenCaptions
from speech_image_retrieval.training.log import read_log
from speech_image_retrieval.training.loop import Trainer
from speech_image_retrieval.training.stopping import EndWatch

from ..fresh_process import run_script

TRAIN = Path(__file__).parents[2] / "train.py"


@pytest.fixture(scope="module")
def whole_run(make_arguments, tmp_path_factory) -> Path:
    """The folder of a run that was never interrupted: 3 epochs of 3 steps."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    Trainer(make_arguments(folder)).run()
    torch.set_num_threads(threads)
    return folder


def _interrupt(monkeypatch, method: str, step: int) -> None:
    """Let the trainer stop as from the keyboard when it calls `method` at `step`."""
    original = getattr(Trainer, method)

    def interrupted(self, *args):
        if self.step == step:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Trainer, method, interrupted)


def _logged(folder: Path) -> list[tuple[int, str, float]]:
    return [row for row in read_log(folder / "log.csv") if row[1] != "pairs_per_second"]


def _assert_same_run(folder: Path, expected: Path) -> None:
    assert _logged(folder) == _logged(expected)
    assert (folder / "model/model.safetensors").read_bytes() == (expected / "model/model.safetensors").read_bytes()
    assert (folder / "evaluation.json").read_bytes() == (expected / "evaluation.json").read_bytes()
    final, wanted = (latest_checkpoint(part / "checkpoints") for part in (folder, expected))
    assert final.name == wanted.name
    for name in ("objective", "optimizers", "random-0", "extra"):
        states, others = (load_file(part / f"{name}.safetensors") for part in (final, wanted))
        assert states.keys() == others.keys()
        assert all(torch.equal(states[key], others[key]) for key in states), name


def test_a_run_leaves_model_report_curves_log_and_checkpoint(whole_run):
    report = json.loads((whole_run / "evaluation.json").read_text())
    assert set(report["mean_r1"]) == {"coarse", "reranked"}
    assert report["protocol"]["split"] == "test"
    assert report == json.loads((whole_run / "model/evaluation.json").read_text())
    assert (whole_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {"model.safetensors", "config.json"} <= {path.name for path in (whole_run / "model").iterdir()}
    assert [path.name for path in (whole_run / "checkpoints").iterdir()] == ["checkpoint-9"]
    logged = read_log(whole_run / "log.csv")
    assert [step for step, name, _ in logged if name == "loss/SIC"] == list(range(1, 10))
    assert [step for step, name, _ in logged if name == "validation/speech to image, reranked"] == [3, 6, 9]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(make_arguments, whole_run, tmp_path):
    Trainer(make_arguments(tmp_path / "other", seed=1, max_steps=1)).run()
    first = {name: value for step, name, value in _logged(whole_run) if step == 1}
    other = {name: value for step, name, value in _logged(tmp_path / "other") if step == 1}
    assert first["loss/SIC"] != other["loss/SIC"]


@pytest.mark.parametrize(
    ("method", "step"),
    [("_train_epoch", 3), ("_optimize", 4), ("_optimize", 8), ("_validate", 6), ("_save", 6), ("_optimize", 1)],
    ids=["between epochs", "amid an epoch", "amid the last", "at validation", "before a checkpoint", "before any"],
)
def test_interrupted_and_resumed_equals_never_interrupted(
    method, step, make_arguments, whole_run, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        _interrupt(patched, method, step)
        with pytest.raises(KeyboardInterrupt):
            Trainer(make_arguments(tmp_path)).run()
    torch.rand(3)  # a new process stands elsewhere in the random sequence
    random.random()
    Trainer(make_arguments(tmp_path)).run()
    _assert_same_run(tmp_path, whole_run)


def test_a_run_that_is_interrupted_ten_times_learns_as_one_that_is_not(
    make_arguments, whole_run, tmp_path, monkeypatch
):
    arguments = make_arguments(tmp_path, checkpoint_every_steps=1)
    places = [("_validate", 3), ("_validate", 6), *(("_optimize", step) for step in range(1, 9))]
    for method, step in sorted(places, key=lambda place: place[1]):  # at the end of an epoch, then in the next one
        with monkeypatch.context() as patched:
            _interrupt(patched, method, step)
            with pytest.raises(KeyboardInterrupt):
                Trainer(arguments).run()
    assert latest_checkpoint(tmp_path / "checkpoints").name == "checkpoint-8"
    Trainer(arguments).run()
    _assert_same_run(tmp_path, whole_run)


def test_a_crash_while_a_checkpoint_is_written_costs_only_the_steps_since_the_one_before(
    make_arguments, whole_run, tmp_path, monkeypatch
):
    written = []

    def failing(tensors, path, metadata=None):
        written.append(path)
        if len(written) == 7:  # the optimizers of the second checkpoint
            path.write_bytes(b"half")
            raise OSError("No space left on device")
        return checkpoint_module_save(tensors, path, metadata)

    checkpoint_module_save = checkpoint_module.save_file
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "save_file", failing)
        with pytest.raises(OSError, match="No space left"):
            Trainer(make_arguments(tmp_path)).run()
    assert latest_checkpoint(tmp_path / "checkpoints").name == "checkpoint-3"
    Trainer(make_arguments(tmp_path)).run()
    _assert_same_run(tmp_path, whole_run)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-9"]


def test_a_killed_process_started_again_ends_as_if_never_killed(make_arguments, whole_run, tmp_path):
    folder = tmp_path / "run"
    save_arguments(make_arguments(folder), tmp_path / "run.yaml")
    command = [sys.executable, str(TRAIN), str(tmp_path / "run.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not read_log(folder / "log.csv"):
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "evaluation.json").exists()
    Trainer(make_arguments(folder)).run()
    _assert_same_run(folder, whole_run)


def test_a_finished_run_started_again_reports_the_same_and_does_not_train(
    make_arguments, whole_run, tmp_path, monkeypatch
):
    before = {name: (whole_run / name).read_bytes() for name in ("log.csv", "model/model.safetensors")}
    monkeypatch.setattr(Trainer, "_optimize", lambda *_: pytest.fail("it trains"))
    monkeypatch.setattr(Trainer, "_validate", lambda *_: pytest.fail("it validates"))
    report = Trainer(make_arguments(whole_run)).run()
    assert report == json.loads((whole_run / "evaluation.json").read_text())
    assert before == {name: (whole_run / name).read_bytes() for name in before}


def test_a_batch_larger_than_the_corpus_is_the_corpus(make_arguments, tmp_path):
    trainer = Trainer(make_arguments(tmp_path, batch_size=100, num_epochs=2))
    trainer.run()
    assert trainer.total_steps == trainer.step == 2


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_batch_of_one_trains_without_negatives_in_it(accumulation, make_arguments, tmp_path):
    arguments = make_arguments(
        tmp_path, batch_size=1, gradient_accumulation_steps=accumulation, max_steps=2, group_size=1
    )
    Trainer(arguments).run()
    assert all(value == value for _, _, value in _logged(tmp_path))


def test_a_corpus_of_one_picture_trains(make_arguments, make_corpus, tmp_path):
    Trainer(make_arguments(tmp_path, corpus=str(make_corpus(images=1, captions=5)), num_epochs=2)).run()
    assert all(value == value for _, _, value in _logged(tmp_path))


def test_an_epoch_is_made_of_full_batches_of_rows_that_occur_once(make_arguments, tmp_path, monkeypatch):
    seen: list[list[int]] = []
    original = Trainer._optimize

    def spying(self, micro_batches):
        seen.append([row for batch in micro_batches for row in batch.rows.tolist()])
        return original(self, micro_batches)

    monkeypatch.setattr(Trainer, "_optimize", spying)
    Trainer(make_arguments(tmp_path, batch_size=5, gradient_accumulation_steps=1, num_epochs=2)).run()
    assert [len(rows) for rows in seen] == [5, 5] * 2
    epochs = [[row for rows in part for row in rows] for part in (seen[:2], seen[2:])]
    assert all(len(set(rows)) == 10 for rows in epochs)
    assert set(epochs[0]) != set(epochs[1])


def test_a_checkpoint_due_at_the_end_of_an_epoch_is_written(make_arguments, tmp_path, monkeypatch):
    saved = []
    original = Trainer._save

    def spying(self):
        saved.append(self.step)
        original(self)

    monkeypatch.setattr(Trainer, "_save", spying)
    Trainer(make_arguments(tmp_path, num_epochs=3, checkpoint_every_steps=2, checkpoint_every_epochs=9)).run()
    assert saved == [2, 4, 6, 8, 9]  # three steps an epoch


def test_without_sim_nothing_is_reranked(make_arguments, tmp_path):
    report = Trainer(make_arguments(tmp_path, matching_weight=0.0, max_steps=2)).run()
    assert set(report["mean_r1"]) == {"coarse"}


def test_the_exported_model_ranks_as_validation_said_with_the_temperature_that_was_fitted(make_arguments, tmp_path):
    trainer = Trainer(make_arguments(tmp_path, score_rule="sim+sic", validation_rerank_top_k=32))
    trainer.output_dir.mkdir(exist_ok=True)
    validation = trainer.run_model.validate(trainer.objective.model, trainer.validation, matching=True)
    trainer.run_model.export(trainer.objective.model, validation, {})
    model = SpeechImageRetrievalModel.from_pretrained(trainer.run_model.folder)
    assert model.rerank_temperature == validation.rerank_temperature != model.temperature.item()
    report = evaluate_retrieval(
        model,
        trainer.processor,
        trainer.corpus["validation"],
        corpus=validation.report["protocol"]["corpus"],
        split="validation",
        score_rule="sim+sic",
    )
    report["protocol"]["checkpoint"] = validation.report["protocol"]["checkpoint"]
    assert report == validation.report
    assert report["protocol"]["temperature"] == validation.rerank_temperature


def test_where_no_bar_is_drawn_steps_are_told_in_lines(make_arguments, tmp_path, capsys):
    Trainer(make_arguments(tmp_path, max_steps=6)).run()
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("step 5 of 6: SIC ") for line in lines)


def test_without_reranking_no_temperature_is_fitted(make_arguments, tmp_path):
    trainer = Trainer(make_arguments(tmp_path, score_rule="sim+sic"))
    trainer.output_dir.mkdir(exist_ok=True)
    validation = trainer.run_model.validate(trainer.objective.model, trainer.validation, matching=False)
    trainer.run_model.export(trainer.objective.model, validation, {})
    assert SpeechImageRetrievalModel.from_pretrained(trainer.run_model.folder).config.rerank_temperature is None


def test_frozen_parts_stay_and_the_others_move(make_arguments, tmp_path):
    trainer = Trainer(make_arguments(tmp_path, trainable_speech_layers=1, trainable_vision_layers=0, max_steps=2))
    before = {name: part.detach().clone() for name, part in trainer.objective.model.named_parameters()}
    trainer.run()
    moved = {n for n, part in trainer.objective.model.named_parameters() if not torch.equal(part, before[n])}
    assert not any(name.startswith("vision_backbone") for name in moved)
    assert not any(
        "feature_extractor" in name or "encoder.layers.0." in name for name in moved if "speech_backbone" in name
    )
    assert any("encoder.layers.1." in name for name in moved if "speech_backbone" in name)
    assert any(name.startswith("multimodal_encoder") for name in moved)


def test_hubert_is_trained_through_its_waveform_convolutions(make_arguments, tmp_path):
    trainer = Trainer(make_arguments(tmp_path, max_steps=1))
    before = {n: part.detach().clone() for n, part in trainer.objective.model.speech_backbone.named_parameters()}
    trainer.run()
    after = dict(trainer.objective.model.speech_backbone.named_parameters())
    unmoved = {name for name, part in before.items() if torch.equal(part, after[name])}
    assert not {name for name in unmoved if "conv" in name or "layers" in name}


def test_a_gradient_that_is_not_finite_stops_the_run_says_what_to_do_and_keeps_the_batch(
    make_arguments, tmp_path, monkeypatch
):
    original, rows = Trainer._optimize, []

    def poisoned(self, micro_batches):
        if self.step == 4:
            micro_batches[0].image["pixel_values"].fill_(torch.nan)
            rows.extend(batch.rows for batch in micro_batches)
        return original(self, micro_batches)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_optimize", poisoned)
        with pytest.raises(
            FloatingPointError, match=r"not finite at step 5\. Lower learning_rate.*from .*not-finite-0"
        ):
            Trainer(make_arguments(tmp_path)).run()
    assert latest_checkpoint(tmp_path / "checkpoints").name == "checkpoint-3"
    kept = load_file(tmp_path / "not-finite-0.safetensors")
    assert [kept[f"{number}.rows"].tolist() for number in (0, 1)] == [part.tolist() for part in rows]
    assert kept["0.image.pixel_values"].isnan().all()
    assert not kept["1.speech.input_values"].isnan().any()


def test_of_a_checkpoint_that_was_never_written_a_stopped_run_does_not_speak(make_arguments, tmp_path, monkeypatch):
    original = Trainer._optimize

    def poisoned(self, micro_batches):
        micro_batches[0].image["pixel_values"].fill_(torch.nan)
        return original(self, micro_batches)

    monkeypatch.setattr(Trainer, "_optimize", poisoned)
    with pytest.raises(FloatingPointError, match="no checkpoint was due before"):
        Trainer(make_arguments(tmp_path)).run()


def test_a_data_worker_that_is_killed_ends_the_run_in_one_line_and_it_goes_on_as_if_nothing_had_been(
    make_arguments, whole_run, tmp_path, monkeypatch
):
    original, here, read = SpokenCaptions.__getitem__, os.getpid(), []

    def killed_later(self, row):
        read.append(row)
        if os.getpid() != here and len(read) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, row)

    with monkeypatch.context() as patched:
        patched.setattr(SpokenCaptions, "__getitem__", killed_later)
        with pytest.raises(ChildProcessError, match=r"^A data worker was killed.*lower num_workers.*\)\.$"):
            Trainer(make_arguments(tmp_path, num_workers=1)).run()
    Trainer(make_arguments(tmp_path)).run()
    _assert_same_run(tmp_path, whole_run)


def test_an_example_that_a_data_worker_cannot_use_is_named_in_one_line(make_arguments, tmp_path, monkeypatch):
    def broken(self, row):
        raise CorpusError("Caption 'a': damaged")

    monkeypatch.setattr(SpokenCaptions, "__getitem__", broken)
    for workers in (0, 1):
        with pytest.raises(CorpusError, match=r"^Caption 'a': damaged$"):
            Trainer(make_arguments(tmp_path, num_workers=workers)).run()


@pytest.mark.parametrize(
    ("step", "told", "code"),
    [(4, signal.SIGTERM, 0), (5, signal.SIGTERM, 0), (8, signal.SIGTERM, 0), (4, signal.SIGINT, 130)],
    ids=["amid an epoch", "in its last step", "in the run's last step", "Ctrl-C"],
)
def test_told_to_end_it_leaves_a_checkpoint_and_goes_on_from_it(
    step, told, code, make_arguments, whole_run, tmp_path, monkeypatch, capsys
):
    original = Trainer._optimize

    def interrupted(self, micro_batches):
        if self.step == step:
            os.kill(os.getpid(), told)
        return original(self, micro_batches)

    before = signal.getsignal(told)
    assert before != signal.SIG_IGN
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_optimize", interrupted)
        with pytest.raises(SystemExit) as ended:
            Trainer(make_arguments(tmp_path)).run()
    assert ended.value.code == code
    assert f"Ended by {told.name} at step {step + 1} of 9" in capsys.readouterr().err
    assert latest_checkpoint(tmp_path / "checkpoints").name == f"checkpoint-{step + 1}"
    assert signal.getsignal(told) == before
    Trainer(make_arguments(tmp_path)).run()
    _assert_same_run(tmp_path, whole_run)


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Ctrl-C is not ignored, as it is in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_what_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with EndWatch() as watch:
        signal.raise_signal(signal.SIGINT)
        assert watch.received() is None


def test_a_second_ctrl_c_interrupts_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), EndWatch() as watch:
        signal.raise_signal(signal.SIGINT)
        assert watch.received() == signal.SIGINT
        assert "Ctrl-C again" in capfd.readouterr().err
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_who_signals_the_whole_group_does_not_take_the_data_workers_away(make_arguments, tmp_path):
    folder = tmp_path / "run"
    save_arguments(make_arguments(folder, num_workers=1, num_epochs=200), tmp_path / "run.yaml")
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, str(TRAIN), str(tmp_path / "run.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and len(read_log(folder / "log.csv")) < 10:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate()
    assert process.returncode == 130, printed
    ended = latest_checkpoint(folder / "checkpoints").name.removeprefix("checkpoint-")
    assert f"Ended by SIGINT at step {ended} of 600" in printed
    assert "1 x batch_size 2 x gradient_accumulation_steps 2 = 4 pairs a step" in " ".join(printed.split())


def test_a_run_does_not_go_on_with_steps_of_another_size(make_arguments, whole_run):
    with pytest.raises(ArgumentError, match=r"of a run with \d+ pairs a step; this one has \d+\. Keep batch_size x"):
        Trainer(make_arguments(whole_run, gradient_accumulation_steps=1)).run()


def test_a_checkpoint_of_another_model_is_refused(make_arguments, whole_run, tmp_path):
    arguments = make_arguments(whole_run)
    arguments.model = {**arguments.model, "projection_dim": 4}
    with pytest.raises(ArgumentError, match="output_dir"):
        Trainer(arguments).run()


def test_a_run_that_ended_is_not_passed_off_as_one_with_other_values(make_arguments, tmp_path):
    Trainer(make_arguments(tmp_path, max_steps=2)).run()
    before = (tmp_path / "arguments.yaml").read_text()
    with pytest.raises(ArgumentError, match="has ended, with other values of learning_rate, seed"):
        Trainer(make_arguments(tmp_path, max_steps=2, learning_rate=1e-4, seed=3)).run()
    assert (tmp_path / "arguments.yaml").read_text() == before
    Trainer(make_arguments(tmp_path, max_steps=2)).run()


def test_a_missing_corpus_is_named(make_arguments, tmp_path):
    with pytest.raises(CorpusError, match="holds no corpus"):
        Trainer(make_arguments(tmp_path, corpus=str(tmp_path / "nothing")))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rat=1", "unknown field 'learning_rat'. Did you mean 'learning_rate'?"),
        ("processor.max_secnds=1", "processor has no field 'max_secnds'. Did you mean 'max_seconds'?"),
        ("processor.feature_extractor.padding_valu=1", "has no option 'padding_valu'. Did you mean 'padding_value'?"),
        ("processor.image_processor.image_men=1", "has no option 'image_men'. Did you mean 'image_mean'?"),
    ],
)
def test_misspelt_fields_are_one_line(override, message, make_arguments, tmp_path, monkeypatch, capfd):
    save_arguments(make_arguments(tmp_path / "run"), tmp_path / "run.yaml")
    monkeypatch.setattr(sys, "argv", [str(TRAIN), str(tmp_path / "run.yaml"), override])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TRAIN), run_name="__main__")
    (line,) = ended.value.code.splitlines()
    assert line.startswith("Error: ") and message in line
    assert capfd.readouterr() == ("", "")


def test_a_mistake_is_one_line_on_the_command_line(make_arguments, tmp_path):
    save_arguments(make_arguments(tmp_path / "run"), tmp_path / "run.yaml")
    script = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    done = run_script(script, TRAIN, tmp_path / "run.yaml", "corpus=nowhere")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ") and "nowhere holds no corpus" in line
