"""Every command of the guides and the README runs, in order, on generated videos and small models."""

import csv
import re
import shlex
import shutil
from pathlib import Path

import pytest

import langdc.sample
from langdc import tiny
from langdc.cli import main
from langdc.data.records import read_records, write_records
from langdc.sample.dataset import make_dataset
from tests.scripts.test_export_vllm import EVS, tuned
from tests.test_readme import README, ROOT, blocks, commands

SMALL = {
    "Qwen/Qwen2.5-VL-7B-Instruct": "tiny:qwen2_5_vl",
    "frames: 32": "frames: 4",
    "epochs: 2": "steps: 2",
    "gradient_accumulation: 8": "gradient_accumulation: 1",
    "every: 50": "every: 1",
    "share: 0.1": "share: 0.3",
    "precision: bfloat16": "precision: float32",
    "gradient_checkpointing: true": "log_steps: 1",
    "train.steps=100": "train.steps=2",
    "train.steps=40": "train.steps=2",
}
"""What the tests put in the place of full size."""

ELSEWHERE = {
    "pip install": "tests/test_wheel.py installs the wheel",
    "make ": ".ci/run makes test; quickstart takes ten minutes",
    "--processes 8": "tests/train/test_recipe_chain.py runs the chain, tests/train/test_deepspeed.py the launchers",
    "deepspeed ": "so does this one",
    "torchrun ": "tests/evaluate/test_processes.py runs it, with few processes",
    "langdc eval": "it asks the models of quickstart; tests/test_wheel.py runs it with few videos",
    "langdc report": "the same",
    "data benchmark": "tests/evaluate/tasks/ runs it on folders in the published formats",
    "langdc demo": "tests/tools/test_demo_page.py opens the page, where gradio is",
    "langdc convert": "tests/scripts/ runs it on releases in the published formats",
}
"""Which commands of the README are not run here, by a part of them, and why."""


def small(text: str) -> str:
    for large, little in SMALL.items():
        text = text.replace(large, little)
    return text


def files_of(page: Path) -> dict[str, str]:
    """Files that a page shows: a block after their name in backquotes."""
    found = re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {name: small(text) for name, text in found}


def run(page: Path) -> None:
    for command in commands(page):
        typed(small(command))


def typed(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "langdc", command
    assert main(words[1:]) == 0, command


def clips(folder: Path, split: str, to: Path) -> list:
    """The records of a split; its videos go to `to`."""
    to.mkdir(exist_ok=True)
    records = read_records(folder / f"{split}.jsonl")
    for record in records:
        shutil.copy(folder / str(record.video), to)
    return records


def write_table(file: Path, header: str, records: list) -> None:
    """Three questions of each record as a CSV table."""
    with file.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(header.split(","))
        for record in records:
            asked = [question for question in record.questions if not question.options][:3]
            table.writerows([Path(str(record.video)).name, q.question, q.answer, q.kind] for q in asked)


def stand_in(name: str, target: str | Path) -> None:
    """What a command names, in the folder where it is typed."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).symlink_to(target)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Generated videos, in a folder beside the one in which the commands run."""
    make_dataset(tmp_path / "data", {"train": 6, "test": 3}, images=0, workers=1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data"


@pytest.mark.slow
def test_fine_tuning_from_a_folder_and_a_table(made: Path) -> None:
    page = ROOT / "docs/finetune.md"
    files = files_of(page)
    header = files.pop("train.csv").splitlines()[0]
    for split in ("train", "test"):
        write_table(Path(f"{split}.csv"), header, clips(made, split, Path("clips")))
    for name, text in files.items():
        Path(name).write_text(text)
    assert {"finetune.yaml", "evaluate.yaml"} == files.keys() and blocks(page, "console")
    run(page)
    table = Path("runs/finetune_eval/table.md").read_text()
    assert all(name in table for name in ("fine-tuned", "all tokens", "vidcom2", "random tokens"))
    assert "learned" in Path("preview.html").read_text() and Path("finetuned").is_dir()


@pytest.mark.slow
def test_langdc_from_videos_without_annotations(made: Path) -> None:
    page = ROOT / "docs/finetune_langdc.md"
    clips(made, "train", Path("clips"))
    clips(made, "test", Path("clips_test"))
    for name, text in files_of(page).items():
        Path(name).write_text(text)
    run(page)
    records = read_records("captions.jsonl")
    assert len(records) == 6 and all(len(record.segments) == 4 and record.questions for record in records)
    table = Path("runs/own/eval/table.md").read_text()
    assert "langdc" in table and "the teacher" in table


@pytest.mark.slow
def test_the_readme_as_typed(made: Path) -> None:
    for name in ("runs/sample/langdc/stage3", "runs/langdc_3b/stage3_choice", "runs/mine"):
        stand_in(name, langdc.sample.weights("langdc"))
    stand_in("Qwen/Qwen2.5-VL-7B-Instruct", tiny.folder("qwen2_5_vl"))
    stand_in("DIR", tiny.folder("qwen2_vl"))
    tuned(Path("runs/evs"), "qwen2_5_vl", EVS)
    records = clips(made, "train", Path("clips"))
    write_table(Path("train.csv"), "video,question,answer,kind", records)
    stand_in("clip.mp4", made / str(records[0].video))
    shutil.copytree(made / "videos", "videos")
    write_records("mine.jsonl", records[:2])
    write_records("test.jsonl", read_records(made / "test.jsonl"))
    Path("finetune.yaml").write_text(files_of(ROOT / "docs/finetune.md")["finetune.yaml"])
    run_here = [one for one in commands(README) if not any(part in one for part in ELSEWHERE)]
    assert len(run_here) > 15 and all(any(part in one for one in commands(README)) for part in ELSEWHERE)
    for command in run_here:
        typed(command)
