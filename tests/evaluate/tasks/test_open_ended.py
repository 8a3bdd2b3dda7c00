"""The four open-ended benchmarks: same files, different folders; a reply is right when it says the answer."""

import json
from pathlib import Path

import pytest

from langdc.data.records import QuestionRecord
from tests.evaluate.tasks import asked

FIRST_FILE = {
    "msvd_qa": "videos/x1",
    "msrvtt_qa": "videos/all/x1",
    "tgif_qa": "mp4/x1",
    "activitynet_qa": "all_test/v_x1",
}
QUESTIONS = [
    {"video_name": "x1", "question": "what is a man riding?", "question_id": "v_x1_0"},
    {"video_name": "x2", "question": "is the dog wet", "question_id": "v_x2_0"},
    {"video_name": "x1", "question": "how many people ride ?", "question_id": "v_x1_1"},
]
ANSWERS = [
    {"answer": "horse", "type": 5, "question_id": "v_x1_0"},
    {"answer": "yes", "type": 3, "question_id": "v_x2_0"},
    {"answer": "2", "type": 7, "question_id": "v_x1_1"},
]


def _write(root: Path, questions: list[dict] = QUESTIONS, answers: list[dict] = ANSWERS) -> Path:
    root.mkdir(exist_ok=True)
    (root / "test_q.json").write_text(json.dumps(questions))
    (root / "test_a.json").write_text(json.dumps(answers))
    return root


def _changed(rows: list[dict], number: int, **changes) -> list[dict]:
    return [{**row, **changes} if place == number else row for place, row in enumerate(rows)]


@pytest.mark.parametrize("name", FIRST_FILE)
def test_questions_of_a_video_are_together(tmp_path: Path, name: str):
    task = asked.benchmark(name, root=str(_write(tmp_path)))
    first, second = task.records
    assert (first.id, second.id) == ("x1", "x2")
    assert [(q.question, q.answer) for q in first.questions] == [
        ("what is a man riding?", "horse"),
        ("how many people ride ?", "2"),
    ]
    assert first.video == FIRST_FILE[name] + ".mp4"
    assert task.missing()[0] == tmp_path / (FIRST_FILE[name] + ".mp4")
    kinds = ["object", "number", "yes/no"] if name == "activitynet_qa" else ["what", "how", "other"]
    assert list(task.target_kinds) == kinds


def test_videos_are_found_by_any_of_their_suffixes(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "x2.avi").touch()
    task = asked.benchmark("msvd_qa", root=str(_write(tmp_path)))
    assert [record.video for record in task.records] == ["videos/x1.mp4", "videos/x2.avi"]
    assert task.missing() == [tmp_path / "videos" / "x1.mp4"]


def test_prompts(tmp_path: Path):
    root = str(_write(tmp_path))
    brief, plain = asked.benchmark("msvd_qa", root=root), asked.benchmark("msvd_qa", root=root, brief=False)
    questions = [question for record in brief.records for question in record.questions]
    assert [brief.prompt(question) for question in questions] == [
        "What is a man riding? Answer the question using a single word or phrase.",
        "How many people ride? Answer the question using a single word or phrase.",
        "Is the dog wet? Answer the question using a single word or phrase.",
    ]
    assert [plain.prompt(question) for question in questions] == [question.question for question in questions]


@pytest.mark.parametrize(
    ("answer", "reply", "right"),
    [
        ("horse", "horse", True), ("horse", "A horse.", True), ("Horse", "The man is riding a HORSE!", True),
        ("horse", "horses", False), ("horse", "seahorse", False), ("a horse", "horse", True),
        ("ride bike", "they ride a bike", True), ("ride bike", "bike ride", False),
        ("ride bike", "they ride the red bike", False),
        ("2", "two", True), ("two", "There are 2 people.", True), ("2", "12", False), ("2", "2", True),
        ("t-shirt", "a T-shirt", True), ("man's hat", "the mans hat", True), ("</s>x", "x</s>", True),
        ("yes", "Yes, it is.", True), ("yes", "no", False), ("no", "No.", True),
        ("no", "Yes, there is no doubt.", False), ("no", "not at all", False), ("yes", "wet", False),
        ("the", "the", True), ("the", "a cat", False),
        ("3.5", "35", False), ("3.5", "it is 3.5 m", True), ("5", "3.5", False), ("1:30", "130", False),
        ("5", "-5", False), ("-5", "−5 degrees", True), ("1200", "1,200 people", True), ("c", "c++", False),
        ("horse", "<think>a horse?</think> a cow", False), ("cow", "<think>a horse?</think> a cow", True),
    ],
)  # fmt: skip
def test_a_reply_is_right_when_it_says_the_answer(tmp_path: Path, answer: str, reply: str, right: bool):
    task = asked.benchmark("tgif_qa", root=str(_write(tmp_path)))
    question = QuestionRecord(kind="what", question="what?", answer=answer)
    found = task.parse(question, reply)
    assert found is not None
    assert task.score(question, found) == float(right)


@pytest.mark.parametrize("reply", ["", "  ", "?!", "</s>"])
def test_a_reply_without_words_is_not_an_answer(tmp_path: Path, reply: str):
    task = asked.benchmark("tgif_qa", root=str(_write(tmp_path)))
    assert task.parse(task.records[0].questions[0], reply) is None


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        (QUESTIONS, ANSWERS[:2], "has 3 rows, .*test_a.json 2"),
        (
            QUESTIONS,
            _changed(ANSWERS, 1, question_id="v_x9_0"),
            "test_a.json, row 2: answers 'v_x9_0', asked .*'v_x2_0'",
        ),
        (QUESTIONS, _changed(ANSWERS, 2, answer=" "), "test_a.json, row 3"),
        (QUESTIONS, _changed(ANSWERS, 2, type=9), r"test_a.json, row 3: type is 9; it must be 0 to 8"),
        (QUESTIONS, [{"type": 3}, *ANSWERS[1:]], "test_a.json, row 1: there is no answer"),
        ([{"question": "?"}, *QUESTIONS[1:]], ANSWERS, "test_q.json, row 1: there is no video_name, question_id"),
        ([], [], "no questions"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, questions: list[dict], answers: list[dict], message: str):
    with pytest.raises(ValueError, match=message):
        asked.benchmark("activitynet_qa", root=str(_write(tmp_path, questions, answers)))


def test_missing_and_broken_files_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"TGIF-QA: .* lacks test_q.json, test_a.json. Fetch TGIF_Zero_Shot_QA"):
        asked.benchmark("tgif_qa", root=str(tmp_path))
    (_write(tmp_path) / "test_a.json").write_text('[{"answer": "ho')
    with pytest.raises(ValueError, match=r"test_a.json is not valid JSON"):
        asked.benchmark("tgif_qa", root=str(tmp_path))


@pytest.mark.parametrize("name", FIRST_FILE)
def test_the_loop_asks_it(prepared: Path, tmp_path: Path, name: str):
    root = _write(tmp_path / "data")
    asked.write_videos(root / (FIRST_FILE[name] + ".mp4"))
    replies = ["It is a horse.", "three"]
    lines, prompts = asked.ask(prepared, tmp_path / "eval", {"name": name, "root": str(root)}, replies)
    assert [prompt.partition("?")[0] for prompt in prompts] == ["What is a man riding", "How many people ride"]
    assert [(line["key"], line["expected"], line["score"], line["failed"]) for line in lines] == [
        ("x1/0", "horse", 1, False),
        ("x1/1", "2", 0, False),
        ("x2/0", "yes", 0, True),  # has no video
    ]
    assert [line["parsed"] for line in lines] == ["it is horse", "3", None]
