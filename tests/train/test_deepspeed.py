"""The command as people start it: under the real launcher, on two processes, killed and started again.

Tiny models of the real classes, real mp4 files, and the ZeRO settings that ship. One process is exact. Two add the same
float32 numbers in another order: losses near 7 have neighbours 5e-7 apart, and differ by one or two of those.
"""

import json
import logging
import os
import random
import re
import signal
import socket
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from langdc import checkpoint, jsonl
from langdc.pipeline import VideoLM
from langdc.train import output, stopping
from tests import tiny
from tests.train import small
from tests.train.kill import run, run_and_ask, run_until

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
STEPS, SAVE_STEPS = 10, 3
POST = ["compressor.post_projector.*", "compressor.segment_marker.*", "backbone.projectors.*"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config and, in `one`, what one process without DeepSpeed makes of it, uninterrupted.

    The dual form, with adapters, captions of its own, and text among the videos: a process whose batch is text alone
    must still make the calls that the others make.
    """
    folder = tmp_path_factory.mktemp("command")
    train = {
        "data": [str(small.folder() / f"{name}.jsonl") for name in ("train", "text")],
        "steps": STEPS, "batch_size": 4, "learning_rate": 1e-3, "trainable": POST, "targets": "none",
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}, "questions_per_video": 3,
    }  # fmt: skip
    model = tiny.config(segment_marker=True, base={"name": "pool", "sides": [3, 2]}).model_dump(mode="json")
    tree = {"stage": "stage3", "objective": "answer", "model": model, "train": train}
    (folder / "run.yaml").write_text(yaml.safe_dump({**tree, "log_steps": 1, "save_steps": SAVE_STEPS}))
    run(command(folder, "one"), env=environment())
    return folder


def command(place: Path, name: str, *more: str) -> list:
    """What trains into the folder `name`."""
    return [ROOT / "train" / "stage3.py", "--config", place / "run.yaml", f"output={place / name}", *more]


def launched(processes: int, words: list) -> list:
    """A command under `deepspeed`, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    number = ["--num_accelerators", processes, "--master_port", port]
    return ["-m", "deepspeed.launcher.runner", *number, *words]


def environment() -> dict[str, str]:
    """No accelerator, and a thread per process."""
    alone = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **alone}


def zero(stage: int) -> list[str]:
    return ["--deepspeed", str(ROOT / "configs" / "deepspeed" / f"zero{stage}.json")]


def killed_and_started_again(words: list, directory: Path, victim: str = "") -> str:
    """Kill a command at a random step after its first checkpoint, and run it again; returns what that prints."""
    line = random.SystemRandom().randint(SAVE_STEPS + 1, STEPS - 3)
    found = run_until(words, directory / output.LOG, line, victim, env=environment())
    logger.warning("%s was to be killed at line %d of %d, and was at line %d", directory.name, line, STEPS, found)
    assert line <= found and not (directory / output.FINISHED).exists()
    return run(words, env=environment())


def losses(directory: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in jsonl.read(directory / output.LOG)}


def figures(directory: Path) -> dict:
    return json.loads((directory / output.FINISHED).read_text())


def assert_close(found: Path, expected: Path) -> None:
    """Losses to rounding, trained tensors to a tenth of what one step (of 1e-3) moves them, and the same counts."""
    ours, theirs = losses(found), losses(expected)
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1))
    assert ours == pytest.approx(theirs, abs=1e-5)
    trained, wanted = (load_file(path / checkpoint.WEIGHTS) for path in (found, expected))
    torch.testing.assert_close(trained, wanted, rtol=0, atol=1e-4)
    for name in ("steps", "samples", "flops"):
        assert figures(found)[name] == figures(expected)[name], name


def test_one_process_under_deepspeed_killed_and_started_again_is_exact(place: Path):
    """With dropout, whose random numbers must continue where they were."""
    more, whole, cut = [*zero(3), "train.lora.dropout=0.2"], "whole-zero3", "cut-zero3"
    run(command(place, whole, *more), env=environment())
    assert figures(place / whole)["hash"] != figures(place / "one")["hash"], "dropout changes it"
    killed_and_started_again(command(place, cut, *more), place / cut)
    assert losses(place / cut) == losses(place / whole)
    assert figures(place / cut)["hash"] == figures(place / whole)["hash"]


TOLD = """import sys
from langdc.train import run
from langdc.train.trainer import RunTrainer
train = RunTrainer.train
def told(trainer, *words, **more):
    print("under DeepSpeed:", trainer.is_deepspeed_enabled)
    return train(trainer, *words, **more)
RunTrainer.train = told
sys.exit(run.main(sys.argv[1:]))
"""


def test_a_run_that_follows_one_under_deepspeed_is_not_under_it(place: Path, tmp_path: Path):
    """Both by one command: accelerate remembers in the environment of the process."""
    tree = yaml.safe_load((place / "run.yaml").read_text())
    tree["train"]["steps"] = 1
    zero2 = str(ROOT / "configs" / "deepspeed" / "zero2.json")
    for name, more in (("first", {"deepspeed": zero2}), ("second", {})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**tree, "output": str(tmp_path / name), **more}))
    said = run(["-c", TOLD, tmp_path / "first.yaml", tmp_path / "second.yaml"], env=environment())
    assert re.findall("under DeepSpeed: (.*)", said) == ["True", "False"]


@pytest.mark.parametrize(("number", "victim"), [(2, ""), (3, "--local_rank=1")], ids=["zero2", "zero3-one-killed"])
def test_two_processes_killed_and_started_again_equal_one(place: Path, sample_video: Path, number: int, victim: str):
    """Features shared through files, gradients accumulated."""
    name = f"two-zero{number}"
    more = [f"features={place / name}-features", "train.batch_size=1", "train.gradient_accumulation=2"]
    said = killed_and_started_again(launched(2, command(place, name, *zero(number), *more)), place / name, victim)
    assert len(re.findall(rf"^{name}: {STEPS} steps, loss \d+\.\d+ -> {place / name}$", said, re.MULTILINE)) == 1, said
    assert_close(place / name, place / "one")
    answers = [
        VideoLM.from_pretrained(place / folder).ask(sample_video, "what is red ?", max_new_tokens=4)
        for folder in (name, "one")
    ]
    assert answers[0].text == answers[1].text and answers[0].captions == answers[1].captions


@pytest.mark.parametrize(
    ("number", "asked", "sent", "code"),
    [(2, "", signal.SIGINT, -signal.SIGINT), (3, "--local_rank=1", signal.SIGTERM, stopping.EXIT_CODE)],
    ids=["zero2-ctrl-c", "zero3-sigterm-to-one"],
)
def test_stopped_under_the_launcher_it_saves_and_resumes(place: Path, number: int, asked: str, sent: int, code: int):
    """Checkpoints are far apart, so what the run is resumed from was saved because of the signal."""
    name = f"stopped-zero{number}"
    words = launched(2, command(place, name, *zero(number), "save_steps=1000", "train.batch_size=2"))
    directory = place / name
    assert run_and_ask(words, directory / output.LOG, 4, sent, asked, env=environment()) == code
    saved, stopped_at = list(directory.glob(f"resume/checkpoint-*/{output.COMPLETE}")), losses(directory)
    assert [path.parent.name for path in saved] == [f"checkpoint-{list(stopped_at)[-1]}"]
    run(words, env=environment())
    assert_close(directory, place / "one")
    assert losses(directory).items() >= stopped_at.items()
