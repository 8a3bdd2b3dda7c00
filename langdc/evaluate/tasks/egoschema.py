"""EgoSchema: five-way questions about 3-minute videos from head-worn cameras; the answers of 500 are published."""

import re
from collections.abc import Iterable
from typing import Any, Literal

from langdc.data.records import LETTERS, QuestionRecord, Record
from langdc.evaluate.tasks.base import MultipleChoice, Source, tasks
from langdc.jsonl import read_json
from langdc.registry import check_choice

Split = Literal["subset", "all"]
OPTIONS = tuple(f"option {number}" for number in range(5))
WEARER = re.compile(r"^\W*C(?= (?!because\b)[a-z])")
"""The person who wears the camera is called C: "C reads a book" chooses what says so, not the third option."""


@tasks.register("egoschema")
class EgoSchema(MultipleChoice):
    """The questions in `root`, one per video: the `split` "subset", whose answers are published, or "all" of them.

    Of "all", the replies are written as the authors' server reads them: the number of an option by q_uid, -1 where none
    was read.
    """

    source = Source(
        title="EgoSchema (subset of 500)",
        page="https://github.com/egoschema/EgoSchema",
        licence="questions: MIT, as lmms-lab/egoschema on the Hub says; videos: cut from Ego4D, under its licence",
        files=("questions.json", "subset_answers.json"),
        get="Clone the page's repository, and download the videos to its folder videos/ as its README says.",
        fields_as="github.com/egoschema/EgoSchema, download.py and benchmarking/mPLUG-Owl/run_mplug.py; prompt: "
        "lmms-eval 0.7.3, tasks/egoschema",
    )

    def __init__(self, root: str, split: Split = "subset") -> None:
        check_choice("split", split, Split)
        self.split = split
        super().__init__(root)

    def load(self) -> Iterable[tuple[Record, QuestionRecord]]:
        rows = {row["q_uid"]: row for _, row in self.rows("questions.json", ("q_uid", *OPTIONS))}
        known = read_json(self.root / "subset_answers.json")
        for uid in dict.fromkeys([*known, *(rows if self.split == "all" else ())]):
            with self.located(f"{self.root / 'questions.json'}, q_uid {uid}"):
                answer = _answer(known[uid]) if uid in known else ""
                yield Record(id=uid, video=f"videos/{uid}.mp4"), _question(rows.get(uid), answer)

    def submission(self, rows: list[dict[str, Any]]) -> Any:
        found = {row["id"].rpartition("/")[0]: row["answer"] for row in rows}
        return {uid: LETTERS.index(letter) if letter else -1 for uid, letter in found.items()}

    def parse(self, question: QuestionRecord, text: str) -> str | None:
        return super().parse(question, WEARER.sub("The wearer C", text))


def _answer(index: Any) -> str:
    if index not in range(len(OPTIONS)):
        raise ValueError(f"the answer {index!r} in subset_answers.json is no number from 0 to 4. Fetch it again.")
    return LETTERS[index]


def _question(row: dict[str, Any] | None, answer: str) -> QuestionRecord:
    if row is None:
        raise ValueError("subset_answers.json has an answer to it, and there is no such question. Fetch both again.")
    if "question" not in row:  # one published version of the file has options only
        raise ValueError("it has no question. Take questions.json from the newest version of the repository.")
    options = [row[name] for name in OPTIONS]
    return QuestionRecord(kind="egoschema", question=row["question"], answer=answer, options=options)
