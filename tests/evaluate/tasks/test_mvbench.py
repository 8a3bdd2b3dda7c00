"""MVBench's 20 files become questions by task, about whole videos, clips of them, and folders of frames."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langdc.evaluate.tasks.mvbench import CLIPS, FOLDERS, MVBench
from tests.evaluate.tasks import asked


def _row(video: str, answer: str = "The cup.", **changes) -> dict:
    row = {
        "video": video,
        "question": "What was put down?",
        "candidates": ["The book.", "The cup.", "The bag."],
        "answer": answer,
    }
    return {**row, **changes}


def _rows(kind: str) -> list[dict]:
    if kind == "episodic_reasoning":
        return [_row("show_s01e01_clip_00", start=1, end=3.2, subtitle="unused")]
    if kind in CLIPS:
        return [_row(f"{FOLDERS[kind].split('/')[0]}.mp4", start=0.25, end=0.75, accurate_start=0.3)]
    return [_row(f"{FOLDERS[kind].split('/')[0]}.mp4")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A question per task, two of action_sequence; all videos but that of fine_grained_pose."""
    folder = tmp_path / "MVBench"
    for kind, place in FOLDERS.items():
        rows = _rows(kind)
        if kind == "action_sequence":
            rows += [_row("star.mp4", "The bag.", start=0.5, end=1)]
        asked.write_json(folder / "json" / f"{kind}.json", rows)
        if kind not in ("fine_grained_pose", "episodic_reasoning"):
            asked.write_videos(folder / "video" / place / rows[0]["video"])
    frames = folder / "video" / FOLDERS["episodic_reasoning"] / "show_s01e01_clip_00"
    frames.mkdir(parents=True)
    for number in range(1, 13):
        Image.fromarray(np.full((64, 64, 3), 10 * number, np.uint8)).save(frames / f"{number:05d}.jpg")
    return folder


def test_reads_twenty_tasks(root: Path):
    task = MVBench(str(root))
    assert len(FOLDERS) == 20
    assert set(task.target_kinds) == set(FOLDERS)
    assert sum(len(record.questions) for record in task.records) == 21
    records = {record.id: record for record in task.records}
    assert len(records) == len(task.records)
    whole = records["clevrer/video_validation/clevrer.mp4"]
    assert (whole.start, whole.end, whole.fps) == (None, None, None)
    assert [question.kind for question in whole.questions] == [
        "object_existence",
        "moving_direction",
        "moving_count",
        "moving_attribute",
        "counterfactual_inference",
    ]
    assert whole.questions[0].answer == "B"
    assert task.missing() == [root / "video" / "nturgbd" / "nturgbd.mp4"]


def test_clips_keep_their_bounds(root: Path):
    task = MVBench(str(root))
    clips = [record for record in task.records if record.video == "video/star/Charades_v1_480/star.mp4"]
    assert [(clip.start, clip.end) for clip in clips] == [(0.25, 0.75), (0.5, 1.0)]
    assert [question.kind for question in clips[0].questions] == [
        "action_sequence",
        "action_prediction",
        "object_interaction",
    ]
    frames = next(record for record in task.records if record.fps is not None)
    assert (frames.video, frames.start, frames.end, frames.fps) == (
        "video/tvqa/frames_fps3_hq/show_s01e01_clip_00",
        1.0,
        3.2,
        3.0,
    )


def test_kinds_can_be_chosen(root: Path):
    task = MVBench(str(root), kinds=["action_count", "state_change"])
    assert set(task.target_kinds) == {"action_count", "state_change"}
    assert len(task.records) == 1
    with pytest.raises(ValueError, match=r"MVBench has no kind 'action_cuont'.*Did you mean 'action_count'"):
        MVBench(str(root), kinds=["action_cuont"])


def test_videos_that_came_later_are_found(root: Path):
    old = root / "video" / "star" / "Charades_v1_480" / "star.mp4"
    new = root / "video" / "data0613" / "star" / "Charades_v1_480" / "star.mp4"
    task = MVBench(str(root), kinds=["action_sequence"])
    hashed = task.data_hash()
    assert task.path(task.records[0]) == old
    new.parent.mkdir(parents=True)
    old.rename(new)
    assert task.path(task.records[0]) == new
    assert task.missing() == []
    assert MVBench(str(root), kinds=["action_sequence"]).data_hash() == hashed


def test_the_prompt_is_that_of_lmms_eval(root: Path):
    task = MVBench(str(root))
    assert task.prompt(task.records[0].questions[0]) == (
        "Question:What was put down?\nOption:\n(A) The book.\n(B) The cup.\n(C) The bag.\nOnly give the best option.\n"
    )


def test_replies_are_read_and_scored(root: Path):
    task = MVBench(str(root))
    question = task.records[0].questions[0]
    read = {text: task.parse(question, text) for text in ("(B) The cup.", "Best option: (C)", "the bag", "(D)", "")}
    assert read == {"(B) The cup.": "B", "Best option: (C)": "C", "the bag": "C", "(D)": None, "": None}
    assert [task.score(question, letter) for letter in "BC"] == [1.0, 0.0]


def test_missing_files_are_named(root: Path):
    (root / "json" / "moving_count.json").unlink()
    with pytest.raises(ValueError, match=r"MVBench: .* lacks json/moving_count\.json\. Fetch OpenGVLab/MVBench"):
        MVBench(str(root))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (_row("a.mp4", "The hat.", start=0, end=1), r"row 2: the answer 'The hat\.' is none of the candidates"),
        (_row("a.mp4"), r"row 2: there is no start, end"),
        (_row("a.mp4", start=3, end=2), r"row 2 .*start 3\.0 must come before end 2\.0"),
        (_row("a.mp4", start="soon", end=2), r"row 2 .*start"),
        (_row("a.mp4", start=0, end=2, question=""), r"row 2 .*question"),
    ],
)
def test_malformed_rows_are_named(root: Path, row: dict, reason: str):
    asked.write_json(root / "json" / "action_localization.json", [*_rows("action_localization"), row])
    with pytest.raises(ValueError, match=rf"(?s)action_localization\.json, {reason}"):
        MVBench(str(root))


@pytest.mark.parametrize(("end", "used"), [(0.75, 0.75), (7.0, None)])
def test_a_clip_ends_with_its_video(root: Path, end: float, used: float | None):
    task = MVBench(str(root), ["action_localization"])
    record = task.records[0].model_copy(update={"start": 0.25, "end": end})
    clip = task.clip(record)
    assert (clip.start, clip.end) == (0.25, used)
    assert task.clip(record.model_copy(update={"start": None, "end": None})).end is None


def test_end_to_end(prepared: Path, root: Path, tmp_path: Path):
    kinds = ["action_sequence", "fine_grained_pose", "episodic_reasoning"]
    task = {"name": "mvbench", "root": str(root), "kinds": kinds}
    lines, prompts = asked.ask(prepared, tmp_path / "eval", task, ["(B) The cup.", "A", "I see a cup"])
    found = {line["key"]: (line["kind"], line["parsed"], line["score"], line["failed"]) for line in lines}
    assert found == {
        "star/Charades_v1_480/star.mp4 0.25 0.75/0": ("action_sequence", "B", 1.0, False),
        "star/Charades_v1_480/star.mp4 0.5 1/0": ("action_sequence", "A", 0.0, False),
        "nturgbd/nturgbd.mp4/0": ("fine_grained_pose", None, 0.0, True),
        "tvqa/frames_fps3_hq/show_s01e01_clip_00 1 3.2/0": ("episodic_reasoning", None, 0.0, False),
    }
    assert len(prompts) == 3
