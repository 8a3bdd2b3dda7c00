"""`scripts/gpu.py` with stand-ins for its steps: limits, failures, what is written; and the real steps on a CPU."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import captions
from benchmarks.gpu import lora, train
from benchmarks.gpu.asked import LARGEST_POOL, asked
from benchmarks.gpu.measure import Place
from langdc.model import VideoModel
from scripts import gpu

WRITES = "import json, pathlib; pathlib.Path({file!r}).write_text(json.dumps({tables!r}));"


def step(folder: Path, name: str, code: str, limit: float = 20, **tables: list) -> gpu.Step:
    """A step that writes its tables and then runs `code`."""
    file = folder / f"{name}.json"
    return gpu.Step(name, ["-c", WRITES.format(file=str(file), tables=tables) + code], limit, file)


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """Run steps; what gpu.json then holds, the exit code, and gpu.md."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def started(*steps: gpu.Step, budget: float = 100) -> tuple[dict, int, str]:
        monkeypatch.setattr(gpu, "steps", lambda options: list(steps))
        code = gpu.main(["--out", str(tmp_path), "--budget", str(budget)])
        return json.loads((tmp_path / "gpu.json").read_text()), code, (tmp_path / "gpu.md").read_text()

    yield started
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.slow
def test_a_step_that_fails_or_hangs_ends_alone_and_keeps_its_lines(run, tmp_path: Path) -> None:
    late = f"import time, pathlib; time.sleep(4); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {late!r}]);"
    lines = [{"compressor": "a | b", "first token ms": 1.23456}]
    found, code, page = run(
        step(tmp_path, "ask", f"{child} import time; time.sleep(60)", limit=2, times=lines),
        step(tmp_path, "train", "raise MemoryError('out of it')"),
        step(tmp_path, "read", "print('fine')"),
        budget=42,
    )
    assert code == 1
    states = {name: (each["status"], each["reason"]) for name, each in found["steps"].items()}
    assert states["ask"] == ("cut off", "its 2 s are over")
    assert states["train"] == ("failed", "exit code 1: MemoryError: out of it")
    assert states["read"] == ("done", "") and states["lora"] == ("not run", "not chosen")
    assert found["steps"]["ask"]["tables"] == {"times": lines}
    assert "| a \\| b | 1.235 |" in page and "exit code 1: MemoryError: out of it" in page
    time.sleep(3)
    assert not (tmp_path / "alive").exists()  # what a step started ended with it


def test_the_default_budget_is_enough_for_all_steps() -> None:
    assert sum(gpu.LIMITS.values()) == 480


@pytest.mark.slow
def test_steps_get_the_ceilings_and_their_share_and_what_is_left_out_is_said(run, tmp_path: Path, capsys) -> None:
    ceilings = [{"TFLOP/s": 2.0, "GB/s": 3.0}]
    told = tmp_path / "told"
    found, code, page = run(
        step(tmp_path, "card", "", limit=6, ceilings=ceilings),
        step(
            tmp_path,
            "ask",
            f"import sys, time; open({str(told)!r}, 'w').write(' '.join(sys.argv[1:])); time.sleep(60)",
            limit=9,
        ),
        step(tmp_path, "train", "import time; time.sleep(60)", limit=4),
        step(tmp_path, "read", ""),
        budget=20,
    )
    assert told.read_text() == "--ceilings 2000000000000.0 3000000000.0"
    steps, said = found["steps"], capsys.readouterr().out
    assert code == 1 and found["seconds"] < 40
    assert [steps[name]["status"] for name in ("card", "ask", "train", "read")] == ["done", *["cut off"] * 2, "not run"]
    limits = {name: pytest.approx(steps[name]["limit"], abs=1) for name in ("card", "ask", "train")}
    left = 20 - steps["card"]["seconds"]
    assert limits == {"card": 20 - 13, "ask": left - 4, "train": 4}, "what is kept for it, and what those before left"
    assert steps["read"]["reason"] == "the budget of 20 s is too short" and steps["read"]["reason"] in page
    assert said.startswith("read: not run, the budget of 20 s is too short\ncard: at most 7 s\n")


def test_all_steps_done_is_exit_code_0(run, tmp_path: Path) -> None:
    _, code, page = run(step(tmp_path, "card", "print(1)", machine=[{"what": "card", "value": "none"}]))
    assert code == 0 and "| card | none |" in page


def test_failed_tests_are_named(run, tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text("def test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    file = tmp_path / "tests.xml"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={file}", str(tmp_path / "test_two.py")]
    found, _, _ = run(gpu.Step("tests", words, 60, file))
    tables = found["steps"]["tests"]["tables"]
    assert tables["tests"] == [{"tests": 2, "failures": 1, "errors": 0, "skipped": 0}]
    assert tables["failed"][0]["failed"].endswith("test_bad") and "1 == 2" in tables["failed"][0]["why"]


def test_steps_are_chosen_by_name(tmp_path: Path, capsys) -> None:
    options = argparse.Namespace(only="read,tests", out=tmp_path, device="cpu", tiny=True, scale=2.0)
    assert [(step.name, step.limit) for step in gpu.steps(options)] == [("card", 50), ("tests", 130), ("read", 160)]
    with pytest.raises(SystemExit):
        gpu.main(["--only", "reed", "--out", str(tmp_path)])
    assert "There is no step reed; there is card, tests" in capsys.readouterr().err


def test_the_runner_imports_nothing_heavy() -> None:
    code = "import sys, scripts.gpu; print({'torch', 'transformers', 'rich', 'av', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=gpu.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_is_asked_is_met_missed_or_not_measured() -> None:
    def answer(compressor: str, videos: int, first: float, compress: float) -> dict:
        figures = {"first token ms": first, "compress ms": compress, "reply token / floor": 4.0}
        return {"compressor": compressor, "videos": videos, **figures}

    def reading(frames: str, how: str, seconds: str, floor: float, share: str) -> dict:
        figures = {"first token s": seconds, "reading / floor": floor, "share of saving": share}
        return {"frames": frames, "how": how, **figures}

    def tables(**tables: list[dict]) -> dict:
        return {"tables": tables}

    answers = [answer("langdc, 59", 8, 90.0, 160.0), answer(LARGEST_POOL, 8, 100.0, 1.0)]
    answers.append(answer("langdc, 59", 1, 90.0, 160.0))
    lengths = [reading("1024", "plain", "4.0", 1.4, "-"), reading("1024", "flexreduc, 16000 tokens", "3.0", 1.6, "-")]
    lengths += [reading("1024", "vidcom2", "1.0", 1.0, "0.3 %"), reading("256", "fastvid", "1.0", 1.0, "7.0 %")]
    steps = {
        "ask": tables(times=answers),
        "read": {"tables": {"first token": lengths}},
        "train": tables(steps=[{"stage": "2b", "MFU %": 30.0, "start s": 12.0}, {"stage": "2b", "MFU %": 41.0}]),
        "lora": tables(steps=[{"checkpointing": "no", "keep": keep, "step s": keep} for keep in (1.0, 0.25)]),
    }
    found = {line["what"]: (line["measured"], line["result"]) for line in asked(steps)}
    assert found["compress, captions of 59, ms per video of 1"] == (160.0, "missed")
    assert found["compress, captions of 59, ms per video of 8"] == (20.0, "met")
    assert found[f"first token, langdc / {LARGEST_POOL}, 8 videos"] == (0.9, "met")
    assert found["first token, langdc / videogpt_plus, 8 videos"] == (None, "not measured")
    assert found["a reply token / its floor, 1 video"] == (4.0, "missed")
    assert found["flexreduc / plain, 1024 frames"] == (0.75, "met")
    assert found["flexreduc / its floor, 1024 frames"] == (1.6, "missed")
    assert found["plain / its floor, 2048 frames"] == (None, "not measured")
    assert found["the largest own cost in % of what is saved (fastvid, 256 frames)"] == (7.0, "missed")
    assert found["MFU of stage 2b in %, the best micro-batch"] == (41.0, "met")
    assert found["a start of stage 2b, s"] == (12.0, "met")
    assert found["LoRA step, keep 0.25 / keep 1: time"] == (0.25, "met")
    assert found["LoRA step, keep 0.25 / keep 1: memory above weights and optimizer"] == (None, "not measured")


def test_full_sizes_are_the_published_ones(tmp_path: Path) -> None:
    place = Place("meta", torch.bfloat16, False, tmp_path)
    with torch.device("meta"):
        qwen = VideoModel(lora._config(place).model).backbone
        phi = captions.full_size("meta", torch.bfloat16, "videogpt_plus").backbone
    for backbone, billions in ((qwen, 7.6), (phi, 3.8)):
        weights = {id(part): part for part in backbone.text_model.parameters()}
        weights |= {id(part): part for part in backbone.lm_head.parameters()}
        assert sum(part.numel() for part in weights.values()) / 1e9 == pytest.approx(billions, rel=0.01)
    for stage, (name, batches) in train.STAGES.items():
        config = train._recipe(place, name, tmp_path / "records.jsonl")
        assert config.start is None and config.deepspeed is None and config.precision == "bfloat16"
        assert (config.model.compressor.settings["base"] is None) == (stage == "2b")
        assert len(batches) == 3 and config.train.data == [tmp_path / "records.jsonl"]


@pytest.mark.slow
def test_every_step_runs_tiny_on_a_cpu(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--tiny", "--budget", "10000", "--scale", "20", "--out", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "scripts/gpu.py", *words], cwd=gpu.ROOT, env=environment, check=False)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: step["reason"] for name, step in found["steps"].items()} == dict.fromkeys(gpu.LIMITS, "")
    assert done.returncode == 0
    lacking = [line["what"] for line in found["asked"] if line["result"] == "not measured"]
    for what in lacking:  # other sizes, no second model, no memory that is counted
        assert any(
            part in what for part in ("frames", "videogpt_plus", "memory", "8 videos", "video of 8", "keep 0.25")
        )
    for name in ("ask", "train", "read", "lora", "methods"):
        assert found["steps"][name]["tables"]["costs"], name
