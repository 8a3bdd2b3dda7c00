"""Directories: numbered when finished, continued when not, never mixed."""

import pytest

from langdc.training import runs
from tests.training.toy import settings


def finish(directory):
    runs.write_json(directory / runs.FINISHED, {})


def begin(config):
    """A run that was killed after its first checkpoint."""
    mark = runs.claim(config).directory / "resume" / "toy" / "checkpoint-4" / runs.COMPLETE
    mark.parent.mkdir(parents=True)
    mark.touch()


def test_a_finished_run_is_followed_by_numbered_ones(tmp_path):
    config = settings(tmp_path / "deep" / "x")
    for name in ("x", "x-2", "x-3"):
        run = runs.claim(config)
        assert (run.directory.name, run.resumed) == (name, False)
        finish(run.directory)
    assert [path.name for path in runs.numbered(config.output)] == ["x", "x-2", "x-3"]


def test_numbers_go_on_after_the_highest_and_other_names_do_not_count(tmp_path):
    for name in ("x", "x-10", "x-other", "x-9.old"):
        (tmp_path / name).mkdir()
    finish(tmp_path / "x-10")
    assert runs.claim(settings(tmp_path / "x")).directory.name == "x-11"


def test_an_unfinished_run_goes_on_with_the_same_settings(tmp_path):
    config = settings(tmp_path / "x")
    begin(config)
    run = runs.claim(config.model_copy(update={"log_steps": 7, "workers": 3}))
    assert run.resumed and run.directory == config.output
    assert "log_steps: 7" in (config.output / "config.yaml").read_text()


def test_other_settings_do_not_go_on_and_the_message_says_which(tmp_path):
    begin(settings(tmp_path / "x"))
    with pytest.raises(ValueError, match=r"phases\.0\.learning_rate: 0\.003 there, 0\.1 now") as error:
        runs.claim(settings(tmp_path / "x", {"learning_rate": 0.1}))
    assert "output=" in str(error.value) and "batch_size" not in str(error.value)


def test_another_number_of_processes_goes_on_if_a_step_stays_the_same(tmp_path, monkeypatch):
    begin(settings(tmp_path / "x"))
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"samples of a step .*: 4 there, 16 now"):
        runs.claim(settings(tmp_path / "x"))
    with pytest.raises(ValueError, match=r"learning_rate: 0\.003 there, 0\.1 now") as error:
        runs.claim(settings(tmp_path / "x", {"learning_rate": 0.1, "batch_size": 1}))
    assert "samples of a step" not in str(error.value)
    assert runs.claim(settings(tmp_path / "x", {"batch_size": 1})).resumed


def test_a_phase_without_steps_is_not_shared_out(tmp_path, monkeypatch):
    solved = {"objective": "align", "steps": None, "epochs": 1}
    begin(settings(tmp_path / "x", solved))
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"batch_size: 4 there, 1 now"):
        runs.claim(settings(tmp_path / "x", solved | {"batch_size": 1}))
    assert runs.claim(settings(tmp_path / "x", solved)).resumed


def test_a_run_that_left_nothing_to_go_on_from_gives_way(tmp_path):
    runs.claim(settings(tmp_path / "x"))
    (tmp_path / "x" / "log.jsonl").write_text("{}")
    run = runs.claim(settings(tmp_path / "x", {"learning_rate": 0.1}))
    assert run.directory == tmp_path / "x" and not run.resumed
    assert not (tmp_path / "x" / "log.jsonl").exists()


def test_a_directory_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="no run of a stage"):
        runs.claim(settings(tmp_path / "x"))


def test_a_directory_that_a_kill_left_empty_is_used(tmp_path):
    (tmp_path / "x").mkdir()
    assert runs.claim(settings(tmp_path / "x")).directory == tmp_path / "x"


def test_latest_is_the_newest_finished_one(tmp_path):
    assert runs.latest(tmp_path / "x") is None
    for name in ("x", "x-2", "x-10", "x-11"):
        (tmp_path / name).mkdir()
        if name != "x-11":
            finish(tmp_path / name)
    assert runs.latest(tmp_path / "x") == tmp_path / "x-10"
