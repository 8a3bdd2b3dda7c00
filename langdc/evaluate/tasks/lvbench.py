"""LVBench: four-way questions about 103 videos of half an hour to two hours."""

import re
from collections.abc import Iterable
from typing import Any

from langdc.data.records import LETTERS, QuestionRecord, Record
from langdc.evaluate.tasks.base import MultipleChoice, Source, tasks

OPTION = re.compile(r"\n\s*\(([A-Z])\)\s*")
"""Where an option begins in the text of a question."""


@tasks.register("lvbench")
class LVBench(MultipleChoice):
    """All questions in `root`.

    A question may ask for several of the benchmark's six abilities. Its kind names them all, so that each question
    counts once; each ability is a label besides, and its accuracy is the one that the benchmark reports.
    """

    source = Source(
        title="LVBench",
        page="https://huggingface.co/datasets/zai-org/LVBench",
        licence="CC-BY-NC-SA-4.0; for academic research only",
        files=("video_info.meta.jsonl",),
        get="Download video_info.meta.jsonl from the page, and the YouTube video of every key in it as "
        "all_videos/KEY.mp4 (the lmms-lab/LVBench copy on the Hub has them in video_chunks/).",
        fields_as="github.com/THUDM/LVBench, lvbench/metrics/compute_accuracy.py; prompt: lmms-eval 0.7.3, "
        "tasks/lvbench",
    )
    listing = "({}) {}"
    instruction = "Answer the question with the option letter"

    def load(self) -> Iterable[tuple[Record, QuestionRecord]]:
        for _, row in self.rows("video_info.meta.jsonl", ("key", "qa")):
            record = Record(id=row["key"], video=f"all_videos/{row['key']}.mp4")
            for asked in row["qa"]:
                with self.located(f"{self.root / 'video_info.meta.jsonl'}, key {row['key']}, uid {asked.get('uid')}"):
                    yield record, _question(asked, row.get("type"))


def _question(row: dict[str, Any], topic: str | None) -> QuestionRecord:
    lacking = [name for name in ("question", "answer", "question_type") if not row.get(name)]
    if lacking:
        raise ValueError(f"there is no {', '.join(lacking)}. Fetch the file again.")
    text, *parts = OPTION.split(row["question"])
    letters, options = parts[::2], [option.strip() for option in parts[1::2]]
    if not letters or letters != list(LETTERS[: len(letters)]):
        raise ValueError(f"its options must be lines that begin with (A), (B) and so on; found: {letters}.")
    types = row["question_type"]
    labels = dict.fromkeys(types, "asked for") | ({"video": topic} if topic else {})
    kind = " + ".join(sorted(types))
    return QuestionRecord(kind=kind, question=text.strip(), answer=row["answer"], options=options, labels=labels)
