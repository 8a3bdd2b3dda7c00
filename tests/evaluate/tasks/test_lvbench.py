"""LVBench's meta file becomes questions with their options apart, by the abilities that they ask for."""

import json
from pathlib import Path

import pytest

from tests.evaluate.tasks import asked


def _qa(uid: int, **changes) -> dict:
    qa = {
        "uid": str(uid),
        "question": "Which year is written on the door?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633",
        "answer": "D",
        "question_type": ["key information retrieval"],
        "time_reference": "00:15-00:19",
    }
    return {**qa, **changes}


def _write(root: Path, *rows: dict) -> Path:
    root.joinpath("video_info.meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three questions about two videos."""
    twice = ["reasoning", "entity recognition"]
    second = _qa(
        1, question="Who enters?\n(A) a cat\n(B) a man\n(C) two men\n(D) no one", question_type=twice, answer="B"
    )
    asked.write_videos(tmp_path / "all_videos" / "-aB_1.mp4", tmp_path / "all_videos" / "x2.mp4")
    first = {"key": "-aB_1", "type": "cartoon", "video_info": {"fps": 25.0}, "qa": [_qa(0), second]}
    return _write(
        tmp_path, first, {"key": "x2", "type": "sport", "video_info": {"duration_minutes": 40}, "qa": [_qa(2)]}
    )


def test_reads_the_videos_and_questions(root: Path):
    task = asked.benchmark("lvbench", root=str(root))
    assert [record.id for record in task.records] == ["-aB_1", "x2"]
    assert task.path(task.records[0]) == root / "all_videos" / "-aB_1.mp4"
    first, second = task.records[0].questions
    assert first.question == "Which year is written on the door?"
    assert (first.options, first.answer) == (["1636", "1366", "1363", "1633"], "D")
    assert first.labels == {"key information retrieval": "asked for", "video": "cartoon"}
    assert second.labels == {"reasoning": "asked for", "entity recognition": "asked for", "video": "cartoon"}
    assert task.target_kinds == ("key information retrieval", "entity recognition + reasoning")


def test_the_prompt_is_that_of_lmms_eval(root: Path):
    task = asked.benchmark("lvbench", root=str(root))
    assert task.prompt(task.records[0].questions[0]) == (
        "Which year is written on the door?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633\n"
        "Answer the question with the option letter"
    )


def test_replies_are_scored_by_letter(root: Path):
    task = asked.benchmark("lvbench", root=str(root))
    question = task.records[0].questions[1]
    found = {text: task.parse(question, text) for text in ("(B)", "B. a man", "two men", "a cat", "nobody")}
    assert found == {"(B)": "B", "B. a man": "B", "two men": "C", "a cat": "A", "nobody": None}
    assert [task.score(question, letter) for letter in "BC"] == [1.0, 0.0]


def test_missing_files_are_named(root: Path):
    (root / "all_videos" / "x2.mp4").unlink()
    assert asked.benchmark("lvbench", root=str(root)).missing() == [root / "all_videos" / "x2.mp4"]
    (root / "video_info.meta.jsonl").unlink()
    with pytest.raises(ValueError, match=r"LVBench: .* lacks video_info\.meta\.jsonl\. Download"):
        asked.benchmark("lvbench", root=str(root))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": "Why?\n(A) so\n(C) no"}, r"options must be lines that begin with \(A\), .*found: \['A', 'C'\]"),
        ({"question": "Why?"}, r"found: \[\]"),
        ({"answer": "E"}, "the answer 'E' is none of the 4 options"),
        ({"answer": None}, "there is no answer"),
        ({"question_type": []}, "there is no question_type"),
    ],
)
def test_malformed_questions_are_named(root: Path, changes: dict, reason: str):
    _write(root, {"key": "x2", "type": "sport", "qa": [_qa(0), _qa(7, **changes)]})
    with pytest.raises(ValueError, match=rf"(?s)video_info\.meta\.jsonl, key x2, uid 7: .*{reason}"):
        asked.benchmark("lvbench", root=str(root))


def test_malformed_lines_are_named(root: Path):
    path = root / "video_info.meta.jsonl"
    path.write_text(path.read_text() + '{"key": "x3", "qa": [')
    with pytest.raises(ValueError, match=r"video_info\.meta\.jsonl, line 3, is not valid JSON"):
        asked.benchmark("lvbench", root=str(root))
    with pytest.raises(ValueError, match=r"video_info\.meta\.jsonl, row 1: there is no qa\. It has: key"):
        asked.benchmark("lvbench", root=str(_write(root, {"key": "x3"})))


def test_end_to_end(prepared: Path, root: Path, tmp_path: Path):
    (root / "all_videos" / "x2.mp4").unlink()
    task = {"name": "lvbench", "root": str(root)}
    lines, prompts = asked.ask(prepared, tmp_path / "eval", task, ["(D) 1633", "perhaps"])
    assert [(line["video"], line["parsed"], line["score"], line["failed"]) for line in lines] == [
        ("-aB_1", "D", 1.0, False),
        ("-aB_1", None, 0.0, False),
        ("x2", None, 0.0, True),
    ]
    assert prompts[1].startswith("Who enters?\n(A) a cat\n(B) a man\n")
