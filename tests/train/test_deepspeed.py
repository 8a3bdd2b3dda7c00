"""The applications as people start them: under the real launcher, on two processes, killed and started again.

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
from langdc.training import runs, stopping
from safetensors.torch import load_file
from tests.training.kill import losses, run, run_and_ask, run_until

from langdc import checkpoint
from langdc.data.records import QuestionRecord, Record, write_records
from langdc.pipeline import VideoLM
from langdc.sample.dataset import make_dataset
from tests import tiny

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
STEPS = {"stage2": {"base": 4, "density": 5, "post": 4}, "stage3": {"instruct": 10}}
SAVE_STEPS = 3

pytestmark = pytest.mark.slow


def phase(name: str, objective: str, steps: int, data: list[Path], trainable: list[str], **more) -> dict:
    common = {"name": name, "objective": objective, "steps": steps, "data": list(map(str, data))}
    return {**common, "trainable": trainable, "batch_size": 4, "learning_rate": 1e-3, **more}


def write_configs(folder: Path, data: Path) -> None:
    """Stage 2 in its three phases; stage 3 in the dual form, with adapters, and with text among the videos.

    A process whose batch is text alone must still make the calls that the others make.
    """
    images, videos, text = (data / f"{name}.jsonl" for name in ("images", "train", "text"))
    model, base = tiny.config(segment_marker=True), {"name": "pool", "sides": [3, 2]}
    captioner = ["compressor.projectors.*", "compressor.captioner.*"]
    post = ["compressor.post_projector.*", "compressor.segment_marker"]
    steps = STEPS["stage2"]
    stage2 = [
        phase("base", "caption", steps["base"], [images], captioner),
        phase("density", "caption", steps["density"], [videos], captioner),
        phase("post", "answer", steps["post"], [videos], post, kinds=["describe", "describe_video"]),
    ]
    adapted = {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}, "captions": "captioner", "questions_per_video": 3}
    last = STEPS["stage3"]["instruct"]
    stage3 = [phase("instruct", "answer", last, [videos, text], [*post, "backbone.projectors.*"], **adapted)]
    dual = tiny.config(segment_marker=True, base=base)
    for name, parts, phases in (("stage2", model, stage2), ("stage3", dual, stage3)):
        tree = {"stage": name, "model": parts.model_dump(mode="json"), "phases": phases}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**tree, "log_steps": 1, "save_steps": SAVE_STEPS}))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, configs, and in `one` what one process without DeepSpeed makes of them, uninterrupted."""
    folder = tmp_path_factory.mktemp("applications")
    data = folder / "data"
    make_dataset(data, {"train": 8, "test": 0}, images=8, workers=1)
    asked = [QuestionRecord(kind="say", question=f"say {word}", answer=word) for word in ("red", "ring", "left", "2")]
    write_records(data / "text.jsonl", [Record(id=one.answer, questions=[one]) for one in asked])
    write_configs(folder, data)
    run(application(folder, "stage2", "one"), env=environment())
    run(application(folder, "stage3", "one"), env=environment())
    return folder


def application(place: Path, stage: str, name: str, *more: str, start: str = "") -> list:
    """The command that trains a stage into the folder `name`, from the stage before in `start` (or in `name`)."""
    command = [ROOT / "train" / f"{stage}.py", "--config", place / f"{stage}.yaml", f"output={place / name / stage}"]
    return [*command, *([f"start={place / (start or name) / 'stage2'}"] if stage == "stage3" else []), *more]


def launched(processes: int, command: list) -> list:
    """A command under `deepspeed`, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    number = ["--num_accelerators", processes, "--master_port", port]
    return ["-m", "deepspeed.launcher.runner", *number, *command]


def environment() -> dict[str, str]:
    """No accelerator, and a thread per process."""
    alone = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **alone}


def zero(stage: int) -> list[str]:
    return ["--deepspeed", str(ROOT / "configs" / "deepspeed" / f"zero{stage}.json")]


def killed_and_started_again(command: list, directory: Path, victim: str = "") -> str:
    """Kill a command at a random step after its first checkpoint, and run it again; returns what that prints."""
    total = sum(STEPS[directory.name].values())
    line = random.SystemRandom().randint(SAVE_STEPS + 1, total - 3)
    found = run_until(command, directory / "log.jsonl", line, victim, env=environment())
    logger.warning("%s was to be killed at line %d of %d, and was at line %d", directory.name, line, total, found)
    assert line <= found and not runs.is_finished(directory)
    return run(command, env=environment())


def figures(directory: Path) -> dict:
    return json.loads((directory / runs.FINISHED).read_text())


def assert_the_same(found: Path, expected: Path) -> None:
    """Every loss and every trained number."""
    steps = [(name, step + 1) for name, count in STEPS[found.name].items() for step in range(count)]
    assert list(losses(found / "log.jsonl")) == steps
    assert losses(found / "log.jsonl") == losses(expected / "log.jsonl")
    assert figures(found)["hash"] == figures(expected)["hash"]


def assert_close(found: Path, expected: Path) -> None:
    """Losses to rounding, trained tensors to a tenth of what one step (of 1e-3) moves them, and the same counts."""
    ours, theirs = losses(found / "log.jsonl"), losses(expected / "log.jsonl")
    assert list(ours) == list(theirs)
    assert ours == pytest.approx(theirs, abs=1e-5)
    trained, wanted = (load_file(path / checkpoint.WEIGHTS) for path in (found, expected))
    torch.testing.assert_close(trained, wanted, rtol=0, atol=1e-4)
    for name in ("steps", "samples", "flops"):
        assert figures(found)[name] == figures(expected)[name], name


@pytest.mark.parametrize("stage", STEPS)
def test_one_process_killed_and_started_again_is_exact(place: Path, stage: str):
    name = f"killed-{stage}"
    killed_and_started_again(application(place, stage, name, start="one"), place / name / stage)
    assert_the_same(place / name / stage, place / "one" / stage)


@pytest.mark.parametrize("number", [2, 3])
def test_one_process_under_deepspeed_killed_and_started_again_is_exact(place: Path, number: int):
    """With dropout, whose dice must go on where they were."""
    more = [*zero(number), "phases.instruct.lora.dropout=0.2"]
    whole, cut = f"whole-zero{number}", f"cut-zero{number}"
    run(application(place, "stage3", whole, *more, start="one"), env=environment())
    assert figures(place / whole / "stage3")["hash"] != figures(place / "one" / "stage3")["hash"], "dropout changes it"
    killed_and_started_again(application(place, "stage3", cut, *more, start="one"), place / cut / "stage3")
    assert_the_same(place / cut / "stage3", place / whole / "stage3")


@pytest.mark.parametrize(("number", "victim"), [(2, ""), (3, "--local_rank=1")], ids=["zero2", "zero3-one-killed"])
def test_two_processes_killed_and_started_again_equal_one(place: Path, sample_video: Path, number: int, victim: str):
    """Stage 2 and, from its checkpoint, stage 3; features shared through files, gradients accumulated in stage 3."""
    name = f"two-zero{number}"
    features = f"features={place / name / 'features'}"
    halved = {
        "stage2": [f"phases.{name}.batch_size=2" for name in STEPS["stage2"]],
        "stage3": ["phases.instruct.batch_size=1", "phases.instruct.gradient_accumulation=2"],
    }
    for stage, changes in halved.items():
        command = launched(2, application(place, stage, name, *zero(number), features, *changes))
        said = killed_and_started_again(command, place / name / stage, victim)
        steps = sum(STEPS[stage].values())
        ends = re.findall(rf"^{stage}: {steps} steps, loss \d+\.\d+ -> {place / name / stage}$", said, re.MULTILINE)
        assert len(ends) == 1, said
        assert_close(place / name / stage, place / "one" / stage)
    answers = [
        VideoLM.from_pretrained(place / folder / "stage3").ask(sample_video, "what is red ?", max_new_tokens=4)
        for folder in (name, "one")
    ]
    assert answers[0].text == answers[1].text and answers[0].captions == answers[1].captions


@pytest.mark.parametrize(
    ("number", "asked", "sent", "code"),
    [(2, "", signal.SIGINT, -signal.SIGINT), (3, "--local_rank=1", signal.SIGTERM, stopping.EXIT_CODE)],
    ids=["zero2-ctrl-c", "zero3-sigterm-to-one"],
)
def test_stopped_under_the_launcher_it_saves_and_goes_on(place: Path, number: int, asked: str, sent: int, code: int):
    """Checkpoints are far apart, so what the run goes on from was saved because of the signal."""
    name = f"stopped-zero{number}"
    halved = [f"phases.{name}.batch_size=2" for name in STEPS["stage2"]]
    command = launched(2, application(place, "stage2", name, *zero(number), "save_steps=1000", *halved))
    directory = place / name / "stage2"
    assert run_and_ask(command, directory / "log.jsonl", 6, sent, asked, env=environment()) == code
    saved, stopped_at = list(directory.glob(f"resume/*/checkpoint-*/{runs.COMPLETE}")), losses(directory / "log.jsonl")
    assert [path.parent.name for path in saved] == [f"checkpoint-{list(stopped_at)[-1][1]}"]
    run(command, env=environment())
    assert_close(directory, place / "one" / "stage2")
    assert losses(directory / "log.jsonl").items() >= stopped_at.items()
