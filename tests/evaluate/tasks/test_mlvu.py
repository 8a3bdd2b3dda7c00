"""MLVU's dev files become questions by category, put as lmms-eval puts them, and are scored by letter."""

from pathlib import Path

import pytest

from langdc.evaluate.tasks.mlvu import CATEGORIES
from tests.evaluate.tasks import asked


def _row(video: str, answer: object = "a green ball", **changes) -> dict:
    row = {
        "video": video,
        "duration": 180.0,
        "question": "What lies on the table?",
        "candidates": ["a red cup", "a green ball", "two books", "nothing"],
        "answer": answer,
        "question_type": "ego",
    }
    return {**row, **changes}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two videos with three questions in one category, one question in each other, and all videos but one."""
    for kind, folder in CATEGORIES.items():
        rows = [_row(f"{kind}.mp4", question_type=kind)]
        if kind == "ego":
            rows = [_row("ego_1.mp4"), _row("ego_2.mp4"), _row("ego_1.mp4", "nothing", question="What falls?")]
        asked.write_json(tmp_path / "json" / f"{folder}.json", rows)
        names = {row["video"] for row in rows} - {"order.mp4"}
        asked.write_videos(*(tmp_path / "video" / folder / name for name in sorted(names)))
    return tmp_path


def test_reads_all_categories(root: Path):
    task = asked.benchmark("mlvu", root=str(root))
    assert task.target_kinds == ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
    assert [record.id for record in task.records][2:4] == ["3_ego/ego_1.mp4", "3_ego/ego_2.mp4"]
    first = task.records[2]
    assert task.path(first) == root / "video" / "3_ego" / "ego_1.mp4"
    assert [(q.kind, q.question, q.answer) for q in first.questions] == [
        ("ego", "What lies on the table?", "B"),
        ("ego", "What falls?", "D"),
    ]
    assert task.missing() == [root / "video" / "5_order" / "order.mp4"]


def test_categories_can_be_chosen(root: Path):
    whole, part = asked.benchmark("mlvu", root=str(root)), asked.benchmark("mlvu", root=str(root), categories=["ego"])
    assert part.target_kinds == ("ego",)
    assert len(part.records) == 2
    assert part.data_hash() != whole.data_hash()
    with pytest.raises(ValueError, match=r"no category plots; give some of plotQA, needle"):
        asked.benchmark("mlvu", root=str(root), categories=["plots"])


def test_the_prompt_is_that_of_lmms_eval(root: Path):
    task = asked.benchmark("mlvu", root=str(root))
    assert task.prompt(task.records[2].questions[0]) == (
        "What lies on the table?\n(A) a red cup\n(B) a green ball\n(C) two books\n(D) nothing\n"
        "Only give the best option.\nBest option: ("
    )


def test_a_reply_that_goes_on_from_the_bracket_is_read(root: Path):
    task = asked.benchmark("mlvu", root=str(root))
    question = task.records[2].questions[0]
    found = {text: task.parse(question, text) for text in ("B) a green ball", "B", "(B)", "C) two books", "ball?")}
    assert found == {"B) a green ball": "B", "B": "B", "(B)": "B", "C) two books": "C", "ball?": None}
    assert [task.score(question, letter) for letter in "BC"] == [1.0, 0.0]


def test_missing_files_are_named(root: Path):
    (root / "json" / "4_count.json").unlink()
    with pytest.raises(ValueError, match=r"MLVU \(dev\): .* lacks json/4_count\.json\. Accept the terms"):
        asked.benchmark("mlvu", root=str(root))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (_row("a.mp4", "a cat"), r"3_ego\.json, row 2: the answer 'a cat' is none of the candidates \['a red cup'"),
        ({"video": "a.mp4", "question": "Why?", "answer": "x"}, r"3_ego\.json, row 2: there is no candidates"),
        (_row("a.mp4", question=""), r"3_ego\.json, row 2 .*question"),
    ],
)
def test_malformed_rows_are_named(root: Path, row: dict, reason: str):
    asked.write_json(root / "json" / "3_ego.json", [_row("ego_1.mp4"), row])
    with pytest.raises(ValueError, match=f"(?s){reason}"):
        asked.benchmark("mlvu", root=str(root))


def test_numbers_may_stand_for_texts(root: Path):
    asked.write_json(root / "json" / "4_count.json", [_row("count.mp4", answer=3, candidates=[1, 3, 5])])
    question = asked.benchmark("mlvu", root=str(root), categories=["count"]).records[0].questions[0]
    assert (question.options, question.answer) == (["1", "3", "5"], "B")


def test_end_to_end(prepared: Path, root: Path, tmp_path: Path):
    task = {"name": "mlvu", "root": str(root), "categories": ["ego", "order"]}
    lines, prompts = asked.ask(prepared, tmp_path / "eval", task, ["B) a green ball", "no idea", "A"])
    assert [(line["video"], line["parsed"], line["score"], line["failed"]) for line in lines] == [
        ("3_ego/ego_1.mp4", "B", 1.0, False),
        ("3_ego/ego_1.mp4", None, 0.0, False),
        ("3_ego/ego_2.mp4", "A", 0.0, False),
        ("5_order/order.mp4", None, 0.0, True),
    ]
    assert "order.mp4" in lines[-1]["reason"]
    assert [line["kind"] for line in lines] == ["ego", "ego", "ego", "order"]
    assert len(prompts) == 3
