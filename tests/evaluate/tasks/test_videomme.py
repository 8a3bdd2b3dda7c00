"""Video-MME's table and subtitle files become questions by duration, put as lmms-eval puts them."""

from pathlib import Path

import pytest
from datasets import Dataset

from langdc.evaluate.tasks.videomme import ROWS, VideoMME
from tests.evaluate.tasks import asked

SUBTITLES = """1
00:00:00,500 --> 00:00:03,000
<font color="white" size=".72c">the box is</font>

2
00:00:02,000 --> 00:00:05,000
<font color="white" size=".72c">opened
slowly</font>

3
00:00:05,100 --> 00:00:05,200
<font color="white" size=".72c">a cough</font>

4
00:00:06,000 --> 00:00:08,000
Thank you
"""
SELECT = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option."
)
QUESTION = "What is in the box?\nA. A ring.\nB. A key.\nC. Nothing.\nD. A box."


def _row(video: str, number: int = 1, duration: str = "short", **changes) -> dict:
    row = {
        "video_id": "001",
        "duration": duration,
        "domain": "Knowledge",
        "sub_category": "Technology",
        "url": f"https://www.youtube.com/watch?v={video}",
        "videoID": video,
        "question_id": f"001-{number}",
        "task_type": "Object Recognition",
        "question": "What is in the box?",
        "options": ["A. A ring.", "B. A key.", "C. Nothing.", "D. A box."],
        "answer": "B",
    }
    return {**row, **changes}


def _write(root: Path, *rows: dict) -> None:
    (root / ROWS).parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(list(rows)).to_parquet(str(root / ROWS))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three videos, one with subtitles, one with another suffix; that of "gone" is missing."""
    folder = tmp_path / "Video-MME"
    _write(
        folder,
        _row("aB-1_x"),
        _row("gone", duration="long"),
        _row("aB-1_x", 2, answer="D", task_type="OCR Problems"),
        _row("mkv", duration="medium"),
    )
    asked.write_videos(folder / "data" / "aB-1_x.mp4", folder / "data" / "mkv.mp4")
    (folder / "data" / "mkv.mp4").rename(folder / "data" / "mkv.mkv")
    (folder / "subtitle").mkdir()
    (folder / "subtitle" / "aB-1_x.srt").write_text(SUBTITLES)
    return folder


def test_reads_rows_by_video(root: Path):
    task = VideoMME(str(root))
    assert [(record.id, len(record.questions)) for record in task.records] == [("aB-1_x", 2), ("gone", 1), ("mkv", 1)]
    assert task.target_kinds == ("short", "long", "medium")
    first, second = task.records[0].questions
    assert (first.kind, first.answer, first.options) == ("short", "B", ["A ring.", "A key.", "Nothing.", "A box."])
    assert second.labels == {"domain": "Knowledge", "sub_category": "Technology", "task_type": "OCR Problems"}
    data = root / "data"
    assert [task.path(r) for r in task.records] == [data / "aB-1_x.mp4", data / "gone.mp4", data / "mkv.mkv"]
    assert task.missing() == [data / "gone.mp4"]


def test_the_prompt_is_that_of_lmms_eval(root: Path):
    task = VideoMME(str(root))
    assert task.prompt(task.records[0].questions[0]) == (
        f"{SELECT}\n{QUESTION}\n\nAnswer with the option's letter from the given choices directly."
    )


def test_the_prompt_with_subtitles_is_that_of_lmms_eval(root: Path):
    task = VideoMME(str(root), subtitles=True)
    for number, said in ((0, "the box is\nopened slowly\na cough\nThank you"), (1, "No subtitles available")):
        assert task.prompt(task.records[number].questions[0]) == (
            f"This video's subtitles are listed below: \n{said}\n{SELECT}\n{QUESTION}\nThe best answer is:"
        )
    assert task.data_hash() != VideoMME(str(root)).data_hash()


def test_subtitles_are_those_on_display_at_some_moments(root: Path, tmp_path: Path):
    path = root / "subtitle" / "aB-1_x.srt"  # lasts 8 seconds
    assert VideoMME.spoken(path, 4) == ["the box is", "opened slowly", "Thank you"]  # at 1, 3, 5 and 7
    assert VideoMME.spoken(path, 2) == ["the box is", "opened slowly", "Thank you"]  # at 2 and 6
    assert VideoMME.spoken(path, 1) == ["opened slowly"]  # at 4
    assert VideoMME.spoken(path, 100) == ["the box is", "opened slowly", "a cough", "Thank you"]
    (tmp_path / "dos.srt").write_bytes(b"\xef\xbb\xbf" + SUBTITLES.replace("\n", "\r\n").encode())
    assert VideoMME.spoken(tmp_path / "dos.srt", 4) == VideoMME.spoken(path, 4)
    (tmp_path / "hour.srt").write_text(
        "1\n00:15:00,000 --> 00:16:00,250\na quarter\n\n2\n01:00:00,000 --> 01:00:10,000\n"
    )
    assert VideoMME.spoken(tmp_path / "hour.srt", 2) == ["a quarter"]  # at 902.5 and 2707.5
    assert VideoMME.spoken(tmp_path / "hour.srt", 3) == []
    (tmp_path / "empty.srt").write_text("")
    assert VideoMME.spoken(tmp_path / "empty.srt", 3) == []


def test_broken_and_missing_subtitles_are_named(root: Path):
    with pytest.raises(ValueError, match="subtitle_moments is 0; give 1 or more"):
        VideoMME(str(root), subtitles=True, subtitle_moments=0)
    (root / "subtitle" / "gone.srt").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"gone\.srt is no \.srt file.*Fetch it again"):
        VideoMME(str(root), subtitles=True)
    for path in (root / "subtitle").iterdir():
        path.unlink()
    (root / "subtitle").rmdir()
    with pytest.raises(ValueError, match=r"lacks subtitle\. Fetch lmms-lab/Video-MME.*subtitles: false"):
        VideoMME(str(root), subtitles=True)
    VideoMME(str(root))


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"Video-MME: .* lacks videomme/test-00000-of-00001\.parquet\. Fetch"):
        VideoMME(str(tmp_path))


def test_malformed_rows_are_named(root: Path):
    _write(root, _row("a"), _row("b", answer="E"))
    with pytest.raises(ValueError, match=r"(?s)test-00000-of-00001\.parquet, row 2 .*'E' is none of the 4 options"):
        VideoMME(str(root))
    _write(root, {name: value for name, value in _row("a").items() if name != "duration"})
    with pytest.raises(ValueError, match=r"row 1: there is no duration\. It has: video_id"):
        VideoMME(str(root))


@pytest.mark.parametrize("subtitles", [False, True])
def test_end_to_end(prepared: Path, root: Path, tmp_path: Path, subtitles: bool):
    task = {"name": "videomme", "root": str(root), "subtitles": subtitles}
    lines, prompts = asked.ask(prepared, tmp_path / "eval", task, ["(B)", "A key.", "I cannot tell"])
    found = {line["key"]: (line["kind"], line["parsed"], line["score"], line["failed"]) for line in lines}
    assert found["aB-1_x/0"] == ("short", "B", 1.0, False)
    assert found["aB-1_x/1"] == ("short", "B", 0.0, False)
    assert found["mkv/0"] == ("medium", None, 0.0, False)
    assert found["gone/0"][2:] == (0.0, True)
    assert len(prompts) == 3
    assert all(prompt.startswith("This video's subtitles") == subtitles for prompt in prompts)
