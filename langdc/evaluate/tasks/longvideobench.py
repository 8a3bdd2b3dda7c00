"""LongVideoBench, validation or test split: questions that refer to a moment of a video of 8 seconds to an hour."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from langdc.data.records import LETTERS, QuestionRecord, Record
from langdc.evaluate.tasks.base import MultipleChoice, Source, clock_seconds, tasks
from langdc.jsonl import read_json
from langdc.registry import check_choice

Split = Literal["validation", "test"]
FILE = "validation-00000-of-00001.parquet"
OPTIONS = tuple(f"option{number}" for number in range(5))
COLUMNS = ("id", "video_path", "question", *OPTIONS, "duration_group", "question_category")
TIMED = ("subtitle_path", "duration", "starting_timestamp_for_subtitles")


@tasks.register("longvideobench")
class LongVideoBench(MultipleChoice):
    """The questions of a `split`; the answers of "test" are not published, so its replies are written to be handed in.

    With `subtitles`, what is said at `subtitle_moments` equally spaced moments stands before each.
    """

    source = Source(
        title="LongVideoBench (val)",
        page="https://huggingface.co/datasets/longvideobench/LongVideoBench",
        licence="CC-BY-NC-SA-4.0; not for commercial use",
        files=(FILE,),
        get="Accept the terms on the page and download it; then cat videos.tar.part.* > videos.tar, and unpack "
        "videos.tar and subtitles.tar.",
        fields_as="lmms-eval 0.7.3, tasks/longvideobench (longvideobench_val_v; with subtitles: longvideobench_val_i)",
    )
    instruction = MultipleChoice.instruction + "\n"

    def __init__(
        self, root: str, subtitles: bool = False, subtitle_moments: int = 16, split: Split = "validation"
    ) -> None:
        check_choice("split", split, Split)
        self.split = split
        if subtitle_moments < 1:
            raise ValueError(f"subtitle_moments is {subtitle_moments}; give 1 or more, or subtitles: false.")
        self.moments = subtitle_moments if subtitles else 0
        super().__init__(root)

    @property
    def files(self) -> tuple[str, ...]:
        return (FILE.replace("validation", self.split),)

    def load(self) -> Iterable[tuple[Record, QuestionRecord]]:
        scored = ("correct_choice",) if self.split == "validation" else ()
        for where, row in self.rows(self.files[0], (*COLUMNS, *scored, *TIMED)):
            with self.located(f"{where} (id {row['id']})"):
                video = row["video_path"]
                yield Record(id=Path(video).stem, video=f"videos/{video}"), self._question(row)

    def submission(self, rows: list[dict[str, Any]]) -> Any:
        return {row["id"]: row["answer"] or "" for row in rows}

    def _question(self, row: dict[str, Any]) -> QuestionRecord:
        options = [row[name] for name in OPTIONS if row[name] not in (None, "N/A")]
        hidden = self.split == "test"
        if not hidden and row["correct_choice"] not in range(len(options)):
            raise ValueError(f"correct_choice is {row['correct_choice']!r}, and there are {len(options)} options.")
        return QuestionRecord(
            kind=row["question_category"],
            question=row["question"],
            answer="" if hidden else LETTERS[row["correct_choice"]],
            options=options,
            context="\n".join(self._said(row)) if self.moments else "",
            labels={"duration": f"up to {row['duration_group']} s"} | ({"id": row["id"]} if hidden else {}),
        )

    def _said(self, row: dict[str, Any]) -> Iterator[str]:
        path = self.root / "subtitles" / row["subtitle_path"]
        if not path.is_file():
            raise ValueError(f"there is no file {path}. Unpack subtitles.tar, or set subtitles: false.")
        duration = row["duration"]
        step = max(1, duration / self.moments)  # a short video has fewer moments, one per second
        moments = [step * i for i in range(min(self.moments, int(duration)))]
        for line in read_json(path):
            try:  # either of the two published forms: seconds from and to, or clock times
                if "timestamp" in line:
                    (start, end), text = line["timestamp"], line["text"]
                    end = end if isinstance(end, float) else duration
                else:
                    start, end, text = clock_seconds(line["start"]), clock_seconds(line["end"]), line["line"]
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path}: {line} lacks timestamp and text, or start, end and line.") from None
            middle, half = (start + end) / 2 - row["starting_timestamp_for_subtitles"], max(end - start, 1) / 2
            if any(middle - half < moment < middle + half for moment in moments):
                yield text
