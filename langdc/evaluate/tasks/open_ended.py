"""MSVD-QA, MSRVTT-QA, TGIF-QA and ActivityNet-QA: open questions; a reply is right when it says the answer's words."""

from collections.abc import Iterator
from typing import Any, ClassVar

from langdc.data.records import QuestionRecord, Record
from langdc.evaluate.metrics import Contains
from langdc.evaluate.tasks.base import Benchmark, Source, tasks

BRIEFLY = " Answer the question using a single word or phrase."
SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
ASKING = ("what", "who", "how", "when", "where")
FIELDS_AS = "PKU-YuanGroup/Video-LLaVA, videollava/eval/video/run_inference_video_qa.py and scripts/v1_5/eval/"


class OpenEnded(Benchmark):
    """Questions in `test_q.json`, answers in the same order in `test_a.json`, videos in `folder`.

    `brief` asks for a word or phrase, as lmms-eval does; without it the question is put as it stands, as the papers
    with judged figures did.
    """

    metric: ClassVar = Contains()
    folder: ClassVar[str]
    prefix: ClassVar[str] = ""
    """What video files begin with, before their name."""
    types: ClassVar[tuple[str, ...]] = ()
    """The types of questions or answers, in the order of their numbers."""

    def __init__(self, root: str, brief: bool = True) -> None:
        self.brief = brief
        super().__init__(root)

    def load(self) -> Iterator[tuple[Record, QuestionRecord]]:
        asked = self.rows("test_q.json", ("video_name", "question", "question_id"))
        answered = self.rows("test_a.json", ("answer",))
        if len(asked) != len(answered):
            files = [self.root / name for name in self.source.files]
            raise ValueError(f"{files[0]} has {len(asked)} rows, {files[1]} {len(answered)}. Fetch both again.")
        for (_, question), (where, answer) in zip(asked, answered, strict=True):
            name, known = question["video_name"], question["question_id"]
            if answer.get("question_id", known) != known:
                raise ValueError(f"{where}: answers {answer['question_id']!r}, asked was {known!r}. Fetch both again.")
            with self.located(where):
                kind = self.kind(question["question"], answer)
            said = {"question": question["question"], "answer": str(answer["answer"]).strip()}
            yield Record(id=name, video=self._video(name)), self.question(where, kind=kind, **said)

    def _video(self, name: str) -> str:
        files = [f"{self.folder}/{self.prefix}{name}{suffix}" for suffix in SUFFIXES]
        return next((file for file in files if (self.root / file).is_file()), files[0])

    def kind(self, question: str, answer: dict[str, Any]) -> str:
        """What a question is counted under: its type where the annotations have `types`, else its first word."""
        if not self.types:
            return next((word for word in self.metric.words(question)[:1] if word in ASKING), "other")
        number = answer.get("type")
        if not isinstance(number, int) or not 0 <= number < len(self.types):
            raise ValueError(f"type is {number!r}; it must be 0 to {len(self.types) - 1}. Fetch the file again.")
        return self.types[number]

    def prompt(self, question: QuestionRecord) -> str:
        if not self.brief:
            return super().prompt(question)
        return question.question.strip().rstrip("?").rstrip().capitalize() + "?" + BRIEFLY

    def parse(self, question: QuestionRecord, text: str) -> str | None:
        return self.metric.parse(question.answer, text)

    def score(self, question: QuestionRecord, found: str) -> float:
        return self.metric.score(question.answer, found)


XU = "https://github.com/xudejing/video-question-answering"
GIFS = "https://github.com/YunseokJANG/tgif-qa"
NOT_STATED = "not stated by the annotations' authors; the videos belong to those who made them"
DATASETS = {
    "msvd_qa": ("MSVD-QA", XU, "MSVD_Zero_Shot_QA", "videos", NOT_STATED),
    "msrvtt_qa": ("MSRVTT-QA", XU, "MSRVTT_Zero_Shot_QA", "videos/all", NOT_STATED),
    "tgif_qa": ("TGIF-QA", GIFS, "TGIF_Zero_Shot_QA", "mp4", "for academic purposes only"),
    "activitynet_qa": (
        *("ActivityNet-QA", "https://github.com/MILVLG/activitynet-qa", "Activitynet_Zero_Shot_QA", "all_test"),
        "MIT (annotations); the videos belong to those who made them",
    ),
}
"""By name: title, page, archive, video folder and licence."""
ACTIVITYNET: dict[str, Any] = {
    "prefix": "v_",
    # by number, as in dataset/README.md of MILVLG/activitynet-qa
    "types": ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other"),
}

for _name, (_title, _page, _archive, _folder, _licence) in DATASETS.items():
    _get = (
        f"Fetch {_archive} as TRAIN_AND_VALIDATE.md of github.com/PKU-YuanGroup/Video-LLaVA says and unpack it: "
        f"test_q.json, test_a.json, and the videos in {_folder}/."
    )
    _source = Source(_title, _page, _licence, ("test_q.json", "test_a.json"), _get, FIELDS_AS)
    _about = {"folder": _folder, "source": _source, **(ACTIVITYNET if _name == "activitynet_qa" else {})}
    tasks.register(_name)(type(_title, (OpenEnded,), _about))
