"""Any record file is a task: its own kinds, options, context and metrics, from the prompt to the report."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from langdc import cli, jsonl
from langdc.config import check
from langdc.data.records import INSTRUCTION, QuestionRecord, Record, write_records
from langdc.evaluate.command import report
from langdc.evaluate.comparison import read_results
from langdc.evaluate.judge import Judge
from langdc.evaluate.settings import JudgeConfig
from langdc.evaluate.tasks import build
from tests.endpoint import YES
from tests.evaluate.tasks import asked

ANIMAL = {"kind": "which [/b]", "question": "Which animal?", "options": ["dog", "cat", "horse"], "answer": "B"}
LONG = {"kind": "how <b>long", "question": "How long?", "answer": "1:30"}
COLOUR = {"kind": "accuracy %", "question": "Which colour?", "answer": "red"}
STORY = {"kind": "story", "question": "What happens?", "answer": "a dog runs", "context": "It is summer."}
HIDDEN = {"kind": "hidden", "question": "Where?"}


def _write(folder: Path, *questions: dict, records: int = 2) -> Path:
    """A record file with real videos, `questions` about each."""
    asked.write_videos(*(folder / "videos" / f"v{number}.mp4" for number in range(records)))
    about = [QuestionRecord(**question) for question in questions]
    made = [Record(id=f"v{n}", video=f"videos/v{n}.mp4", questions=about) for n in range(records)]
    write_records(folder / "mine.jsonl", made)
    return folder / "mine.jsonl"


def test_the_model_is_shown_context_and_options(tmp_path: Path) -> None:
    task = build("records", data=str(_write(tmp_path, ANIMAL, STORY)))
    choice, story = task.records[0].questions
    assert task.prompt(choice) == f"Which animal?\nA. dog\nB. cat\nC. horse\n{INSTRUCTION}"
    assert task.prompt(story) == "It is summer.\nWhat happens?"
    assert task.target_kinds == ("which [/b]", "story")


@pytest.mark.parametrize(
    ("text", "parsed", "score"),
    [("(B)", "B", 1), ("B. cat", "B", 1), ("cat", "B", 1), ("A cat.", "B", 1), ("A", "A", 0), ("none", None, 0)],
)
def test_options_are_scored_by_letter_or_words(tmp_path: Path, text: str, parsed: str | None, score: float) -> None:
    task = build("records", data=str(_write(tmp_path, ANIMAL)))
    (question,) = task.records[0].questions
    assert task.parse(question, text) == parsed
    assert parsed is None or task.score(question, parsed) == score


def test_sample_results_are_those_of_exact_records(tmp_path: Path) -> None:
    """Replies to the sample's questions score as they did when the two were one task."""
    data = str(_write(tmp_path, {"kind": "count", "question": "how many ?", "answer": "2"}, COLOUR))
    sample, records = build("sample", data=data), build("records", data=data)
    assert sample.records == records.records and sample.data_hash() == records.data_hash()
    for question in sample.records[0].questions:
        for text, worth in (("Red.", "red"), ("2", "2"), ("<think>red</think> 2!", "2"), ("red car", ""), ("", "")):
            found = [task.parse(question, text) for task in (sample, records)]
            assert found[0] == found[1]
            assert found[0] is None or sample.score(question, found[0]) == (worth == question.answer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ["storry"]}, r"no questions of the kind 'storry'\. Did you mean 'story'\?"),
        ({"metrics": {"storry": "judge"}}, r"no questions of the kind 'storry'\. Did you mean 'story'\?"),
        ({"kinds": []}, "kinds is empty"),
        ({"metrics": {"story": "juge"}}, r"metrics: story: Unknown metric 'juge'\. Did you mean 'judge'\?"),
        ({"metric": "contain"}, r"metric: Unknown metric 'contain'\. Did you mean 'contains'\?"),
        ({"metrics": {"story": {"name": "numeric", "tol": 1}}}, "metrics: story: .*no setting 'tol'"),
        ({"metrics": {"story": {"tolerance": 1}}}, "(?s)metrics: story: .*name"),
        ({"metrics": {"story": 3}}, r"metrics=\{'story': 3\}; allowed are mappings"),
        ({"metrics": {"story": "numeric"}}, r"mine\.jsonl, line 1: no reply can be right.*'story'.*'a dog runs'"),
        ({"metrics": {"which [/b]": "contains"}}, "'which .*have options, which need no metric"),
        ({"metricss": {}}, "no setting 'metricss'. Did you mean 'metrics'"),
    ],
)
def test_settings_that_cannot_work_are_named(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("records", data=str(_write(tmp_path, ANIMAL, STORY)), **settings)


def test_a_judge_that_is_needed_or_has_nothing_to_do_is_named(tmp_path: Path) -> None:
    data, judge = str(_write(tmp_path, ANIMAL, STORY)), check(JudgeConfig, {"url": "http://x/v1", "model": "m"}, "test")
    with pytest.raises(ValueError, match="kind 'story' is scored by a judge, and the config has none"):
        Judge.of(None, build("records", data=data, metrics={"story": "judge"}), tmp_path)
    with pytest.raises(ValueError, match="options, which need no judge"):
        Judge.of(judge, build("records", data=data), tmp_path)
    assert Judge.of(judge, build("records", data=data, metrics={"story": "judge"}), tmp_path) is not None


def test_own_kinds_from_the_command_to_the_report(
    prepared: Path, tmp_path: Path, endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options, metrics and a judge by kind, and questions without answers: figures, intervals, files to hand in."""
    server = endpoint(YES)
    metrics = {"how <b>long": {"name": "numeric", "tolerance": 1}, "accuracy %": "contains", "story": "judge"}
    task = {"name": "records", "data": str(_write(tmp_path, ANIMAL, LONG, COLOUR, STORY, HIDDEN)), "metrics": metrics}
    tree = {
        "task": task, "output": str(tmp_path / "run"), "max_new_tokens": 2, "timing_videos": 0,
        "entries": [{"name": "one", "model": str(prepared / "pool")}],
        "judge": {"url": server.url, "model": "tiny"},
    }  # fmt: skip
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(tree))
    assert cli.main(["eval", str(tmp_path / "eval.yaml")]) == 0
    assert f"the replies to hand in are in {tmp_path / 'run' / 'submission'}" in capsys.readouterr().out
    assert {body["messages"][1]["content"].count("What happens?") for body in server.requests} == {1}
    lines = jsonl.read(tmp_path / "run" / "results" / "one" / "0.jsonl")
    first = [line for line in lines if line["type"] == "answer" and line["video"] == "v0"]
    assert [line.get("judged") for line in first] == [False, False, False, True, False]
    assert [line["score"] is None for line in first] == [False, False, False, True, True]
    (result,) = read_results([tmp_path / "run"])
    assert list(result.kinds) == ["which [/b]", "how <b>long", "accuracy %", "story"]
    assert result.kinds["story"].value == 1 and result.judged[1] == 4
    assert result.accuracy is not None and (result.accuracy.n, result.accuracy.clusters) == (8, 2)
    assert cli.main(["report", str(tmp_path / "run"), "--no-frames"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 10 questions have no answer and are not scored; accuracy is of the others" in printed
    assert "[/b]" in printed and "95 % interval" in printed
    for name in ("table.md", "report.html"):
        text = (tmp_path / "run" / name).read_text()
        assert "2 of 10 questions have no answer" in text and "<b>long" not in text and "&lt;b&gt;long" in text
    rows = json.loads((tmp_path / "run" / "submission" / "one.json").read_text())
    assert [row["id"] for row in rows] == [f"v{n}/{number}" for n in range(2) for number in range(5)]
    assert rows[4]["question"] == "Where?" and rows[4]["reply"] == first[4]["answer"]
    with (tmp_path / "run" / "submission" / "one.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == [row["id"] for row in rows]


def test_replies_are_scored_by_the_metric_of_their_kind(prepared: Path, tmp_path: Path) -> None:
    metrics = {"how <b>long": "numeric", "accuracy %": "contains"}
    task = {
        "name": "records",
        "data": str(_write(tmp_path, ANIMAL, LONG, COLOUR, STORY, records=1)),
        "metrics": metrics,
    }
    said = ["Not A. It is B.", "It takes 90 seconds.", "a red car", "A dog runs!"]
    lines, prompts = asked.ask(prepared, tmp_path / "eval", task, said)
    assert [(line["parsed"], line["score"]) for line in lines] == [
        ("B", 1.0),
        ("90", 1.0),
        ("red car", 1.0),
        ("a dog runs", 1.0),
    ]
    assert prompts[0].startswith("Which animal?\nA. dog") and prompts[3].startswith("It is summer.")


def test_nothing_but_questions_without_answers(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = {**ANIMAL, "answer": "", "labels": {"id": "q7"}}
    task = {"name": "records", "data": str(_write(tmp_path, hidden, records=1))}
    lines, _ = asked.ask(prepared, tmp_path / "eval", task, ["The answer is (C)."])
    assert [(line["parsed"], line["score"], line["correct"]) for line in lines] == [("C", None, False)]
    (path,) = (tmp_path / "eval" / "submission").glob("*.json")
    row = {"id": "q7", "question": "Which animal?", "reply": "The answer is (C).", "answer": "C"}
    assert json.loads(path.read_text()) == [row]
    (result,) = read_results([tmp_path / "eval"])
    assert result.accuracy is None and result.kinds == {} and result.final_scores == []
    assert report([str(tmp_path / "eval"), "--no-frames"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 questions have no answer and are not scored; so there is no accuracy" in printed
    assert "accuracy %" not in printed
    page = (tmp_path / "eval" / "report.html").read_text()
    assert "No question has an answer to compare with" in page and "nan" not in page
    assert "accuracy" not in (tmp_path / "eval" / "table.md").read_text().partition("\n")[0]


def test_records_of_one_file_are_no_independent_videos(prepared: Path, tmp_path: Path) -> None:
    """Clips of a file and links to it are one cluster, whatever becomes of them; another file is a second one."""
    data = _write(tmp_path, ANIMAL, records=2)
    (tmp_path / "videos" / "link.mp4").symlink_to("v0.mp4")
    about = [QuestionRecord(**ANIMAL)]
    clips = [
        {},
        {"end": 0.5},
        {"start": 0.5},
        {"start": 90.0},
        {"video": "videos/link.mp4"},
        {"video": "videos/v1.mp4"},
    ]
    made = [Record(**{"id": f"r{n}", "video": "videos/v0.mp4", "questions": about, **c}) for n, c in enumerate(clips)]
    write_records(data, made)
    tree = {
        "task": {"name": "records", "data": str(data)}, "output": str(tmp_path / "run"), "max_new_tokens": 1,
        "timing_videos": 0, "entries": [{"name": name, "model": str(prepared / "pool")} for name in ("one", "two")],
        "reference": "one",
    }  # fmt: skip
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(tree))
    assert cli.main(["eval", str(tmp_path / "eval.yaml")]) in (0, 1)
    one, two = read_results([tmp_path / "run"])
    assert len(one.failures) == 1 and two.difference is not None and one.tokens is not None
    assert one.accuracy is not None and (one.accuracy.n, one.accuracy.clusters) == (6, 2)
    assert (two.difference.clusters, one.tokens.clusters) == (2, 2)
    for line in one.lines:  # as older versions wrote them
        line.pop("file", None)
    old = replace(one)
    assert old.accuracy is not None and old.accuracy.clusters == 6
