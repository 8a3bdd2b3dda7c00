"""From the command to the table: a judge beside the answers, down or up."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml

from langdc import jsonl
from tests.endpoint import YES, closed_port
from tests.eval.test_applications import RUN, TABLE


@pytest.fixture
def open_ended(prepared: Path, tmp_path: Path) -> Path:
    """A config of an open-ended task, of two rows, on two videos with two questions each."""
    (tmp_path / "qa" / "videos").mkdir(parents=True)
    asked, answered = [], []
    for number in range(4):
        name = f"v{number % 2}"
        shutil.copy(prepared / "data" / "videos" / f"{name}.mp4", tmp_path / "qa" / "videos")
        asked.append({"video_name": name, "question": f"what shape {number}", "question_id": number})
        answered.append({"answer": "ring", "question_id": number})
    (tmp_path / "qa" / "test_q.json").write_text(json.dumps(asked))
    (tmp_path / "qa" / "test_a.json").write_text(json.dumps(answered))
    rows = [{"name": name, "model": str(prepared / "pool")} for name in ("one", "two")]
    tree = {
        "task": {"name": "msvd_qa", "root": str(tmp_path / "qa")}, "entries": rows, "output": str(tmp_path / "run"),
        "max_new_tokens": 4, "timing_videos": 0, "warmup_videos": 0,
    }  # fmt: skip
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def _run(folder: Path, url: str, *more: str) -> int:
    judge = f"{{url: {url}, model: tiny, pause: 0.01, retries: 0, timeout: 5}}"
    return RUN.main(["--config", str(folder / "eval.yaml"), f"judge={judge}", *more])


def _answers(folder: Path) -> list[dict]:
    return [line for name in ("one", "two") for line in jsonl.read(folder / "run" / "results" / name / "0.jsonl")]


def _tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert TABLE.main([str(folder / "run")]) == 0
    made = {name: (folder / "run" / name).read_text() for name in ("table.csv", "table.md", "report.html")}
    return {"printed": " ".join(capsys.readouterr().out.split()), **made}


def test_a_run_is_judged_and_its_tables_say_so(endpoint, open_ended: Path, capsys: pytest.CaptureFixture[str]):
    server = endpoint(lambda number, body: YES if "shape 0" in str(body) else "{'pred': 'no', 'score': 1}")
    assert _run(open_ended, server.url) == 0
    worded = {(line["question"], line["answer"]) for line in _answers(open_ended) if line["type"] == "answer"}
    assert len(server.requests) == len(worded) == 4  # two rows of one model say the same, which is asked once
    tables = _tables(open_ended, capsys)
    for text in tables.values():
        assert "tiny" in text
    for name in ("printed", "table.md", "report.html"):
        assert "Judged by tiny" in tables[name] and "25.0 (" in tables[name] and "not judged" not in tables[name]
    one = next(csv.DictReader(io.StringIO(tables["table.csv"])))
    assert (one["judged_value"], one["judge_score"], one["not_judged"], one["judge"]) == ("0.25", "1.75", "0", "tiny")
    assert _run(open_ended, server.url) == 0 and len(server.requests) == 4


def test_an_endpoint_that_is_down_costs_no_answer(endpoint, open_ended: Path, capsys: pytest.CaptureFixture[str]):
    assert _run(open_ended, f"http://127.0.0.1:{closed_port()}/v1") == 1
    assert "8 answers are not judged yet" in capsys.readouterr().err
    before = _answers(open_ended)
    assert sum(line["type"] == "answer" for line in before) == 8
    tables = _tables(open_ended, capsys)
    for name in ("printed", "table.md", "report.html"):
        assert "8 answers are not judged yet" in tables[name]
        assert tables[name].replace("not judged yet", "").count("not judged") >= 2  # the cells of both rows
    one = next(csv.DictReader(io.StringIO(tables["table.csv"])))
    assert one["not_judged"] == "4" and one.get("judged_value", "") == ""
    some = endpoint(lambda number, body: (400, b"no") if "shape 3" in str(body) else YES)
    assert _run(open_ended, some.url) == 1  # a new url is no other run
    assert "2 answers are not judged yet" in capsys.readouterr().err
    assert "75.0 (" in _tables(open_ended, capsys)["table.md"]
    server = endpoint(YES)
    assert _run(open_ended, server.url) == 0
    assert len(server.requests) == 1 and "shape 3" in str(server.requests)
    assert _answers(open_ended) == before
    assert "100.0 (" in _tables(open_ended, capsys)["table.md"]


def test_another_judge_judges_the_same_answers(endpoint, open_ended: Path, capsys: pytest.CaptureFixture[str]):
    server = endpoint(YES)
    assert _run(open_ended, server.url) == 0
    before = _answers(open_ended)
    assert _run(open_ended, server.url, "judge.model=large") == 0
    assert [body["model"] for body in server.requests] == ["tiny"] * 4 + ["large"] * 4
    assert _answers(open_ended) == before
    assert "Judged by large" in _tables(open_ended, capsys)["table.md"]


def test_a_judge_where_none_can_be_is_a_mistake_before_anything_is_asked(
    open_ended: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    assert _run(open_ended, "http://backbone/v1", "judge.key_variable=JUDGE_KEY") == 2
    assert "JUDGE_KEY, which is not set" in capsys.readouterr().err
    assert not (open_ended / "run" / "header.json").exists()
