"""The built-in task: questions with one-word answers about the sample videos."""

from langdc.evaluate.tasks.base import tasks
from langdc.evaluate.tasks.records import MALFORMED, RecordsTask
from langdc.sample.questions import TARGET_KINDS


@tasks.register("sample")
class SampleTask(RecordsTask):
    """The held-out sample records, or others, as `records` asks them; accuracy is over the sample's target kinds.

    Over all kinds that are asked where the file has none of those.
    """

    needs_answers = True

    def __init__(self, data: str = "data/sample/test.jsonl", kinds: list[str] | None = None) -> None:
        super().__init__(data, kinds)
        targets = tuple(kind for kind in TARGET_KINDS if kinds is None or kind in kinds)
        if set(targets) & set(self.target_kinds):
            self.target_kinds = (*targets, *[MALFORMED] * bool(self.broken))
