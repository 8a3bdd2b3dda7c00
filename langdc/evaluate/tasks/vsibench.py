"""VSI-Bench: how well a model measures, counts and finds its way in rooms that a camera walked through."""

import re
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import numpy as np

from langdc.data.records import QuestionRecord, Record
from langdc.evaluate import answers
from langdc.evaluate.tasks.base import MultipleChoice, Source, tasks

DIRECTIONS = tuple(f"object_rel_direction_{difficulty}" for difficulty in ("easy", "medium", "hard"))
CHOSEN = (*DIRECTIONS, "object_rel_distance", "route_planning", "obj_appearance_order")
"""Question types with options."""
MEASURED = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")
"""Question types that ask for a number."""
COLUMNS = ("dataset", "scene_name", "question_type", "question", "ground_truth", "options")
FIRST = "These are frames of a video."
AS_NUMBER = "Please answer the question using a single word or phrase."
THRESHOLDS = np.linspace(0.5, 0.95, 10)


@tasks.register("vsibench")
class VsiBench(MultipleChoice):
    """All ten question types; the label `debiased` tells which questions are in VSI-Bench-Debiased, too."""

    source = Source(
        title="VSI-Bench",
        page="https://huggingface.co/datasets/nyu-visionx/VSI-Bench",
        licence="Apache-2.0; the videos were made from ScanNet, ScanNet++ and ARKitScenes, under their own terms",
        files=("test_debiased.parquet", "test_pruned.parquet"),
        get="Fetch nyu-visionx/VSI-Bench from the Hugging Face Hub and unpack arkitscenes.zip, scannet.zip and "
        "scannetpp.zip there; videos are then <dataset>/<scene_name>.mp4.",
        fields_as="lmms-eval 0.7.3, lmms_eval/tasks/vsibench/utils.py and _default_template_yaml",
    )

    kind_weights = MappingProxyType(dict.fromkeys(CHOSEN + MEASURED, 1.0) | dict.fromkeys(DIRECTIONS, 1 / 3))

    def load(self) -> Iterable[tuple[Record, QuestionRecord]]:
        found = []
        for name in self.source.files:
            labels = {"debiased": "yes" if name == "test_debiased.parquet" else "no"}
            for where, row in self.rows(name, COLUMNS):
                scene = f"{row['dataset']}/{row['scene_name']}"
                found.append((Record(id=scene, video=f"{scene}.mp4"), _question(row, where, labels)))
        return sorted(found, key=lambda pair: pair[0].id)  # stable, so that questions keep their order

    def prompt(self, question: QuestionRecord) -> str:
        if not question.options:
            return f"{FIRST}\n{question.question}\n{AS_NUMBER}"
        return f"{FIRST}\n" + super().prompt(question.model_copy(update={"question": f"{question.question}\nOptions:"}))

    def parse(self, question: QuestionRecord, text: str) -> str | None:
        if question.options:
            return super().parse(question, text)
        found = answers.number(text)
        return None if found is None else repr(found)

    def score(self, question: QuestionRecord, found: str) -> float:
        if question.options:
            return super().score(question, found)
        return self.relative_accuracy(float(found), float(question.answer))

    @staticmethod
    def relative_accuracy(said: float, true: float) -> float:
        """The share of the thresholds that a number meets: its relative error is at most 1 - threshold."""
        return float((abs(said - true) / true <= 1 - THRESHOLDS).mean())


def _question(row: dict[str, Any], where: str, labels: dict[str, str]) -> QuestionRecord:
    kind, truth = row["question_type"], str(row["ground_truth"])
    if kind not in CHOSEN + MEASURED:
        raise ValueError(f"{where}: unknown question_type {kind!r}. There is: {', '.join(CHOSEN + MEASURED)}.")
    options = [re.sub(r"^[A-Z]\.\s*", "", option) for option in row["options"] or []]
    if bool(options) != (kind in CHOSEN):
        raise ValueError(f"{where}: a question of type {kind} has {len(options)} options. Fetch the file again.")
    if kind in MEASURED and not re.fullmatch(r"\d*[1-9]\d*(\.\d+)?|\d*\.\d*[1-9]\d*", truth):
        raise ValueError(f"{where}: {kind} asks for a number above 0 and ground_truth is {truth!r}. Fetch it again.")
    found = {"kind": kind, "question": row["question"], "answer": truth, "options": options}
    return MultipleChoice.question(where, **found, labels={**labels, "dataset": row["dataset"]})
