"""The sample task asks what its records hold, and marks replies by their one word."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from langdc.data.records import QuestionRecord, Record, write_records
from langdc.evaluate import tasks
from langdc.evaluate.answers import normalise
from langdc.evaluate.tasks.base import Benchmark
from langdc.sample.questions import TARGET_KINDS


def _write(path: Path, **changes) -> Path:
    questions = [QuestionRecord(kind=kind, question="what ?", answer="red") for kind in ("shape", "choice")]
    write_records(path, [Record(**{"id": "v", "video": "videos/v.mp4", "questions": questions, **changes})])
    return path


def test_reads_records(tmp_path: Path):
    path = _write(tmp_path / "test.jsonl")
    task = tasks.build("sample", data=str(path))
    assert task.path(task.records[0]) == tmp_path / "videos" / "v.mp4"
    assert task.target_kinds == TARGET_KINDS
    assert task.data_hash() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_kinds_can_be_chosen(tmp_path: Path):
    task = tasks.build("sample", data=str(_write(tmp_path / "test.jsonl")), kinds=["shape"])
    assert [question.kind for question in task.records[0].questions] == ["shape"]
    assert task.target_kinds == ("shape",)
    assert tasks.build("sample", data=str(_write(tmp_path / "own.jsonl")), kinds=["choice"]).target_kinds == ("choice",)
    for kinds in (["shap"], ["choice", "shap"]):
        with pytest.raises(ValueError, match=r"no questions of the kind 'shap'. Did you mean 'shape'\?.*choice, shape"):
            tasks.build("sample", data=str(tmp_path / "test.jsonl"), kinds=kinds)


def test_a_record_without_video_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="neither video nor image: 'v'"):
        tasks.build("sample", data=str(_write(tmp_path / "test.jsonl", video=None)))


def test_unknown_tasks_and_settings_are_named():
    with pytest.raises(ValueError, match="Did you mean 'sample'"):
        tasks.build("sampel")
    with pytest.raises(ValueError, match="no setting 'dat'"):
        tasks.build("sample", dat="x")


@pytest.mark.parametrize(
    ("expected", "text", "right"),
    [
        ("red", "red", True),
        ("D", " (D). ", True),
        ("Red", "RED!", True),
        ("red", "red square", False),
        ("a", "a cat", False),
        ("1", "", False),
    ],
)
def test_replies_are_right_when_they_are_the_answer(tmp_path: Path, expected: str, text: str, right: bool):
    task = tasks.build("sample", data=str(_write(tmp_path / "test.jsonl")))
    question = QuestionRecord(kind="shape", question="what ?", answer=expected)
    said = task.parse(question, text)
    assert (said is not None and task.score(question, said) == 1) is right
    assert (normalise(expected) == normalise(text)) is right


def test_words_for_nothing_are_text_in_a_table_of_a_benchmark(tmp_path: Path):
    words = ["None", "nan", "NA", "null"]
    (tmp_path / "t.csv").write_text("question,answer\n" + "".join(f"how many ?,{word}\n" for word in [*words, ""]))
    rows = Benchmark.rows(SimpleNamespace(root=tmp_path), "t.csv", ("question", "answer"))  # pyright: ignore
    assert [row["answer"] for _, row in rows] == [*words, None]
