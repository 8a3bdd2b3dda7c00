"""MVBench: 20 kinds of questions about short videos, clips of videos, and folders of frames."""

from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType

from langdc.config import check
from langdc.data.records import QuestionRecord, Record
from langdc.evaluate.tasks.base import MultipleChoice, Source, tasks
from langdc.registry import nearest
from langdc.video import probe

FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
"""Where the videos of each task are, under video/."""
CLIPS = ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")
"""Tasks whose rows say from when to when, in seconds."""
FRAMES_PER_SECOND = {"episodic_reasoning": 3.0}
"""Tasks whose videos are folders of frames."""


@tasks.register("mvbench")
class MVBench(MultipleChoice):
    """Results are by task; `kinds` asks only some of the 20. Questions about the same clip share a record."""

    source = Source(
        title="MVBench",
        page="https://huggingface.co/datasets/OpenGVLab/MVBench",
        licence="annotations MIT; videos under the terms of the data sets they come from",
        files=tuple(f"json/{kind}.json" for kind in FOLDERS),
        get=(
            "Fetch OpenGVLab/MVBench (branch main) from the Hugging Face Hub and unpack video/*.zip in its folder "
            "video/. The videos of fine_grained_pose come from the authors of NTU RGB+D; put them in video/nturgbd/."
        ),
        fields_as="video_chat2/mvbench.ipynb of OpenGVLab/Ask-Anything",
    )
    kind_weights = MappingProxyType(dict.fromkeys(FOLDERS, 1.0))
    listing = "({}) {}"
    instruction = "Only give the best option.\n"

    def __init__(self, root: str, kinds: list[str] | None = None) -> None:
        unknown = [kind for kind in kinds or () if kind not in FOLDERS]
        if unknown:
            raise ValueError(f"MVBench has no kind {unknown[0]!r}.{nearest(unknown[0], FOLDERS)}")
        self.kinds = [kind for kind in FOLDERS if kinds is None or kind in kinds]
        super().__init__(root)

    def load(self) -> Iterable[tuple[Record, QuestionRecord]]:
        for kind in self.kinds:
            bounds = ("start", "end") if kind in CLIPS else ()
            for where, row in self.rows(f"json/{kind}.json", ("video", "question", "candidates", "answer", *bounds)):
                clip = {name: row[name] for name in bounds}
                video = f"{FOLDERS[kind]}/{row['video']}"
                name = video + "".join(f" {seconds}" for seconds in clip.values())
                media = {"id": name, "video": f"video/{video}", "fps": FRAMES_PER_SECOND.get(kind), **clip}
                yield check(Record, media, where), self.from_candidates(where, kind, row)

    def path(self, record: Record) -> Path:
        """Where it was unpacked; some videos came later, in an archive of their own, data0613."""
        published = super().path(record)
        later = self.root / "video" / "data0613" / published.relative_to(self.root / "video")
        return later if later.exists() and not published.exists() else published

    def clip(self, record: Record) -> Record:
        """A few clips are said to end after their video does; the benchmark's code ends them with it."""
        if record.end is None or record.end <= probe(self.path(record), record.fps).seconds:
            return record
        return record.model_copy(update={"end": None})

    def prompt(self, question: QuestionRecord) -> str:
        return super().prompt(question.model_copy(update={"question": f"Question:{question.question}\nOption:"}))
