"""VSI-Bench: both files are read, choices are letters, numbers count by the benchmark's own measure."""

from pathlib import Path

import pytest
from datasets import Dataset

from langdc.data.records import QuestionRecord
from langdc.evaluate.tasks.vsibench import CHOSEN, MEASURED, VsiBench
from tests.evaluate.tasks import asked


def _row(number: int, scene: str, kind: str, **changes) -> dict:
    """A row as published: numbers have no options, options begin with their letters."""
    chosen = {"options": ["A. lamp", "B. sofa", "C. B.B. King poster"], "ground_truth": "B"}
    answer = chosen if kind in CHOSEN else {"options": None, "ground_truth": "4"}
    row = {"id": number, "dataset": "scannet", "scene_name": scene, "question_type": kind, "question": f"Which {kind}?"}
    return {**row, **answer, "pruned": False, **changes}


def _write(root: Path, debiased: list[dict], pruned: list[dict]) -> Path:
    root.mkdir(exist_ok=True)
    Dataset.from_list(debiased).to_parquet(str(root / "test_debiased.parquet"))
    Dataset.from_list(pruned).to_parquet(str(root / "test_pruned.parquet"))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    debiased = [_row(number, "scene0", kind) for number, kind in enumerate(CHOSEN + MEASURED)]
    pruned = [
        _row(20, "scene1", "object_counting", dataset="arkitscenes", ground_truth="2"),
        _row(21, "scene0", "room_size_estimation", ground_truth="24.7"),
    ]
    return _write(tmp_path / "vsi", debiased, pruned)


def _question(task, kind: str) -> QuestionRecord:
    return next(q for q in task.records[-1].questions if q.kind == kind)


def test_every_type_is_read_and_scenes_are_together(root: Path):
    task = asked.benchmark("vsibench", root=str(root))
    assert [record.id for record in task.records] == ["arkitscenes/scene1", "scannet/scene0"]
    assert task.path(task.records[1]) == root / "scannet" / "scene0.mp4"
    assert set(task.target_kinds) == set(CHOSEN + MEASURED)
    assert [len(record.questions) for record in task.records] == [1, 11]
    assert task.records[1].questions[-1].answer == "24.7"  # the pruned file's rows follow the debiased file's
    assert [q.labels["debiased"] for q in task.records[1].questions] == ["yes"] * 10 + ["no"]
    assert _question(task, "route_planning").options == ["lamp", "sofa", "B.B. King poster"]
    assert task.missing() == [root / "arkitscenes" / "scene1.mp4", root / "scannet" / "scene0.mp4"]


def test_prompts_are_the_benchmarks(root: Path):
    task = asked.benchmark("vsibench", root=str(root))
    assert task.prompt(_question(task, "route_planning")) == (
        "These are frames of a video.\nWhich route_planning?\nOptions:\nA. lamp\nB. sofa\nC. B.B. King poster\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert task.prompt(_question(task, "object_counting")) == (
        "These are frames of a video.\nWhich object_counting?\n"
        "Please answer the question using a single word or phrase."
    )


@pytest.mark.parametrize(
    ("said", "true", "worth"),
    [
        (4, 4, 1.0), (3, 4, 0.6), (5, 4, 0.6), (9, 10, 0.9), (19, 20, 1.0), (2, 4, 0.1), (6, 4, 0.1), (1.05, 1, 1.0),
        (0, 4, 0.0), (10, 4, 0.0), (-4, 4, 0.0), (2.4, 2.5, 1.0), (float("inf"), 4, 0.0),
    ],
)  # fmt: skip
def test_relative_accuracy_is_the_benchmarks(said: float, true: float, worth: float):
    """The figures are what mean_relative_accuracy of the benchmark's utils.py gives."""
    assert VsiBench.relative_accuracy(said, true) == pytest.approx(worth, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "reply", "parsed", "worth"),
    [
        ("route_planning", "B. sofa", "B", 1.0), ("route_planning", "the lamp", "A", 0.0),
        ("route_planning", "hm", None, None),
        ("object_counting", "3", "3.0", 0.6), ("object_counting", "There are four.", "4.0", 1.0),
        ("object_counting", "many", None, None), ("object_abs_distance", "4.1 meters", "4.1", 1.0),
    ],
)  # fmt: skip
def test_replies(root: Path, kind: str, reply: str, parsed: str | None, worth: float | None):
    task = asked.benchmark("vsibench", root=str(root))
    question = _question(task, kind)
    assert task.parse(question, reply) == parsed
    if parsed is not None:
        assert task.score(question, parsed) == pytest.approx(worth)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_type": "object_colour"}, r"test_debiased.parquet, row 1: unknown question_type 'object_colour'"),
        ({"question_type": "route_planning"}, "row 1: a question of type route_planning has 0 options"),
        ({"ground_truth": "0"}, "row 1: object_counting asks for a number above 0 and ground_truth is '0'"),
        ({"ground_truth": "many"}, "ground_truth is 'many'"),
        ({"question": ""}, "row 1"),
        ({"question_type": "route_planning", "options": ["A. x"], "ground_truth": "E"}, "'E' is none of the 1 options"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, changes: dict, message: str):
    good = [_row(1, "scene1", "object_counting")]
    with pytest.raises(ValueError, match=message):
        asked.benchmark("vsibench", root=str(_write(tmp_path, [_row(0, "scene0", "object_counting", **changes)], good)))


def test_missing_files_and_columns_are_named(root: Path):
    (root / "test_pruned.parquet").unlink()
    with pytest.raises(ValueError, match=r"lacks test_pruned.parquet.*scannetpp.zip"):
        asked.benchmark("vsibench", root=str(root))
    Dataset.from_list([{"id": 1, "question": "?"}]).to_parquet(str(root / "test_pruned.parquet"))
    with pytest.raises(ValueError, match="row 1: there is no dataset, scene_name"):
        asked.benchmark("vsibench", root=str(root))


def test_the_loop_asks_it(root: Path, prepared: Path, tmp_path: Path):
    asked.write_videos(root / "scannet" / "scene0.mp4")
    replies = ["B", "(B)", "a lamp", "hm", "sofa", "B.", "3", "four", "4.1 m", "5", "12.35"]
    lines, prompts = asked.ask(prepared, tmp_path / "eval", {"name": "vsibench", "root": str(root)}, replies)
    task = asked.benchmark("vsibench", root=str(root))
    assert prompts == [task.prompt(question) for question in task.records[1].questions]
    missing, found = lines[0], sorted(lines[1:], key=lambda line: line["number"])
    assert missing["failed"]
    assert "scene1.mp4" in missing["reason"]
    assert [line["score"] for line in found] == pytest.approx([1, 1, 0, 0, 1, 1, 0.6, 1, 1, 0.6, 0.1])
    assert [line["parsed"] is None for line in found] == [False] * 3 + [True] + [False] * 7
    assert not any(line["failed"] for line in found)
