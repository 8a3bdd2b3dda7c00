"""Output directories: numbered when finished, resumed when not, never mixed, never written by two runs."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock

from langdc import jsonl
from langdc.config import RunConfig, check
from langdc.train import output
from langdc.train.output import latest, resolve_output_dir


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LOCK_TIMEOUT_SECONDS", 0.1)


def settings(place: Path, train: dict | None = None, **run: object) -> RunConfig:
    place.parent.mkdir(parents=True, exist_ok=True)
    data = place.parent / "records.jsonl"
    if not data.exists():
        data.write_text('{"id": "one"}\n')
    member = {"name": "pool"}
    tree = {
        "objective": "answer",
        "model": {"backbone": member, "compressor": member},
        "output": str(place),
        "train": {"data": [str(data)], "steps": 10, "batch_size": 4, "learning_rate": 3e-3, **(train or {})},
        **run,
    }
    return check(RunConfig, tree, "test")


def opened(config: RunConfig) -> Path:
    with resolve_output_dir(config) as directory:
        return directory


def finish(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    jsonl.write_json(directory / output.FINISHED, {})


def begin(config: RunConfig) -> None:
    """A run that was killed after its first checkpoint."""
    mark = opened(config) / output.RESUME / "checkpoint-4" / output.COMPLETE
    mark.parent.mkdir(parents=True)
    mark.touch()


def test_a_finished_run_is_followed_by_numbered_ones(tmp_path: Path):
    config = settings(tmp_path / "deep" / "x")
    for name in ("x", "x-2", "x-3"):
        directory = opened(config)
        assert directory.name == name
        finish(directory)


def test_numbers_go_on_after_the_highest_and_other_names_do_not_count(tmp_path: Path):
    for name in ("x", "x-10", "x-other", "x-9.old"):
        (tmp_path / name).mkdir()
    finish(tmp_path / "x-10")
    assert opened(settings(tmp_path / "x")).name == "x-11"


def test_an_unfinished_run_is_resumed_with_the_same_settings(tmp_path: Path):
    config = settings(tmp_path / "x")
    begin(config)
    assert opened(config.model_copy(update={"log_steps": 7, "workers": 3})) == config.output
    assert "log_steps: 7" in (config.output / "config.yaml").read_text()


def test_other_settings_are_refused_and_the_message_names_them(tmp_path: Path):
    begin(settings(tmp_path / "x"))
    with pytest.raises(ValueError, match=r"train\.learning_rate: 0\.003 before, 0\.1 now") as error:
        opened(settings(tmp_path / "x", {"learning_rate": 0.1}))
    assert "output=" in str(error.value) and "batch_size" not in str(error.value)


def test_other_records_are_refused_and_the_file_is_named(tmp_path: Path):
    config = settings(tmp_path / "x")
    begin(config)
    config.train.data[0].write_text('{"id": "another"}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl holds other records"):
        opened(config)


def test_another_number_of_processes_resumes_if_a_step_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begin(settings(tmp_path / "x"))
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"samples of a step .*: 4 before, 16 now"):
        opened(settings(tmp_path / "x"))
    with pytest.raises(ValueError, match=r"learning_rate: 0\.003 before, 0\.1 now") as error:
        opened(settings(tmp_path / "x", {"learning_rate": 0.1, "batch_size": 1}))
    assert "samples of a step" not in str(error.value)
    assert opened(settings(tmp_path / "x", {"batch_size": 1})) == tmp_path / "x"


def test_a_run_without_a_checkpoint_gives_way_to_other_settings(tmp_path: Path):
    opened(settings(tmp_path / "x"))
    (tmp_path / "x" / "log.jsonl").write_text("{}\n")
    assert opened(settings(tmp_path / "x", {"learning_rate": 0.1})) == tmp_path / "x"
    assert not (tmp_path / "x" / "log.jsonl").exists()


@pytest.mark.parametrize("progress", ["resume/density/checkpoint-4", "phases/density"])
def test_an_unfinished_run_of_version_0_1_is_left_alone(tmp_path: Path, progress: str):
    opened(settings(tmp_path / "x"))
    (tmp_path / "x" / "log.jsonl").write_text("{}\n")
    (tmp_path / "x" / progress).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"unfinished run of version 0\.1"):
        opened(settings(tmp_path / "x"))
    assert (tmp_path / "x" / "log.jsonl").exists()


def test_other_files_are_left_alone(tmp_path: Path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="no training run"):
        opened(settings(tmp_path / "x"))


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", "config.yaml.partial"], [".lock", "config.yaml"]])
def test_what_a_kill_at_the_start_leaves_can_be_used(tmp_path: Path, left: list[str]):
    """The settings are written before anything else."""
    config = settings(tmp_path / "x")
    (tmp_path / "x").mkdir()
    for name in left:
        (tmp_path / "x" / name).touch()
    assert opened(config) == tmp_path / "x"


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"output: .*file/x cannot be made"):
        opened(settings(tmp_path / "y").model_copy(update={"output": tmp_path / "file" / "x"}))


def test_a_second_run_into_one_place_is_refused_until_the_first_one_ends(tmp_path: Path):
    config = settings(tmp_path / "x")
    with resolve_output_dir(config) as directory:
        with pytest.raises(ValueError, match="Another process is training into"):
            opened(config)
        assert (directory / "config.yaml").is_file()
    assert opened(config) == directory


def test_a_run_that_another_process_finished_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch):
    """The other one ends between the look at the directory and the lock."""
    config, lock = settings(tmp_path / "x"), output._lock

    def finished_first(directory: Path, held: ExitStack) -> None:
        lock(directory, held)
        if directory == config.output:
            finish(directory)

    monkeypatch.setattr(output, "_lock", finished_first)
    assert opened(config).name == "x-2"
    with FileLock(tmp_path / "x" / output.LOCK, timeout=0):
        pass  # and nobody holds it any longer


def test_latest_is_the_newest_finished_one(tmp_path: Path):
    assert latest(tmp_path / "x") is None
    for name in ("x", "x-2", "x-10", "x-11"):
        (tmp_path / name).mkdir()
        if name != "x-11":
            finish(tmp_path / name)
    assert latest(tmp_path / "x") == tmp_path / "x-10"


def test_replies_stay_for_the_same_run_and_go_with_other_settings(tmp_path: Path) -> None:
    config = settings(tmp_path / "run")
    with resolve_output_dir(config) as directory:
        pass
    (replies := directory / "replies-0.jsonl").write_text("{}\n")
    with resolve_output_dir(config):
        assert replies.is_file()
    with resolve_output_dir(config.model_copy(update={"seed": 5})):
        assert not replies.exists()
