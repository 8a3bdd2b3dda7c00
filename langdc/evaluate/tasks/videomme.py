"""Video-MME: 900 videos of seconds to an hour, three questions each, with or without what is said in them."""

import re
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from langdc.data.records import LETTERS, QuestionRecord, Record
from langdc.evaluate.tasks.base import MultipleChoice, Source, clock_seconds, tasks

ROWS = "videomme/test-00000-of-00001.parquet"
COLUMNS = ("videoID", "duration", "domain", "sub_category", "task_type", "question", "options", "answer")
SELECT = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
LISTED = "This video's subtitles are listed below: "
NO_SUBTITLES = "No subtitles available"
TIMES = re.compile(r"(\d+:\d+:\d+[,.]\d+)\s*-->\s*(\d+:\d+:\d+[,.]\d+)")


@tasks.register("videomme")
class VideoMME(MultipleChoice):
    """The questions by duration; with `subtitles`, what is said at `subtitle_moments` moments stands before them."""

    source = Source(
        title="Video-MME",
        page="https://github.com/MME-Benchmarks/Video-MME",
        licence="academic research only, no commercial use, no redistribution; videos belong to their owners",
        files=(ROWS,),
        get=(
            "Fetch lmms-lab/Video-MME from the Hugging Face Hub, and unpack videos_chunked_*.zip (to data/) and "
            "subtitle.zip (to subtitle/) in its folder."
        ),
        fields_as="lmms-eval 0.7.3, lmms_eval/tasks/videomme/utils.py",
    )

    def __init__(self, root: str, subtitles: bool = False, subtitle_moments: int = 32) -> None:
        if subtitle_moments < 1:
            raise ValueError(f"subtitle_moments is {subtitle_moments}; give 1 or more, or subtitles: false.")
        self.moments = subtitle_moments if subtitles else 0
        super().__init__(root)

    def load(self) -> Iterable[tuple[Record, QuestionRecord]]:
        if self.moments and not (self.root / "subtitle").is_dir():
            raise ValueError(f"Video-MME: {self.root} lacks subtitle. {self.source.get} Or ask with subtitles: false.")
        said: dict[str, str] = {}
        for where, row in self.rows(ROWS, COLUMNS):
            name = row["videoID"]
            if name not in said:
                said[name] = self._said(name)
            labels = {label: row[label] for label in ("domain", "sub_category", "task_type")}
            pairs = zip(LETTERS, row["options"], strict=False)
            options = [option.removeprefix(f"{letter}.").strip() for letter, option in pairs]
            tree = {"kind": row["duration"], "question": row["question"], "answer": row["answer"], "options": options}
            question = self.question(where, **tree, labels=labels, context=said[name])
            yield Record(id=name, video=f"data/{name}.mp4"), question

    def path(self, record: Record) -> Path:
        published = super().path(record)
        found = (published.with_suffix(suffix) for suffix in (".mp4", ".MP4", ".mkv"))
        return next((path for path in found if path.exists()), published)

    def prompt(self, question: QuestionRecord) -> str:
        context = f"{LISTED}\n{question.context}" if question.context else ""
        asked = question.model_copy(update={"question": f"{SELECT}\n{question.question}", "context": context})
        return asked.prompt("The best answer is:" if context else f"\n{self.instruction}", self.listing)

    def _said(self, name: str) -> str:
        path = self.root / "subtitle" / f"{name}.srt"
        if not self.moments:
            return ""
        return ("\n".join(self.spoken(path, self.moments)) if path.exists() else "") or NO_SUBTITLES

    @staticmethod
    def spoken(path: Path, moments: int) -> list[str]:
        """The subtitles on display in the middle of `moments` equal parts, each once.
        ValueError if the file has text but no subtitle.
        """
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        starts = [(number, found) for number, line in enumerate(lines) if (found := TIMES.search(line))]
        if not starts and any(line.strip() for line in lines):
            raise ValueError(f"{path} is no .srt file: no line is like 00:00:01,240 --> 00:00:06,879. Fetch it again.")
        cues = []
        for number, found in starts:
            text = " ".join(takewhile(str.strip, lines[number + 1 :]))
            shown = " ".join(re.sub(r"<[^>]*>", "", text).split())
            cues.append((*map(clock_seconds, found.groups()), shown))
        last = max((end for _, end, _ in cues), default=0.0)
        times = [(number + 0.5) * last / moments for number in range(moments)]
        return [text for start, end, text in cues if text and any(start <= time < end for time in times)]
