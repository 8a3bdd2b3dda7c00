"""The judge, asked over real HTTP at a small server that can misbehave in every way an endpoint does."""

import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from langdc import jsonl
from langdc.config import check
from langdc.evaluate import tasks
from langdc.evaluate.judge import (
    SYSTEM,
    Case,
    Judge,
    Verdict,
)
from langdc.evaluate.settings import JudgeConfig
from tests.endpoint import YES, closed_port, completion

CASE = Case("what is it", "horse", "a pony")


def _judge(url: str, memory: Path, **changes) -> Judge:
    tree = {"url": url, "model": "tiny", "timeout": 5, "pause": 0.01, "retries": 2, **changes}
    return Judge(check(JudgeConfig, tree, "test"), memory / "verdicts.jsonl")


def test_a_request_is_the_published_protocol(endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    server = endpoint(YES)
    judge = _judge(server.url + "/", tmp_path, key_variable="JUDGE_KEY")
    assert judge.verdicts([CASE]) == {CASE: Verdict(right=True, score=4)}
    (body,) = server.requests
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny", 0, 64)
    system, user = body["messages"]
    assert system == {"role": "system", "content": SYSTEM}
    assert user["role"] == "user"
    assert "\n\nQuestion: what is it\nCorrect Answer: horse\nPredicted Answer: a pony\n\n" in user["content"]
    assert user["content"].endswith("your response should look like this: {'pred': 'yes', 'score': 4.8}.")
    assert "secret" not in (tmp_path / "verdicts.jsonl").read_text()


def test_a_key_that_is_not_set_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match="environment variable JUDGE_KEY, which is not set"):
        _judge("http://backbone/v1", tmp_path, key_variable="JUDGE_KEY")


def test_without_a_key_none_is_sent(endpoint, tmp_path: Path):
    server = endpoint(YES)
    _judge(server.url, tmp_path).ask(CASE)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("url", ["backbone/v1", "file:///etc/passwd", "https:///v1", ""])
def test_urls_that_cannot_work_are_refused(tmp_path: Path, url: str):
    with pytest.raises(ValueError, match="url"):
        _judge(url, tmp_path)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (YES, Verdict(True, 4)),
        ("{'pred': 'no', 'score': 0}", Verdict(False, 0)),
        ('{"pred": "Yes", "score": 5}', Verdict(True, 5)),
        ('```json\n{"pred": "no", "score": "2"}\n```', Verdict(False, 2)),
        ("Sure! {'pred': 'yes.', 'score': 4.8} Anything else?", Verdict(True, 4)),
        ("<think>{'pred': 'no', 'score': 0}?</think>" + YES, Verdict(True, 4)),
    ],
)
def test_replies_are_read(reply: str, verdict: Verdict):
    assert Verdict.read(reply) == verdict


MALFORMED = [
    "", "yes", "yes, 4", "{'pred': 'yes'}", "{'score': 4}", "{'pred': 'maybe', 'score': 3}",
    "{'pred': 'not sure', 'score': 3}", "{'pred': 'yes', 'score': 6}", "{'pred': 'yes', 'score': -1}",
    "{'pred': 'yes', 'score': 'high'}", "{'pred': 'yes', 'score': 1e999}", '{"pred": "yes", "score": NaN}',
    "{'pred': 'yes', 'score': None}", "{'pred', 'score'}", "}{", "{" * 5000 + "}",
    "<think>{'pred': 'yes', 'score': 4}", "{'pred': __import__('os').getcwd(), 'score': 4}",
]  # fmt: skip


@pytest.mark.parametrize("reply", MALFORMED)
def test_malformed_replies_are_no_verdict(reply: str):
    with pytest.raises(ValueError, match="its reply is no verdict"):
        Verdict.read(reply)


@pytest.mark.parametrize(
    "reply", ["maybe", b"<html>busy</html>", b"", b"[]", b'{"choices": []}', b"\xff", completion(None)]
)
def test_a_judge_that_never_says_anything_usable_is_asked_again_and_given_up(endpoint, tmp_path: Path, reply):
    server = endpoint(reply)
    with pytest.raises(ValueError, match=r"/v1/chat/completions \(model tiny\), asked 3 time\(s\): its reply is no"):
        _judge(server.url, tmp_path).ask(CASE)
    assert len(server.requests) == 3


@pytest.mark.parametrize("trouble", [(500, b"oops"), (503, b""), (429, b"slow down"), "perhaps", b"not json"])
def test_trouble_that_passes_is_waited_for(endpoint, tmp_path: Path, trouble):
    server = endpoint(lambda number, body: trouble if number < 3 else YES)
    begun = time.perf_counter()
    assert _judge(server.url, tmp_path, pause=0.05).ask(CASE) == Verdict(True, 4)
    assert len(server.requests) == 3
    assert time.perf_counter() - begun >= 0.05 + 0.1  # pauses double


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_asking_again_cannot_help_is_told_at_once(endpoint, tmp_path: Path, status: int):
    server = endpoint((status, b"no"))
    with pytest.raises(ValueError, match=f"HTTP {status} .* Check url, model and key"):
        _judge(server.url, tmp_path).ask(CASE)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_so_that_no_other_server_gets_the_key(
    endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    other = endpoint(YES)
    server = endpoint((status, b"", {"Location": f"{other.url}/chat/completions"}))
    with pytest.raises(ValueError, match=f"HTTP {status} .* It redirects to {other.url}/chat/completions"):
        _judge(server.url, tmp_path, key_variable="JUDGE_KEY").ask(CASE)
    assert other.headers == [] and len(server.requests) == 1


def test_a_silent_endpoint_is_not_waited_for_longer_than_timeout(endpoint, tmp_path: Path):
    woken = threading.Event()

    def sleep(number: int, body: dict) -> str:
        woken.wait(10)
        return YES

    server = endpoint(sleep)
    begun = time.perf_counter()
    with pytest.raises(ValueError, match=r"cannot be reached .*timed out"):
        _judge(server.url, tmp_path, timeout=0.2, retries=1).ask(CASE)
    woken.set()
    assert 0.4 <= time.perf_counter() - begun < 5
    assert len(server.requests) == 2


def test_a_connection_that_breaks_off_is_trouble_like_any_other(endpoint, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def cut() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
                connection.close()

        threading.Thread(target=cut, daemon=True).start()
        with pytest.raises(ValueError, match=r"asked 3 time\(s\): cannot be reached"):
            _judge(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", tmp_path).ask(CASE)


def test_an_endpoint_that_is_down_fails_every_case_and_is_not_waited_for_each_time(endpoint, tmp_path: Path):
    cases = [Case("q", "a", str(number)) for number in range(20)]
    judge = _judge(f"http://127.0.0.1:{closed_port()}/v1", tmp_path, pause=0.2, retries=1, workers=1)
    begun = time.perf_counter()
    found = judge.verdicts(cases)
    assert time.perf_counter() - begun < 2  # 20 pauses would be 4 seconds
    assert set(found) == set(cases)
    assert all(verdict.failed and not verdict.right and verdict.score == 0 for verdict in found.values())
    assert "asked 2 time(s): cannot be reached" in (found[cases[0]].reason or "")
    assert "asked 1 time(s): cannot be reached" in (found[cases[9]].reason or "")
    assert jsonl.read(tmp_path / "verdicts.jsonl") == []  # a failure is no verdict
    server = endpoint(YES)
    again = _judge(server.url, tmp_path).verdicts(cases)
    assert all(verdict == Verdict(True, 4) for verdict in again.values())


def test_nothing_is_asked_twice(endpoint, tmp_path: Path):
    server = endpoint(lambda number, body: "{'pred': 'no', 'score': 1}" if "zebra" in str(body) else YES)
    cases = [CASE, Case("what is it", "horse", "zebra"), CASE]
    first = _judge(server.url, tmp_path).verdicts(cases)
    assert first == {CASE: Verdict(True, 4), cases[1]: Verdict(False, 1)}
    assert len(server.requests) == 2
    assert _judge(server.url, tmp_path).verdicts([*cases, Case("what is it", "horse", "cat")]).items() > first.items()
    assert len(server.requests) == 3
    moved = endpoint(YES)  # another port
    assert _judge(f"{moved.url}/other/place", tmp_path, timeout=1, retries=0, workers=1).verdicts(cases) == first
    assert moved.requests == []


@pytest.mark.parametrize("changes", [{"model": "other"}, {"options": {"temperature": 1}}])
def test_another_judge_has_other_verdicts(tmp_path: Path, changes: dict):
    one = _judge("http://backbone/v1", tmp_path)
    other = _judge(**{"url": "http://backbone/v1", "memory": tmp_path, **changes})
    assert one.key(CASE) != other.key(CASE)


def test_every_part_of_a_case_counts(tmp_path: Path):
    judge = _judge("http://backbone/v1", tmp_path)
    cases = [CASE, Case("x", "horse", "a pony"), Case("what is it", "x", "a pony"), Case("what is it", "horse", "x")]
    assert len({judge.key(case) for case in cases}) == 4


def test_a_killed_run_goes_on_where_its_verdicts_end(endpoint, tmp_path: Path):
    server = endpoint(YES)
    cases = [Case("q", "a", str(number)) for number in range(6)]
    _judge(server.url, tmp_path).verdicts(cases)
    path = tmp_path / "verdicts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert len(_judge(server.url, tmp_path).verdicts(cases)) == 6
    assert len(server.requests) == 6 + 3
    assert len(jsonl.read(path)) == 6


DAMAGE = {
    "no verdict": ({"right": None}, "is damaged (right is None)"),
    "a word": ({"right": "yes"}, "is damaged (right is 'yes')"),
    "a score beyond 5": ({"score": 7}, "is damaged (score is 7)"),
    "no score": ({"score": "4"}, "is damaged (score is '4')"),
    "another reply": ({"prediction": "a horse"}, "is on another reply than"),
    "another answer": ({"answer": "pony"}, "is on another reply than"),
    "no key": ({"key": 3}, "is damaged (key is 3)"),
    "another kind of line": ({"type": "timing", "warm": True, "seconds": {}}, "is on another reply than"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_verdict_is_named_and_not_counted(endpoint, tmp_path: Path, kind: str):
    change, said = DAMAGE[kind]
    server = endpoint(YES)
    judge = _judge(server.url, tmp_path)
    judge.verdicts([CASE])
    path = tmp_path / "verdicts.jsonl"
    (line,) = jsonl.read(path)
    jsonl.write_lines(path, [line | change])
    answer = {"type": "answer", "answer": CASE.prediction, "question": CASE.question, "expected": CASE.answer}
    for read in (
        lambda: _judge(server.url, tmp_path).verdicts([CASE]),
        lambda: Verdict.of_answers(tmp_path, judge.config.model_dump(), [answer]),
    ):
        with pytest.raises(ValueError, match=re.escape(said)) as caught:
            read()
        assert str(path) in str(caught.value)
    assert len(server.requests) == 1


def test_lines_that_were_cut_or_are_another_runs(endpoint, tmp_path: Path):
    """A last line that a kill cut off is asked again; a broken one before is named; others say nothing of this run."""
    server = endpoint(YES)
    _judge(server.url, tmp_path).verdicts([CASE])
    path = tmp_path / "verdicts.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + b"\n" + whole)
    with pytest.raises(ValueError, match=r"verdicts\.jsonl, line 1, is not valid JSON"):
        _judge(server.url, tmp_path)
    path.write_bytes(whole + whole[:40])
    assert _judge(server.url, tmp_path, model="other").verdicts([CASE]) == {CASE: Verdict(True, 4)}
    assert len(server.requests) == 2 and len(jsonl.read(path)) == 2


def test_verdicts_that_cannot_be_kept_stop_the_asking(endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server = endpoint(YES)
    judge = _judge(server.url, tmp_path, workers=2)

    def full(lines) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(judge.verdicts_file, "append", full)
    with pytest.raises(OSError, match="No space left"):
        judge.verdicts([Case("q", "a", str(number)) for number in range(300)])
    assert len(server.requests) < 100  # what waited was not asked


def test_several_are_asked_at_once(endpoint, tmp_path: Path):
    together = threading.Barrier(4, timeout=5)

    def reply(number: int, body: dict) -> str:
        together.wait()
        return YES

    cases = [Case("q", "a", str(number)) for number in range(8)]
    found = _judge(endpoint(reply).url, tmp_path, workers=4, retries=0).verdicts(cases)
    assert all(verdict == Verdict(True, 4) for verdict in found.values())


def _task(root: Path):
    asked = [{"video_name": "x", "question": f"what {n}", "question_id": n} for n in range(4)]
    (root / "test_q.json").write_text(json.dumps(asked))
    (root / "test_a.json").write_text(json.dumps([{"answer": "horse", "question_id": n} for n in range(4)]))
    return tasks.build("msvd_qa", root=str(root))


def _answer(number: int, text: str | None) -> dict:
    line = {"type": "answer", "key": f"x/{number}", "question": f"what {number}", "expected": "horse", "answer": text}
    return {**line, "score": 0.0, "failed": text is None}


def test_every_answer_gets_its_verdict_and_only_words_are_put_to_the_judge(endpoint, tmp_path: Path):
    def reply(number: int, body: dict) -> str | tuple[int, bytes]:
        said = body["messages"][1]["content"]
        return (400, b"no") if "ghost" in said else YES if "pony" in said else "{'pred': 'no', 'score': 1}"

    lines = [
        {"type": "video", "key": "video/x"},
        *(
            _answer(n, text)
            for n, text in enumerate(["<think>cat?</think>pony\n", "cat", " ", None, "ghost", "<think>horse"])
        ),
        {"type": "finished", "key": "finished"},
    ]
    judge = _judge(endpoint(reply).url, tmp_path)
    asked = [case for line in lines if (case := Case.of(line)) is not None]
    assert [case.prediction for case in asked] == ["pony", "cat", "ghost"]
    judge.verdicts(asked)
    nothing = Verdict(right=False, score=0)
    found = Verdict.of_answers(tmp_path, judge.config.model_dump(), lines)
    assert found == [Verdict(True, 4), Verdict(False, 1), nothing, nothing, None, nothing]
    other = {**judge.config.model_dump(), "model": "another"}
    assert Verdict.of_answers(tmp_path, other, lines) == [None, None, nothing, nothing, None, nothing]


def test_choices_need_no_judge(tmp_path: Path):
    task = _task(tmp_path)
    config = check(JudgeConfig, {"url": "http://backbone/v1", "model": "tiny"}, "test")
    assert Judge.of(None, task, tmp_path) is None and Judge.of(config, task, tmp_path) is not None
    question = task.records[0].questions[0].model_copy(update={"options": ["a", "b"], "answer": "A"})
    task.records[0] = task.records[0].model_copy(update={"questions": [question]})
    with pytest.raises(ValueError, match="questions with options, which need no judge"):
        Judge.of(config, task, tmp_path)
