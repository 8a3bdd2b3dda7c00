"""LongVideoBench's validation rows become questions by category, with what is said at some moments if asked for."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from langdc.evaluate.tasks.longvideobench import FILE
from tests.evaluate.tasks import asked

PROMPT = (
    "When the lamp is lit, what is on the table?\nA. a cup\nB. a ball\nC. a book\n"
    "Answer with the option's letter from the given choices directly.\n"
)


def _row(number: int, **changes) -> dict:
    row = {
        "id": f"one_{number}",
        "video_id": "one",
        "video_path": "one.mp4",
        "subtitle_path": "one_en.json",
        "question": "When the lamp is lit, what is on the table?",
        **{f"option{i}": text for i, text in enumerate(["a cup", "a ball", "a book", "N/A", "N/A"])},
        "correct_choice": 1,
        "duration": 8.0,
        "duration_group": 15,
        "question_category": "S2O",
        "topic_category": "KA-Knowledge-Art",
        "starting_timestamp_for_subtitles": 100.0,
    }
    return {**row, **changes}


def _write(root: Path, *rows: dict) -> Path:
    Dataset.from_list(list(rows)).to_parquet(str(root / FILE))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three questions about two videos, and the subtitles of both in the two published forms."""
    rows = [
        _row(0),
        _row(1, question="What falls?", correct_choice=4, option3="a hat", option4="rain", question_category="E2O"),
        _row(2, id="two_0", video_path="two.mp4", subtitle_path="two_en.json", duration=600.0, duration_group=600),
    ]
    asked.write_json(
        tmp_path / "subtitles" / "one_en.json",
        [
            {"timestamp": [98.0, 99.9], "text": "before it begins"},
            {"timestamp": [102.3, 102.5], "text": "short, at two seconds"},
            {"timestamp": [104.1, 105.9], "text": "at five seconds"},
            {"timestamp": [107.5, None], "text": "after the last moment"},
        ],
    )
    asked.write_json(
        tmp_path / "subtitles" / "two_en.json",
        [
            {"start": "00:02:00.000", "end": "00:02:30.500", "line": "between two moments"},
            {"start": "00:06:30.000", "end": "00:07:01.250", "line": "at five minutes"},
        ],
    )
    asked.write_videos(tmp_path / "videos" / "one.mp4", tmp_path / "videos" / "two.mp4")
    return _write(tmp_path, *rows)


def test_reads_the_rows(root: Path):
    task = asked.benchmark("longvideobench", root=str(root))
    assert [record.id for record in task.records] == ["one", "two"]
    assert [task.path(record) for record in task.records] == [
        root / "videos" / f"{name}.mp4" for name in ("one", "two")
    ]
    first, second = task.records[0].questions
    assert (first.kind, first.answer, first.options) == ("S2O", "B", ["a cup", "a ball", "a book"])
    assert (second.kind, second.answer, len(second.options)) == ("E2O", "E", 5)
    durations = [question.labels for record in task.records for question in record.questions]
    assert durations == [{"duration": "up to 15 s"}] * 2 + [{"duration": "up to 600 s"}]
    assert task.target_kinds == ("S2O", "E2O")
    assert task.missing() == []


def test_the_prompt_is_that_of_lmms_eval(root: Path):
    task = asked.benchmark("longvideobench", root=str(root))
    assert task.prompt(task.records[0].questions[0]) == PROMPT


def test_subtitles_stand_before_the_question(root: Path):
    task = asked.benchmark("longvideobench", root=str(root), subtitles=True)
    said = "short, at two seconds\nat five seconds\n"
    assert task.prompt(task.records[0].questions[0]) == said + PROMPT
    # 600 s in 16 moments of 37.5 s: 300 s is one, 20 to 50.5 s holds 37.5 s
    assert task.records[1].questions[0].context == "between two moments\nat five minutes"
    assert task.data_hash() != asked.benchmark("longvideobench", root=str(root)).data_hash()


def test_fewer_moments_hear_less(root: Path):
    task = asked.benchmark("longvideobench", root=str(root), subtitles=True, subtitle_moments=2)
    assert [record.questions[0].context for record in task.records] == ["", "at five minutes"]
    with pytest.raises(ValueError, match="subtitle_moments is 0; give 1 or more"):
        asked.benchmark("longvideobench", root=str(root), subtitles=True, subtitle_moments=0)


def test_replies_are_scored_by_letter(root: Path):
    task = asked.benchmark("longvideobench", root=str(root))
    question = task.records[0].questions[0]
    found = {text: task.parse(question, text) for text in ("B", "(B) a ball", "a book", "E", "")}
    assert found == {"B": "B", "(B) a ball": "B", "a book": "C", "E": None, "": None}
    assert [task.score(question, letter) for letter in "BC"] == [1.0, 0.0]


def test_missing_files_are_named(root: Path):
    (root / "subtitles" / "two_en.json").unlink()
    (root / "videos" / "one.mp4").unlink()
    assert asked.benchmark("longvideobench", root=str(root)).missing() == [root / "videos" / "one.mp4"]
    with pytest.raises(
        ValueError, match=r"row 3 \(id two_0\): there is no file .*two_en\.json\. Unpack subtitles\.tar"
    ):
        asked.benchmark("longvideobench", root=str(root), subtitles=True)
    (root / FILE).unlink()
    with pytest.raises(ValueError, match=rf"LongVideoBench \(val\): .* lacks {FILE}\. Accept the terms"):
        asked.benchmark("longvideobench", root=str(root))


def test_malformed_files_are_named(root: Path):
    _write(root, _row(0), _row(1, correct_choice=3))
    with pytest.raises(ValueError, match=rf"{FILE}, row 2 \(id one_1\): correct_choice is 3, and there are 3 options"):
        asked.benchmark("longvideobench", root=str(root))
    row = _row(0)
    del row["option4"]
    with pytest.raises(ValueError, match=rf"{FILE}, row 1: there is no option4\. It has: id, video_id"):
        asked.benchmark("longvideobench", root=str(_write(root, row)))
    _write(root, _row(0))
    (root / "subtitles" / "one_en.json").write_text('[{"timestamp": [1.0')
    with pytest.raises(ValueError, match=r"one_en\.json is not valid JSON"):
        asked.benchmark("longvideobench", root=str(root), subtitles=True)


def test_malformed_subtitles_are_named(root: Path):
    asked.write_json(root / "subtitles" / "one_en.json", [{"start": "00:00:01", "line": "no end"}])
    with pytest.raises(ValueError, match=r"one_en\.json: .*'no end'.* lacks timestamp and text, or start, end"):
        asked.benchmark("longvideobench", root=str(root), subtitles=True)


def test_end_to_end(prepared: Path, root: Path, tmp_path: Path):
    (root / "videos" / "two.mp4").write_bytes(b"no video")
    task = {"name": "longvideobench", "root": str(root), "subtitles": True}
    lines, prompts = asked.ask(prepared, tmp_path / "eval", task, ["The answer is B.", "D"])
    assert [(line["video"], line["parsed"], line["score"], line["failed"]) for line in lines] == [
        ("one", "B", 1.0, False),
        ("one", "D", 0.0, False),
        ("two", None, 0.0, True),
    ]
    assert "two.mp4" in lines[-1]["reason"]
    assert prompts[0] == "short, at two seconds\nat five seconds\n" + PROMPT


def test_the_test_split_is_asked_to_be_handed_in(prepared: Path, root: Path, tmp_path: Path):
    """Whatever stands in the place of its answers; validation's file is not needed."""
    rows = [_row(0, correct_choice=-1), _row(1, correct_choice=-1)]
    Dataset.from_list(rows).to_parquet(str(root / FILE.replace("validation", "test")))
    (root / FILE).unlink()
    task = {"name": "longvideobench", "root": str(root), "split": "test"}
    lines, _ = asked.ask(prepared, tmp_path / "eval", task, ["(C)", "no idea"])
    assert [(line["parsed"], line["score"]) for line in lines] == [("C", None), (None, None)]
    (path,) = (tmp_path / "eval" / "submission").glob("*.json")
    assert json.loads(path.read_text()) == {"one_0": "C", "one_1": ""}
