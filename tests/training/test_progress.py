"""The log: cut back to where training goes on, readable after a kill."""

import json

from transformers import TrainerControl, TrainerState

from langdc.train.progress import JsonLog, read_log


def line(phase, step, seconds=0.0):
    return json.dumps({"phase": phase, "step": step, "loss": 1.0, "seconds": seconds}) + "\n"


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(line("a", 1) + line("b", 1) + '{"phase": "b", "st')
    assert [(entry["phase"], entry["step"]) for entry in read_log(path)] == [("a", 1), ("b", 1)]
    assert len(read_log(path, "a")) == 1
    assert read_log(tmp_path / "none.jsonl") == []


def test_steps_that_are_made_again_are_dropped_and_time_goes_on(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(line("a", 9) + line("b", 2, 50.0) + line("b", 4, 100.0) + line("b", 6, 150.0))
    log = JsonLog(path, "b", lambda step: 8 * step)
    state = TrainerState(global_step=4)
    log.on_train_begin(None, state, TrainerControl())
    state.global_step = 5
    log.on_log(None, state, TrainerControl(), logs={"loss": 0.5, "learning_rate": 0.1})
    log.on_log(None, state, TrainerControl(), logs={"train_runtime": 3.0})
    assert [(entry["phase"], entry["step"]) for entry in read_log(path)] == [("a", 9), ("b", 2), ("b", 4), ("b", 5)]
    last = read_log(path)[-1]
    assert last["samples"] == 40 and last["loss"] == 0.5
    assert 100.0 <= last["seconds"] < 110.0
