from __future__ import annotations

import math

import numpy as np
from PIL import Image
from speech_image_retrieval.training.log import TrainingLog, draw_curves, read_log


def test_what_is_written_is_read_back(tmp_path):
    log = TrainingLog(tmp_path, first_step=1)
    log.write(1, {"loss/SIC": 2.5, "validation/speech to image, coarse": 12.0})
    log.write(2, {"loss/SIC": math.inf})
    log.close()
    assert read_log(tmp_path / "log.csv") == [
        (1, "loss/SIC", 2.5),
        (1, "validation/speech to image, coarse", 12.0),
        (2, "loss/SIC", math.inf),
    ]


def test_a_resumed_run_drops_only_what_came_after_its_checkpoint(tmp_path):
    log = TrainingLog(tmp_path, first_step=1)
    for step in range(1, 6):
        log.write(step, {"loss/SIC": step / 3})
    log.close()
    log = TrainingLog(tmp_path, first_step=4)
    log.write(4, {"loss/SIC": 9.0})
    log.close()
    assert [(step, round(value, 3)) for step, _, value in read_log(tmp_path / "log.csv")] == [
        (1, 0.333),
        (2, 0.667),
        (3, 1.0),
        (4, 9.0),
    ]


def test_rewriting_a_log_changes_no_digit(tmp_path):
    log = TrainingLog(tmp_path, first_step=1)
    log.write(1, {"a": 1 / 3, "b": 1.23456789e-12, "c": 1e20})
    log.close()
    first = read_log(tmp_path / "log.csv")
    TrainingLog(tmp_path, first_step=2).close()
    assert read_log(tmp_path / "log.csv") == first


def test_a_line_cut_off_by_a_kill_does_not_stop_the_run_from_resuming(tmp_path):
    log = TrainingLog(tmp_path, first_step=1)
    log.write(1, {"loss/SIC": 2.5})
    log.write(2, {"loss/SIC": 2.0})
    log.close()
    path = tmp_path / "log.csv"
    for cut in range(1, 14):
        path.write_bytes(path.read_bytes()[:-1])
        TrainingLog(tmp_path, first_step=2).close()
        assert read_log(path) == [(1, "loss/SIC", 2.5)], cut
        path.write_text(path.read_text() + "2,loss/SIC,2.0"[:cut])


def test_no_log_is_no_rows(tmp_path):
    assert read_log(tmp_path / "log.csv") == []


def test_curves_are_drawn_of_any_log(tmp_path):
    TrainingLog(tmp_path, first_step=1).close()
    draw_curves(tmp_path / "log.csv", tmp_path / "empty.png")
    log = TrainingLog(tmp_path, first_step=1)
    for step in range(1, 4):
        log.write(step, {"loss/SIC": 1 / step, "temperature": 0.07})
    log.write(3, {"validation/speech to image, coarse": 50.0})
    log.close()
    draw_curves(tmp_path / "log.csv", tmp_path / "curves.png")
    empty, drawn = (np.asarray(Image.open(tmp_path / name)) for name in ("empty.png", "curves.png"))
    assert empty.shape[1] > 600
    assert empty.shape != drawn.shape or (empty != drawn).any()
