"""Output directories: numbered when finished, resumed when not, never mixed, never written by two runs."""

import logging
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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
    (tmp_path / "records.jsonl").write_text('{"id": "another"}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl holds other records"):
        opened(config)


def test_files_of_a_folder_of_records_are_named(tmp_path: Path):
    (tmp_path / "web").mkdir()
    for name in ("a", "b"):
        (tmp_path / "web" / f"{name}.jsonl").write_text("{}\n")
    config = settings(tmp_path / "x", {"data": [{"path": str(tmp_path / "web"), "cap": 3}]})
    begin(config)
    (tmp_path / "web" / "b.jsonl").rename(tmp_path / "web" / "c.jsonl")
    with pytest.raises(ValueError, match=r"web/b\.jsonl is not there\n.*web/c\.jsonl is new"):
        opened(config)
    (tmp_path / "web" / "c.jsonl").rename(tmp_path / "web" / "b.jsonl")
    assert opened(config) == config.output


@pytest.mark.parametrize("setting", ["quarantine", "validation", "deepspeed", "start", "model"])
def test_every_file_that_decides_what_is_learned_is_compared(tmp_path: Path, setting: str):
    """A list of records left out, held-out records, ZeRO settings, an earlier run, a stock model's chat template."""
    files = {"quarantine": "q.jsonl", "validation": "v.jsonl", "deepspeed": "d.json"}
    file = tmp_path / files.get(setting, f"{setting}/chat_template.jinja")
    train: dict = {"quarantine": str(file)} if setting == "quarantine" else {}
    train |= {"validation": {"data": [str(file)]}} if setting == "validation" else {}
    run: dict = {setting: str(file if setting == "deepspeed" else file.parent)} if setting not in train else {}
    if setting == "model":
        run = {"model": {"backbone": {"name": "qwen2_vl", "source": str(file.parent)}, "compressor": {"name": "pool"}}}
    file.parent.mkdir(exist_ok=True)
    (tmp_path / setting / "config.json").parent.mkdir(exist_ok=True)
    (tmp_path / setting / "config.json").write_text("{}")
    save_file({"x": torch.ones(1)}, tmp_path / setting / "model.safetensors")
    file.write_text("{}\n")
    config = settings(tmp_path / "x", train, **run)
    begin(config)
    assert opened(config) == config.output
    file.write_text('{"other": 1}\n')
    with pytest.raises(ValueError, match=rf"{file.name} holds other"):
        opened(config)


def test_a_folder_named_like_a_member_is_none_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = settings(tmp_path / "pool")
    begin(config)
    output.check_unchanged(config, config.output, [])
    assert opened(config) == config.output


def test_an_unfinished_run_may_be_moved_with_its_data(tmp_path: Path):
    begin(settings(tmp_path / "one" / "x"))
    shutil.move(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "x").rename(tmp_path / "two" / "y")
    assert opened(settings(tmp_path / "two" / "y")) == tmp_path / "two" / "y"
    with pytest.raises(ValueError, match="learning_rate") as error:
        opened(settings(tmp_path / "two" / "y", {"learning_rate": 0.1}))
    assert "output" not in str(error.value).partition("Resume with")[0]


def test_files_that_change_while_they_are_read_end_the_run(tmp_path: Path):
    config = settings(tmp_path / "x")
    directory = opened(config)
    output.check_unchanged(config, directory, [])
    (tmp_path / "records.jsonl").write_text("changed\n")
    with pytest.raises(ValueError, match=r"while they were read.*\n.*records\.jsonl holds other records"):
        output.check_unchanged(config, directory, [])


def test_other_videos_are_refused_and_one_is_named(tmp_path: Path):
    config, videos = settings(tmp_path / "x"), [tmp_path / "a.mp4", tmp_path / "frames" / "1.png"]
    for path in videos:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"one")
    media = [videos[0], videos[1].parent]
    begin(config)
    output.check_unchanged(config, config.output, media)
    opened(config)
    output.check_unchanged(config, config.output, media)
    for path, shown in zip(videos, media, strict=True):
        path.write_bytes(b"longer")
        with pytest.raises(ValueError, match=rf"1 have another size, such as {shown}"):
            output.check_unchanged(config, config.output, media)
        path.write_bytes(b"two")


def test_a_name_with_signs_of_patterns_is_numbered(tmp_path: Path):
    config = settings(tmp_path / "x[1]*")
    finish(opened(config))
    finish(opened(config))
    assert opened(config).name == "x[1]*-3"


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logging.getLogger("langdc"), "propagate", True)
    assert output.newest_whole(tmp_path) is None
    for step in (8, 9, 10):
        (folder := tmp_path / f"checkpoint-{step}" / "deep").mkdir(parents=True)
        (folder / "weights").write_text("good")
        (folder.parent / "state.json").write_text("{}")
        output.mark_complete(folder.parent)
    assert output.newest_whole(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "deep" / "weights").write_text("bad!")
    (tmp_path / "checkpoint-9" / "state.json").write_bytes(b"")
    assert output.newest_whole(tmp_path) == tmp_path / "checkpoint-8"
    assert list(dict.fromkeys(record.message.partition("checkpoint-")[2] for record in caplog.records)) == [
        "10 is damaged (weights); resuming from checkpoint-8 before it.",
        "9 is damaged (state.json); resuming from checkpoint-8 before it.",
    ]
    assert [path.name for path in output.checkpoints(tmp_path)] == ["checkpoint-8"]
    (tmp_path / "checkpoint-8" / "state.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-8/state\.json is damaged"):
        output.newest_whole(tmp_path)


def test_empty_files_of_a_checkpoint_without_hashes_are_noticed(tmp_path: Path):
    """As a power cut left them before checkpoints had hashes."""
    for step in (1, 2):
        (folder := tmp_path / f"checkpoint-{step}").mkdir()
        (folder / "state.json").write_text("{}")
        (folder / output.COMPLETE).touch()
    (tmp_path / "checkpoint-2" / "state.json").write_bytes(b"")
    assert output.newest_whole(tmp_path) == tmp_path / "checkpoint-1"


def test_a_checkpoint_counts_when_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (checkpoint := tmp_path / "resume" / "checkpoint-1").mkdir(parents=True)
    (checkpoint / "weights").write_text("good")
    (tmp_path / output.LOG).touch()
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: (calls.append(Path(f"/proc/self/fd/{number}").readlink().name), sync(number))
    )
    monkeypatch.setattr(Path, "replace", lambda path, to: (calls.append("rename"), replace(path, to)))
    output.mark_complete(checkpoint)
    assert calls == ["log.jsonl", "weights", "checkpoint-1", "complete.partial", "rename", "checkpoint-1"]


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


@pytest.mark.parametrize(
    "left", [[], [".lock"], [".lock", "config.yaml.partial"], [".lock", "config.yaml"], [".lock.1"]]
)
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
        with pytest.raises(ValueError, match="Another process still writes into"):
            opened(config)
        assert (directory / "config.yaml").is_file()
    assert opened(config) == directory


def test_a_run_that_another_process_finished_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch):
    """The other one ends between the look at the directory and the lock."""
    config, locked = settings(tmp_path / "x"), jsonl.locked

    @contextmanager
    def finished_first(path: Path, *others):
        with locked(path, *others):
            if path == config.output / jsonl.LOCK:
                finish(path.parent)
            yield

    monkeypatch.setattr(jsonl, "locked", finished_first)
    assert opened(config).name == "x-2"
    monkeypatch.undo()
    with jsonl.locked(tmp_path / "x" / jsonl.LOCK, ""):
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
