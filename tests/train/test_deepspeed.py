"""The doors as people start them: under the real launcher, on two processes, killed and started again.

Tiny models of the real classes, real mp4 files, and the ZeRO settings that ship. One process is exact. Two add the same
float32 numbers in another order: losses near 7 have neighbours 5e-7 apart, and differ by one or two of those.
"""

import json
import os
import random
import signal
import socket
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from langdc import checkpoint, jsonl
from langdc.data.records import QuestionRecord, Record, write_records
from langdc.pipeline import VideoLM
from langdc.sample.dataset import make_dataset
from langdc.train import output, stopping
from tests import tiny
from tests.train.kill import losses, run, run_and_ask, run_until

ROOT = Path(__file__).parents[2]
STEPS = {"base": 4, "density": 8, "post": 4, "instruct": 8}
SAVE_STEPS = 3

pytestmark = pytest.mark.slow


def settings(name: str, objective: str, data: list[Path], trainable: list[str], **train: object) -> dict:
    common = {"steps": STEPS[name], "data": list(map(str, data)), "batch_size": 4, "learning_rate": 1e-3}
    return {"objective": objective, "train": {**common, "trainable": trainable, **train}}


def write_configs(folder: Path, data: Path) -> None:
    """A chain of four runs; the last in the dual form, with adapters, and with text among the videos.

    A process whose batch is text alone must still make the calls that the others make.
    """
    images, videos, text = (data / f"{name}.jsonl" for name in ("images", "train", "text"))
    captioner = ["compressor.projectors.*", "compressor.captioner.*"]
    post = ["compressor.post_projector.*", "compressor.segment_marker*"]
    adapted = {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}, "targets": "none", "questions_per_video": 3}
    model = tiny.config(segment_marker=True)
    dual = tiny.config(segment_marker=True, base={"name": "pool", "sides": [3, 2]})
    for name, parts, tree in (
        ("base", model, settings("base", "compress", [images], captioner)),
        ("density", model, settings("density", "compress", [videos], captioner)),
        ("post", model, settings("post", "answer", [videos], post, kinds=["describe", "describe_video"])),
        ("instruct", dual, settings("instruct", "answer", [videos, text], [*post, "backbone.projectors.*"], **adapted)),
    ):
        common = {"model": parts.model_dump(mode="json"), "output": f"runs/{name}"}
        file = {**common, **tree, "log_steps": 1, "save_steps": SAVE_STEPS}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(file))
    (folder / "chain.yaml").write_text(yaml.safe_dump([f"{name}.yaml" for name in STEPS]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, configs, and in `one` what one process without DeepSpeed makes of the chain, uninterrupted."""
    folder = tmp_path_factory.mktemp("doors")
    data = folder / "data"
    make_dataset(data, {"train": 8, "test": 0}, images=8, workers=1)
    asked = [QuestionRecord(kind="say", question=f"say {word}", answer=word) for word in ("red", "ring", "left", "2")]
    write_records(data / "text.jsonl", [Record(id=one.answer, questions=[one]) for one in asked])
    write_configs(folder, data)
    run(door(folder, "one"), env=environment())
    return folder


def door(place: Path, name: str, *more: str) -> list:
    """The command that trains the chain into the folder `name`."""
    return [ROOT / "train/stage2.py", "--config", place / "chain.yaml", f"output={place / name}", *more]


def launched(processes: int, command: list) -> list:
    """A command under `deepspeed`, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ["-m", "deepspeed.launcher.runner", "--num_accelerators", processes, "--master_port", port, *command]


def environment() -> dict[str, str]:
    """No accelerator, and a thread per process."""
    alone = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **alone}


def killed_and_started_again(command: list, directory: Path, victim: str = "") -> str:
    """Kill a command at a random step after a run's first checkpoint, and run it again; returns what that prints."""
    line = random.SystemRandom().randint(SAVE_STEPS + 1, STEPS[directory.name] - 2)
    found = run_until(command, directory / "log.jsonl", line, victim, env=environment())
    assert line <= found and not output.is_finished(directory)
    return run(command, env=environment())


def figures(directory: Path) -> dict:
    return json.loads((directory / output.FINISHED).read_text())


def assert_close(found: Path, expected: Path) -> None:
    """Losses to rounding, trained tensors to a tenth of what one step (of 1e-3) moves them, and the same counts."""
    for name, steps in STEPS.items():
        ours, theirs = losses(found / name / "log.jsonl"), losses(expected / name / "log.jsonl")
        assert list(ours) == list(theirs) == list(range(1, steps + 1))
        assert ours == pytest.approx(theirs, abs=1e-5)
        trained, wanted = (load_file(path / name / checkpoint.WEIGHTS) for path in (found, expected))
        torch.testing.assert_close(trained, wanted, rtol=0, atol=1e-4)
        for figure in ("steps", "samples"):
            assert figures(found / name)[figure] == figures(expected / name)[figure]


@pytest.mark.parametrize("name", ["density", "instruct"])
def test_one_process_killed_and_started_again_is_exact(place: Path, name: str):
    folder = place / f"killed-{name}"
    killed_and_started_again(door(place, folder.name), folder / name)
    for each in STEPS:
        assert losses(folder / each / "log.jsonl") == losses(place / "one" / each / "log.jsonl")
        assert figures(folder / each)["hash"] == figures(place / "one" / each)["hash"]


def test_one_process_under_deepspeed_killed_and_started_again_is_exact(place: Path):
    """With dropout, whose random numbers must continue where they were."""
    more = ["train.lora.dropout=0.2", "--deepspeed", "deepspeed/zero3.json"]
    command = [ROOT / "train/stage3.py", "--config", place / "instruct.yaml", f"start={place / 'one/post'}", *more]
    whole, cut = place / "whole/instruct", place / "cut/instruct"
    run([*command, f"output={whole}"], env=environment())
    assert figures(whole)["hash"] != figures(place / "one/instruct")["hash"], "dropout changes it"
    killed_and_started_again([*command, f"output={cut}"], cut)
    assert losses(cut / "log.jsonl") == losses(whole / "log.jsonl")
    assert figures(cut)["hash"] == figures(whole)["hash"]


@pytest.mark.parametrize(("number", "victim"), [(2, ""), (3, "--local_rank=1")], ids=["zero2", "zero3-one-killed"])
def test_two_processes_killed_and_started_again_equal_one(place: Path, sample_video: Path, number: int, victim: str):
    """All ranks go through the chain; features are shared through files, and the last run is killed."""
    name = f"two-zero{number}"
    more = [
        "train.batch_size=2",
        f"features={place / name / 'features'}",
        "--deepspeed",
        f"deepspeed/zero{number}.json",
    ]
    said = killed_and_started_again(launched(2, door(place, name, *more)), place / name / "instruct", victim)
    (last,) = [line for line in said.splitlines() if line.startswith("instruct: ")]
    assert last.startswith("instruct: 8 steps, loss ") and last.endswith(f"-> {place / name / 'instruct'}")
    assert_close(place / name, place / "one")
    answers = [
        VideoLM.from_pretrained(place / folder / "instruct").ask(sample_video, "what is red ?", max_new_tokens=4)
        for folder in (name, "one")
    ]
    assert answers[0].text == answers[1].text and answers[0].captions == answers[1].captions


def test_processes_are_started_by_the_command(place: Path):
    """`langdc train --processes 2`: the launcher on the module."""
    command = ["-m", "langdc.cli", "train", place / "base.yaml", f"output={place / 'by-command/base'}"]
    run([*command, "train.batch_size=2", "--processes", "2"], env=environment())
    found = losses(place / "by-command/base/log.jsonl")
    assert found == pytest.approx(losses(place / "one/base/log.jsonl"), abs=1e-5)
    assert json.loads((place / "by-command/base/run.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("number", "asked", "sent", "code"),
    [(2, "", signal.SIGINT, -signal.SIGINT), (3, "--local_rank=1", signal.SIGTERM, stopping.EXIT_CODE)],
    ids=["zero2-ctrl-c", "zero3-sigterm-to-one"],
)
def test_stopped_under_the_launcher_it_saves_and_is_resumed(place: Path, number: int, asked: str, sent: int, code: int):
    """Checkpoints are far apart, so what the run is resumed from was saved because of the signal."""
    name = f"stopped-zero{number}"
    more = ["save_steps=1000", "train.batch_size=2", "--deepspeed", f"deepspeed/zero{number}.json"]
    command, directory = launched(2, door(place, name, *more)), place / name / "density"
    assert run_and_ask(command, directory / "log.jsonl", 4, sent, asked, env=environment()) == code
    saved = list(directory.glob(f"{output.RESUME}/checkpoint-*/{output.COMPLETE}"))
    stopped_at = jsonl.read(directory / "log.jsonl")
    assert [path.parent.name for path in saved] == [f"checkpoint-{stopped_at[-1]['step']}"]
    run(command, env=environment())
    assert_close(place / name, place / "one")
