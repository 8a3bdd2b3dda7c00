"""Stages of a folder, one after the other: the plan, the order, what is done already, and the first failure."""

from pathlib import Path

import pytest
import yaml

from langdc.data.records import read_records
from langdc.sample.dataset import make_dataset
from langdc.training import runs
from scripts import run_stages
from scripts.run_stages import main, ordered, read_steps
from tests import tiny


def write(folder: Path, name: str, output: str, start: str | None = None, **changes) -> None:
    """A stage file that trains the projectors of a small captioner for two steps."""
    phase = {
        "name": "base", "objective": "caption", "data": [str(folder / "data/images.jsonl")], "steps": 2,
        "batch_size": 2, "trainable": ["compressor.projectors.*"],
    }  # fmt: skip
    tree = {"extends": "common.yaml", "stage": "stage1" if start is None else "stage2", "output": str(folder / output)}
    tree |= {"phases": [{**phase, **changes}]} | ({"start": str(folder / start)} if start else {})
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sample"
    make_dataset(folder, {"train": 0, "test": 0}, images=4, workers=1)
    return folder


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """Three stages whose names are not in their order."""
    (tmp_path / "data").symlink_to(data)
    common = {"model": tiny.config("langdc").model_dump(mode="json"), "log_steps": 1}
    (tmp_path / "common.yaml").write_text(yaml.safe_dump(common))
    write(tmp_path, "c_first", "one")
    write(tmp_path, "b_second", "two", "one")
    write(tmp_path, "a_last", "three", "two")
    return tmp_path


def test_the_order_is_that_of_start_and_output(folder: Path) -> None:
    assert [step.name for step in ordered(read_steps(folder))] == ["c_first", "b_second", "a_last"]
    assert [step.name for step in read_steps(folder, only=["b_second"])] == ["b_second"]


def test_circles_and_shared_places_are_refused(folder: Path, capsys) -> None:
    write(folder, "c_first", "one", "three")
    assert main([str(folder), "--plan"]) == 2
    assert "start from one another's output: a_last, b_second, c_first" in capsys.readouterr().err
    write(folder, "c_first", "two")
    assert main([str(folder), "--plan"]) == 2
    assert "have the same output" in capsys.readouterr().err
    assert main([str(folder), "--only", "d"]) == 2
    assert "has the stage files: a_last, b_second, c_first; not d." in capsys.readouterr().err
    assert main([str(folder / "nowhere")]) == 2


def test_a_broken_file_is_named(folder: Path, capsys) -> None:
    (folder / "b_second.yaml").write_text("extends: gone.yaml\n")
    assert main([str(folder), "--plan"]) == 2
    assert "gone.yaml" in capsys.readouterr().err
    (folder / "b_second.yaml").write_text("extends: b_second.yaml\n")
    assert main([str(folder), "--plan"]) == 2
    assert "extends itself" in capsys.readouterr().err


def test_the_plan_names_commands_and_what_is_missing(folder: Path, capsys) -> None:
    (folder / "data").unlink()
    assert main([str(folder), "--plan", "--launcher", "deepspeed", "--launcher-args=--num_gpus 8", "seed=3"]) == 0
    printed = capsys.readouterr().out
    assert "[1/3] c_first: stage1 (base), to do" in printed
    command = next(line for line in printed.splitlines() if "train/stage2.py" in line)
    assert "-m deepspeed.launcher.runner --num_gpus 8 " in command and command.endswith("b_second.yaml seed=3")
    assert printed.count("missing: ") == 3
    assert main([str(folder)]) == 2
    assert "c_first lacks its data" in capsys.readouterr().err
    assert main([str(folder), "--plan", "--only", "a_last"]) == 0
    assert f"missing: a finished run in {folder / 'two'}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_chain_stops_at_the_first_failure_and_goes_on_from_there(folder: Path, capfd) -> None:
    assert len(read_records(folder / "data/images.jsonl")) == 4
    write(folder, "b_second", "two", "one", trainable=["nothing.*"])
    assert main([str(folder)]) == 2
    said = capfd.readouterr()
    assert "matches no parameter" in said.err and "b_second ended with status 2" in said.err
    assert runs.is_finished(folder / "one") and not (folder / "three").exists()
    write(folder, "b_second", "two", "one")
    assert main([str(folder)]) == 0
    printed = capfd.readouterr().out
    assert "c_first: stage1 (base), done" in printed and "All 3 stages are done" in printed
    assert all(runs.is_finished(folder / name) for name in ("one", "two", "three"))
    assert not (folder / "one-2").exists()
    assert main([str(folder)]) == 0  # nothing is left to do
    assert not (folder / "three-2").exists()


@pytest.mark.slow
def test_a_stage_under_the_deepspeed_launcher(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(run_stages.ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    zero = run_stages.ROOT / "configs/deepspeed/zero2.json"
    arguments = ["--launcher", "deepspeed", "--launcher-args=--num_accelerators 1", f"deepspeed={zero}"]
    assert main([str(folder), "--only", "c_first", *arguments]) == 0
    assert runs.is_finished(folder / "one")
