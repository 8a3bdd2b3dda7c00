"""EgoSchema's two files become one five-way question per video, for the questions whose answers are published."""

import json
from pathlib import Path

import pytest

from tests.evaluate.tasks import asked

OPTIONS = ["C cooks a soup.", "C paints a wall.", "C repairs a bicycle.", "C reads a book.", "C waters the plants."]
UIDS = ["0074-aa", "00b9-bb"]


def _row(uid: str, **changes) -> dict:
    options = {f"option {number}": text for number, text in enumerate(OPTIONS)}
    return {"q_uid": uid, "google_drive_id": "x", "question": "What does C do?", **options, **changes}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three questions, two of them with published answers, and their videos."""
    asked.write_json(tmp_path / "questions.json", [_row(UIDS[1]), _row("no answer"), _row(UIDS[0])])
    asked.write_json(tmp_path / "subset_answers.json", {UIDS[0]: 2, UIDS[1]: 4})
    asked.write_videos(*(tmp_path / "videos" / f"{uid}.mp4" for uid in UIDS))
    return tmp_path


def test_reads_the_questions_with_answers(root: Path):
    task = asked.benchmark("egoschema", root=str(root))
    assert [(record.id, record.questions[0].answer) for record in task.records] == [(UIDS[0], "C"), (UIDS[1], "E")]
    assert task.path(task.records[0]) == root / "videos" / "0074-aa.mp4"
    assert task.records[0].questions[0].options == OPTIONS
    assert task.target_kinds == ("egoschema",)
    assert task.missing() == []


def test_the_prompt_is_that_of_lmms_eval(root: Path):
    task = asked.benchmark("egoschema", root=str(root))
    assert task.prompt(task.records[0].questions[0]) == (
        "What does C do?\nA. C cooks a soup.\nB. C paints a wall.\nC. C repairs a bicycle.\nD. C reads a book.\n"
        "E. C waters the plants.\nAnswer with the option's letter from the given choices directly."
    )


def test_the_person_c_is_no_choice_of_c(root: Path):
    """Options begin with "C", which is what the benchmark calls the one who wears the camera."""
    task = asked.benchmark("egoschema", root=str(root))
    question = task.records[0].questions[0]
    texts = ("C", "C.", "(C)", "C. C repairs a bicycle.", "C reads a book.", "D. C reads a book.", "E", "F", "")
    found = [task.parse(question, text) for text in texts]
    assert found == ["C", "C", "C", "C", "D", "D", "E", None, None]
    sentences = ("C reads a book and smiles.", "C is at home.", "C because the wheel comes off.", "C, as seen.")
    assert [task.parse(question, text) for text in sentences] == ["D", None, "C", "C"]
    assert [task.score(question, letter) for letter in "CD"] == [1.0, 0.0]


def test_missing_files_are_named(root: Path):
    (root / "videos" / f"{UIDS[1]}.mp4").unlink()
    assert asked.benchmark("egoschema", root=str(root)).missing() == [root / "videos" / f"{UIDS[1]}.mp4"]
    (root / "subset_answers.json").unlink()
    with pytest.raises(ValueError, match=r"EgoSchema \(subset of 500\): .* lacks subset_answers\.json\. Clone"):
        asked.benchmark("egoschema", root=str(root))


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({UIDS[0]: 5}, "q_uid 0074-aa: the answer 5 in subset_answers.json is no number from 0 to 4"),
        ({UIDS[0]: None}, "q_uid 0074-aa: the answer None in subset_answers.json is no number"),
        ({"other": 1}, "q_uid other: subset_answers.json has an answer to it, and there is no such question"),
    ],
)
def test_malformed_answers_are_named(root: Path, answers: dict, reason: str):
    asked.write_json(root / "subset_answers.json", answers)
    with pytest.raises(ValueError, match=reason):
        asked.benchmark("egoschema", root=str(root))


def test_malformed_questions_are_named(root: Path):
    row = _row(UIDS[0])
    del row["question"]
    asked.write_json(root / "questions.json", [_row(UIDS[1]), row])
    with pytest.raises(ValueError, match=r"q_uid 0074-aa: it has no question\. Take questions\.json from the newest"):
        asked.benchmark("egoschema", root=str(root))
    del row["option 4"]
    asked.write_json(root / "questions.json", [_row(UIDS[1]), row])
    with pytest.raises(ValueError, match=r"questions\.json, row 2: there is no option 4\. It has: q_uid"):
        asked.benchmark("egoschema", root=str(root))


def test_end_to_end(prepared: Path, root: Path, tmp_path: Path):
    task = {"name": "egoschema", "root": str(root)}
    lines, prompts = asked.ask(prepared, tmp_path / "eval", task, ["C", "The person C repairs a bicycle."])
    assert [(line["video"], line["parsed"], line["score"], line["failed"]) for line in lines] == [
        (UIDS[0], "C", 1.0, False),
        (UIDS[1], "C", 0.0, False),
    ]
    assert len(prompts) == 2


def test_all_questions_are_asked_to_be_handed_in(prepared: Path, root: Path, tmp_path: Path):
    """Those with published answers are scored; the file is what the authors' server reads."""
    asked.write_videos(root / "videos" / "no answer.mp4")
    task = {"name": "egoschema", "root": str(root), "split": "all"}
    lines, _ = asked.ask(prepared, tmp_path / "eval", task, ["C", "no idea", "B"])
    assert {line["video"]: line["score"] for line in lines} == {UIDS[0]: 1.0, UIDS[1]: 0.0, "no answer": None}
    (path,) = (tmp_path / "eval" / "submission").glob("*.json")
    assert json.loads(path.read_text()) == {UIDS[0]: 2, UIDS[1]: -1, "no answer": 1}


def test_an_unknown_split_is_named(root: Path):
    with pytest.raises(ValueError, match="split='full'; allowed are 'subset', 'all'"):
        asked.benchmark("egoschema", root=str(root), split="full")
