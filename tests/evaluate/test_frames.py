"""Entries that choose frames for each question: nothing is shared between questions, all is charged, and resumed."""

import shutil
from pathlib import Path

import pytest

from langdc.config import check
from langdc.data.records import QuestionRecord, Record, write_records
from langdc.evaluate import comparison, tasks
from langdc.evaluate.folder import EvalFolder
from langdc.evaluate.identity import identity
from langdc.evaluate.loop import evaluate
from langdc.evaluate.page import page
from langdc.evaluate.settings import EvalConfig
from langdc.pipeline import VideoLM
from tests import imagetext, stock

QUESTIONS = ("what is red ?", "what is green ?")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos with two questions each, and an image-text model; never written to."""
    folder = tmp_path_factory.mktemp("frames")
    asked = [QuestionRecord(kind="what", question=question, answer="it") for question in QUESTIONS]
    (folder / "videos").mkdir()
    records = []
    for name, colours in {"v0": "ggggggrr", "v1": "rrgggggg", "v2": "ggrrgggg"}.items():
        imagetext.scenes(folder / "videos" / f"{name}.mp4", colours)
        records.append(Record(id=name, video=f"videos/{name}.mp4", questions=asked))
    write_records(folder / "test.jsonl", records[:2])
    write_records(folder / "others.jsonl", records[2:])
    imagetext.folder(folder / "clip")
    return folder


def config(place: Path, output: Path, **changes) -> EvalConfig:
    chosen = {"name": "top", "scorer": {"model": str(place / "clip")}, "fps": 2.0}
    common = {"model": stock.folder("qwen2_5_vl"), "backbone": {"name": "qwen2_5_vl", "frames": 4}}
    entries = [
        {"name": "chosen", "frames": chosen, **common},
        {"name": "chosen half", "frames": chosen, "compressor": {"name": "uniform", "keep": 0.5}, **common},
        {"name": "spread", "frames": {**chosen, "name": "aks"}, **common},
        {"name": "matched", "frames": chosen, "compressor": {"name": "random"}, "match": "chosen half", **common},
        {"name": "control", "frames": {"name": "uniform"}, **common},
        {"name": "whole", **common},
    ]
    task = {"name": "records", "data": str(place / "test.jsonl")}
    tree = {"task": task, "entries": entries, "output": str(output), "max_new_tokens": 2, "device": "cpu"}
    tree["calibration"] = {"data": str(place / "others.jsonl")}
    return check(EvalConfig, {**tree, "timing_videos": 1, "warmup_videos": 0, **changes}, "test")


def run(config: EvalConfig) -> EvalFolder:
    return evaluate(config, tasks.build(config.task.name, **config.task.settings), ["test"])


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> EvalFolder:
    return run(config(place, tmp_path_factory.mktemp("out") / "eval"))


def test_each_question_has_frames_of_its_own(finished: EvalFolder) -> None:
    lines = finished.file("encoding").lines
    keys = {line["key"] for line in lines}
    # 4 questions of each selector, which the entries with the same one share; a video each for the others together
    assert len(keys) == len(lines) == 4 + 4 + 2
    assert sum("select" in line["seconds"] for line in lines) == 8
    sessions = finished.file("sessions").lines
    assert sum(line["decoded"] for line in sessions) == 10 + 1
    (set_on,) = finished.file("calibration").lines
    assert "select" in set_on["seconds"] and set_on["key"] not in keys


def test_choosing_is_in_every_answer_and_in_the_report(finished: EvalFolder) -> None:
    for name in ("chosen", "chosen half", "spread"):
        answers = [line for line in finished.lines(name) if line["type"] == "answer"]
        assert len(answers) == 4 and all(line["flops"]["select"] > 0 for line in answers)
    assert all("select" not in line.get("flops", {}) for line in [*finished.lines("control"), *finished.lines("whole")])
    found = {one.name: one for one in comparison.read_results([finished.directory])}
    assert found["chosen"].stages["select"].median > 0 and "select" not in found["whole"].stages
    assert found["chosen"].flops["total"] > found["chosen"].flops["select"] + found["chosen"].flops["encode"]
    assert "choose frames" in page(list(found.values()))


def test_the_control_answers_as_without_a_selector(finished: EvalFolder) -> None:
    one, other = (
        [(line["key"], line["answer"]) for line in finished.lines(name) if line["type"] == "answer"]
        for name in ("control", "whole")
    )
    assert one == other and len(one) == 4


def test_a_budget_is_set_on_chosen_frames(finished: EvalFolder) -> None:
    (budget,) = [line for line in finished.lines("matched") if line["type"] == "budget"]
    assert budget["equal"]


def test_an_answer_is_that_of_asking_alone(finished: EvalFolder, place: Path) -> None:
    (entry, *_) = config(place, Path("out")).entries
    task = tasks.build("records", data=str(place / "test.jsonl"))
    lm = VideoLM.from_pretrained(entry.model, backbone=entry.backbone.model_dump(), frames=entry.frames.model_dump())
    for record in task.records:
        for number, question in enumerate(record.questions):
            video = lm.open(task.path(record), question=question.question)
            expected = video.ask(task.prompt(question), max_new_tokens=2)
            (line,) = [line for line in finished.lines("chosen") if line["key"] == f"{record.id}/{number}"]
            assert line["answer"] == expected.text and line["flops"] == expected.flops


def test_what_was_cut_off_is_resumed(finished: EvalFolder, place: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished.directory, tmp_path / "eval"))
    file = next(path for path in copy.rglob("*.jsonl") if "chosen half" in str(path) or "chosen_half" in str(path))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    again = run(config(place, copy))
    assert again.file("sessions").lines[-1]["decoded"] == 4
    kept = [[(line["key"], line.get("answer")) for line in each.lines("chosen half")] for each in (finished, again)]
    assert sorted(kept[0], key=str) == sorted(kept[1], key=str)


def test_other_weights_of_the_scorer_are_another_evaluation(place: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "copy"))
    settings = config(copy, tmp_path / "eval")
    task = tasks.build(settings.task.name, **settings.task.settings)
    before = identity(settings, task)
    assert str(copy / "clip") in before["files"]
    imagetext.folder(copy / "clip", seed=1)
    assert identity(settings, task)["files"] != before["files"]


def test_controls_take_no_selector(place: Path) -> None:
    with pytest.raises(ValueError, match="a control takes no layers, kv or frames"):
        entry = {"name": "text", "model": "m", "control": "caption_text", "frames": {"name": "uniform"}}
        config(place, Path("out"), entries=[entry])
