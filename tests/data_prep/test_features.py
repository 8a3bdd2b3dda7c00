"""The command that stores encoder outputs: it says what it will take, and training and evaluation find what it made."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from langdc import store as stores
from langdc.cli import door
from langdc.config import RunConfig, load
from langdc.features import FeatureStore
from langdc.pipeline import VideoLM
from langdc.prepare import features as command
from langdc.store import TensorStore
from langdc.train.run import train
from tests import tiny
from tests.evaluate import runs

ROOT = Path(__file__).resolve().parents[2]
main = door("data features")


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """The settings of a run on three videos, with a folder for features."""
    data = runs.write_data(tmp_path / "data")
    train = {
        "data": [str(data)],
        "trainable": ["compressor.post_projector.*"],
        "steps": 2,
        "batch_size": 3,
        "questions_per_video": 4,
    }
    model = tiny.config("langdc").model_dump(mode="json")
    places = {"output": str(tmp_path / "run"), "features": str(tmp_path / "features")}
    tree = {"model": model, "objective": "answer", "train": train, **places, "log_steps": 1}
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def store(folder: Path) -> TensorStore:
    return TensorStore(folder / "features")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_finds_what_was_stored(
    stage: Path, precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In bfloat16 frozen encoders are, too."""
    assert main(["--train", str(stage), f"precision={precision}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 videos and images, of which 0 are stored" in printed
    assert "video of 4 x 4 frames: 3 of them" in printed
    # 16 frames of 36 image and 16 video patches, 24 and 32 wide, of 2 bytes; 16 times of 8
    size = (16 * (36 * 24 + 16 * 32) * 2 + 16 * 8) / 1e6
    assert f"{size:.3g} MB each as bfloat16, {size:.3g} GB per 1,000" in printed
    assert f"Stored: {size:.3g} MB a video or image" in printed
    assert re.search(r"Read: [\d.e+]+ MB/s", printed)
    assert "Hit rate: 0.0 % (0 were there, 3 were not)" in printed
    assert re.search(r"It pays after 1\.\d\d epochs|It does not pay", printed)
    monkeypatch.setattr(FeatureStore, "encode", lambda *_: pytest.fail("it was stored"))
    train(load(RunConfig, stage, [f"precision={precision}"]))


def test_again_everything_is_there(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--train", str(stage)]) == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in (stage.parent / "features").rglob("*.*"))
    capsys.readouterr()
    assert main(["--train", str(stage)]) == 0
    printed = capsys.readouterr().out
    assert "of which 3 are stored" in printed and "Hit rate: 100.0 %" in printed and "To store: 0 GB" in printed
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (stage.parent / "features").rglob("*.*"))


def test_a_plan_stores_nothing(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--train", str(stage), "--plan", "features_dtype=float8"]) == 0
    # half as much as bfloat16, and a scale of 4 bytes for each of the 24 + 32 channels
    size = (16 * (36 * 24 + 16 * 32) + 4 * (24 + 32) + 16 * 8) / 1e6
    assert f"{size:.3g} MB each as float8" in capsys.readouterr().out
    assert not (stage.parent / "features").exists()


def test_losses_are_those_of_features_in_memory(stage: Path, tmp_path: Path) -> None:
    exact = ["features_dtype=float32"]
    assert main(["--train", str(stage), *exact]) == 0
    losses = []
    for name, folder in (("stored", str(tmp_path / "features")), ("memory", "null")):
        config = load(RunConfig, stage, [*exact, f"output={tmp_path / name}", f"features={folder}"])
        losses.append(json.loads((train(config) / "finished.json").read_text())["loss"])
    assert losses[0] == losses[1]


def test_an_evaluation_finds_what_was_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.prepare(tmp_path)
    (tmp_path / "data" / "videos" / "v1.mp4").write_bytes(b"no video")
    with (tmp_path / "data" / "test.jsonl").open("a") as file:
        file.write("no record\n")
    path, tree = tmp_path / "eval.yaml", runs.config(tmp_path).model_dump(mode="json")
    path.write_text(yaml.safe_dump({**tree, "features": str(tmp_path / "features"), "features_dtype": "float32"}))
    assert main(["--eval", str(path)]) == 1  # one cannot be read; the others are there
    assert "1 videos or images could not be stored" in capsys.readouterr().out
    lm = VideoLM.from_pretrained(tmp_path / "pool")
    features = FeatureStore.of(lm.model.backbone, tmp_path / "features", "float32")
    for name, there in (("v0", True), ("v1", False), ("v2", True)):
        assert (features.find(lm.frame_spec(tmp_path / "data" / "videos" / f"{name}.mp4")) is not None) == there


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["features=null"], "add features=DIR"),
        (["featurs=x"], "Did you mean 'features'"),
        (["features_dtype=float4"], "features_dtype"),
    ],
)
def test_mistakes_are_one_line(
    stage: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["--train", str(stage), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_what_does_not_fit_is_not_begun(
    stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert main(["--train", str(stage)]) == 2
    assert "do not fit" in capsys.readouterr().err and not (stage.parent / "features").exists()


def test_a_disk_that_fills_up_is_exit_code_3(
    stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores, "save_file", full)
    assert main(["--train", str(stage)]) == 3
    assert "make room" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("from_file", "from_store", "said"),
    [(2.0, 1.0, "after 2.00 epochs: in epoch 3"), (1.0, 0.1, "after 1.11 epochs: in epoch 2"), (1.0, 1.0, "not pay")],
)
def test_it_pays_once_the_epochs_saved_outweigh_the_pass_it_costs(from_file: float, from_store: float, said: str):
    assert said in command._pays(from_file, from_store)


def launch(stage: Path, processes: int) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*(launcher if processes > 1 else [sys.executable]), "data_prep/features.py", "--train", str(stage)]
    return subprocess.Popen(
        [*command, "features_dtype=float32"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def contents(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = store(folder)
    assert found.folder is not None
    return {path.stem: found[path.stem] for path in sorted(found.folder.glob("*/*.safetensors"))}


@pytest.mark.slow
def test_two_processes_and_a_kill_store_the_same(stage: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path / "data", videos=12)
    alone = launch(stage, 1)
    said, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, said
    wanted = contents(tmp_path)
    assert len(wanted) == 12
    (tmp_path / "features").rename(tmp_path / "alone")
    killed = launch(stage, 1)
    while not list((tmp_path / "features").glob("*/*.safetensors")) and killed.poll() is None:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert 0 < len(contents(tmp_path)) <= 12
    both = launch(stage, 2)
    said, _ = both.communicate(timeout=300)
    assert both.returncode == 0, said
    found = contents(tmp_path)
    assert found.keys() == wanted.keys()
    for key, tensors in wanted.items():
        assert tensors.keys() == found[key].keys()
        assert all(torch.equal(tensor, found[key][name]) for name, tensor in tensors.items())
