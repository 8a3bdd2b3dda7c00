"""MLVU dev: multiple-choice questions in seven categories about videos of 3 minutes to 2 hours."""

from collections.abc import Iterable
from types import MappingProxyType

from langdc.data.records import QuestionRecord, Record
from langdc.evaluate.tasks.base import MultipleChoice, Source, tasks

_NAMES = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
CATEGORIES = {name: f"{number}_{name}" for number, name in enumerate(_NAMES, 1)}
"""Each category, as lmms-eval calls it, and its annotation file and video folder."""


@tasks.register("mlvu")
class Mlvu(MultipleChoice):
    """The dev questions in `root`, all categories or those in `categories`; the headline is the benchmark's M-Avg."""

    source = Source(
        title="MLVU (dev)",
        page="https://huggingface.co/datasets/MLVU/MVLU",
        licence="CC-BY-NC-SA-4.0; for research only",
        files=tuple(f"json/{name}.json" for name in CATEGORIES.values()),
        get="Accept the terms on the page, download it, and give its folder MLVU, which holds json/ and video/.",
        fields_as="github.com/JUNJIE99/MLVU, video_chat/choice_bench.py; prompt: lmms-eval 0.7.3, tasks/mlvu",
    )
    kind_weights = MappingProxyType(dict.fromkeys(CATEGORIES, 1.0))
    listing = "({}) {}"
    instruction = "Only give the best option.\nBest option: ("

    def __init__(self, root: str, categories: list[str] | None = None) -> None:
        unknown = [name for name in categories or [] if name not in CATEGORIES]
        if unknown:
            raise ValueError(f"MLVU has no category {', '.join(unknown)}; give some of {', '.join(CATEGORIES)}.")
        self.categories = list(CATEGORIES) if categories is None else categories
        super().__init__(root)

    def load(self) -> Iterable[tuple[Record, QuestionRecord]]:
        for kind in self.categories:
            folder = CATEGORIES[kind]
            for where, row in self.rows(f"json/{folder}.json", ("video", "question", "candidates", "answer")):
                record = Record(id=f"{folder}/{row['video']}", video=f"video/{folder}/{row['video']}")
                yield record, self.from_candidates(where, kind, row)
