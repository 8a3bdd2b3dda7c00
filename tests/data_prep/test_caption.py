"""The command that writes captions of segments: by checkpoints, and by models behind a local server that misbehaves."""

import base64
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from langdc import jsonl
from langdc.cli import door
from langdc.config import RunConfig, load
from langdc.data.records import QuestionRecord, Record, read_records, write_records
from langdc.pipeline import VideoLM
from langdc.prepare.teachers import REWRITE
from langdc.train.objectives import objectives
from langdc.train.samples import read_samples
from langdc.video import write_video
from tests.evaluate import runs

main = door("data caption")
ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230), "white": (235, 235, 235)}
FAST = '"timeout": 5, "pause": 0.01, "retries": 2'


def coloured(path: Path, names: list[str]) -> Path:
    """A video whose segments of 4 frames have one colour each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [np.full((32, 48, 3), COLOURS[name], np.uint8) for name in names for _ in range(4)]
    write_video(path, np.stack(frames), 8)
    return path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Five videos of two segments in a folder with others."""
    pairs = [["red", "green"], ["blue", "red"], ["white", "white"], ["green", "blue"], ["blue", "white"]]
    for number, names in enumerate(pairs):
        coloured(tmp_path / "videos" / ("deep/" * (number % 2)) / f"v{number}.mp4", names)
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    coloured(tmp_path / "videos" / ".hidden.mp4", ["red"])
    return tmp_path / "videos"


def pictures(body: dict) -> list[str]:
    """The colours of the pictures of a request."""
    found = []
    for part in body["messages"][0]["content"]:
        if part["type"] == "image_url":
            head, _, data = part["image_url"]["url"].partition(",")
            assert head == "data:image/jpeg;base64"
            mean = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean((0, 1))
            found.append(min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum()))
    return found


def dense(text: str, cues: list[str]) -> str:
    """A text model's reply."""
    return json.dumps({"caption": text, "subjects": cues, "attributes": [], "actions": [], "background": []})


def model(number: int, body: dict) -> str:
    """A teacher that names the colour it sees, and a text model that leaves out what is around it."""
    if isinstance(text := body["messages"][0]["content"], str):
        colour = re.findall("a (.*) wall", text)[0]
        return f"Sure!\n```json\n{dense(f'{colour}  wall', [colour, ' wall', ''])}\n```"
    (colour,) = set(pictures(body))
    return f"There seems to be a {colour} wall, perhaps."


def captions(path: Path) -> dict[str, list[str]]:
    return {record.id: [segment.caption for segment in record.segments] for record in read_records(path)}


def ask(videos: Path, out: Path, url: str, *more: str, settings: str = FAST) -> int:
    given = ["--endpoint", url, "--model", "eye", "--segments", "2", "--endpoint-settings", f"{{{settings}}}"]
    return main([str(videos), "--out", str(out), *given, *more])


WANTED = {
    "deep/v1.mp4": ["blue wall", "red wall"],
    "deep/v3.mp4": ["green wall", "blue wall"],
    "v0.mp4": ["red wall", "green wall"],
    "v2.mp4": ["white wall", "white wall"],
    "v4.mp4": ["blue wall", "white wall"],
}


def test_a_teacher_sees_each_segment_and_a_text_model_makes_its_words_dense(
    endpoint, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-123")
    server, out = endpoint(model), tmp_path / "out" / "captions.jsonl"
    keyed = f'{FAST}, "key_variable": "SOME_KEY", "options": {{"top_p": 0.5}}'
    assert ask(videos, out, server.url, "--text-model", "pen", "--frames", "3", settings=keyed) == 0
    assert captions(out) == WANTED
    record = read_records(out)[0]
    assert record.model_dump(exclude_defaults=True)["segments"][0] == {
        "caption": "blue wall", "density": 2, "subjects": ["blue", "wall"],
    }  # fmt: skip
    assert (out.parent / str(record.video)).resolve() == videos / "deep/v1.mp4"
    eyes = [body for body in server.requests if body["model"] == "eye"]
    assert len(eyes) == 10 and all(len(pictures(body)) == 3 for body in eyes)
    assert all((body["max_tokens"], body["temperature"], body["top_p"]) == (128, 0, 0.5) for body in eyes)
    assert all(headers["Authorization"] == "Bearer secret-123" for headers in server.headers)
    lines = jsonl.read(out.parent / "captions.jsonl.work/1-of-1.jsonl")
    first = lines[0]["clips"][0]["segments"][0]
    assert first["texts"][0] == "There seems to be a blue wall, perhaps." and "```json" in first["texts"][1]
    assert [lines[0][name] for name in ("model", "text_model", "rewrite")] == ["eye", "pen", REWRITE]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", lines[0]["date"]) and "every subject" in lines[0]["prompt"]
    written = "".join(file.read_text() for file in out.parent.rglob("*") if file.is_file())
    assert "secret" not in written + "".join(capfd.readouterr())


def test_without_a_text_model_the_teachers_words_are_the_captions(
    endpoint, videos: Path, tmp_path: Path, capsys
) -> None:
    server, out = endpoint(lambda number, body: f"{pictures(body)[0]} wall\n"), tmp_path / "captions.jsonl"
    assert ask(videos, out, server.url) == 0
    assert captions(out) == WANTED
    assert "No --text-model: captions are the teacher's own words, without cues" in capsys.readouterr().out
    assert all(s.density is None and not s.subjects for record in read_records(out) for s in record.segments)
    assert "as few words as possible" in server.requests[0]["messages"][0]["content"][-1]["text"]


def test_what_is_done_is_not_asked_again_unless_something_changed(endpoint, videos: Path, tmp_path: Path) -> None:
    server, out = endpoint(lambda number, body: pictures(body)[0]), tmp_path / "captions.jsonl"
    assert ask(videos, out, server.url) == 0
    first = out.read_bytes()
    assert ask(videos, out, server.url, settings='"workers": 3') == 0
    assert len(server.requests) == 10 and out.read_bytes() == first
    coloured(videos / "v5.mp4", ["red", "red"])
    coloured(videos / "v4.mp4", ["red", "red"])
    os.utime(videos / "v4.mp4", (1, 1))
    assert ask(videos, out, server.url) == 0
    assert len(server.requests) == 14 and captions(out)["v5.mp4"] == captions(out)["v4.mp4"] == ["red", "red"]
    assert ask(videos, out, server.url, "--prompt", "what ?") == 0
    assert len(server.requests) == 26 and server.requests[-1]["messages"][0]["content"][-1]["text"] == "what ?"
    work = tmp_path / "captions.jsonl.work/1-of-1.jsonl"
    cut = work.read_bytes()[:-100]  # a kill in the middle of a line
    work.write_bytes(cut)
    out.unlink()
    assert ask(videos, out, server.url, "--prompt", "what ?") == 0
    assert len(server.requests) == 28 and len(captions(out)) == 6


def test_a_length_that_does_not_follow_density_is_redone_and_then_flagged(endpoint, tmp_path: Path, capsys) -> None:
    coloured(tmp_path / "videos/v.mp4", ["red", "blue"])

    def reply(number: int, body: dict) -> str:
        if not isinstance(body["messages"][0]["content"], str):
            return pictures(body)[0]
        if "Description: blue" in body["messages"][0]["content"]:
            return dense("it seems that there may be a blue wall", ["wall"])
        again = len(body["messages"]) == 3
        return dense("red wall", ["red", "wall"]) if again else dense("so what we see here may be red", ["red"])

    server, out = endpoint(reply), tmp_path / "captions.jsonl"
    assert ask(tmp_path / "videos", out, server.url, "--text-model", "pen") == 0
    (record,) = read_records(out)
    assert [(s.caption, s.density) for s in record.segments] == [
        ("red wall", 2), ("it seems that there may be a blue wall", 1),
    ]  # fmt: skip
    again = sorted(body["messages"][2]["content"][:43] for body in server.requests if len(body["messages"]) > 1)
    assert again == ["This caption has 8 words for 1 cues, where ", "This caption has 9 words for 1 cues, where "]
    said = capsys.readouterr().out
    assert "1 captions have a length that does not follow their density" in said and "v.mp4, segment 2: 9 words" in said
    assert out.is_file()
    assert ask(tmp_path / "videos", out, server.url, "--text-model", "pen", "--band", "0", "9") == 0
    assert len([b for b in server.requests if len(b["messages"]) > 1]) == 2


def test_an_endpoint_in_trouble_is_waited_for(endpoint, videos: Path, tmp_path: Path) -> None:
    """Every request fails at first: 429, garbage, a reply that is no JSON, a connection without an answer in time."""
    known: dict[str, int] = {}
    lock, woken = threading.Lock(), threading.Event()

    def reply(number: int, body: dict):
        with lock:
            text = json.dumps(body)
            known[text] = seen = known.get(text, 0) + 1
            kind = list(known).index(text) % 5
        if seen > 1:
            return model(number, body)
        if kind == 4:
            woken.wait(10)
        return [(429, b"slow", {"Retry-After": "0.1"}), (503, b""), b"<html>", (200, b'{"choices": []}'), "late"][kind]

    out = tmp_path / "captions.jsonl"
    trouble = '"timeout": 0.5, "pause": 0.01, "retries": 3, "workers": 4'
    assert ask(videos, out, endpoint(reply).url, "--text-model", "pen", settings=trouble) == 0
    woken.set()
    assert captions(out) == WANTED and len(known) == 8 and min(known.values()) >= 2


def test_a_video_that_fails_is_named_and_tried_again(endpoint, videos: Path, tmp_path: Path, capsys) -> None:
    (videos / "broken.mp4").write_bytes(b"no video")
    refusing = True

    def reply(number: int, body: dict):
        return (400, b"unsafe") if refusing and pictures(body)[0] == "white" else pictures(body)[0]

    server, out = endpoint(reply), tmp_path / "captions.jsonl"
    assert ask(videos, out, server.url) == 1
    said = capsys.readouterr().out
    assert "3 videos have no captions" in said and "broken.mp4" in said and "HTTP 400" in said and "unsafe" in said
    assert captions(out).keys() == {"deep/v1.mp4", "deep/v3.mp4", "v0.mp4"}
    refusing, before = False, len(server.requests)
    (videos / "broken.mp4").unlink()
    assert ask(videos, out, server.url) == 0
    assert captions(out).keys() == WANTED.keys() and len(server.requests) - before == 4


def test_what_concerns_all_videos_ends_the_run(endpoint, videos: Path, tmp_path: Path, capsys) -> None:
    server = endpoint((401, b"who are you"))
    assert ask(videos, tmp_path / "captions.jsonl", server.url, settings='"workers": 1') == 2
    assert "HTTP 401" in capsys.readouterr().err and len(server.requests) <= 2
    assert not (tmp_path / "captions.jsonl").exists()


def test_shards_write_what_one_process_does(endpoint, videos: Path, tmp_path: Path, capsys) -> None:
    server, out = endpoint(lambda number, body: pictures(body)[0]), tmp_path / "sharded.jsonl"
    assert ask(videos, tmp_path / "alone.jsonl", server.url) == 0
    assert ask(videos, out, server.url, "--batch", "1", "--shard", "2/3") == 0
    assert "2 of 5 videos are done" in capsys.readouterr().out and not out.exists()
    assert ask(videos, out, server.url, "--batch", "1", "--shard", "1/3") == 0
    assert ask(videos, out, server.url, "--batch", "1", "--shard", "3/3") == 0
    assert out.read_bytes() == (tmp_path / "alone.jsonl").read_bytes() and len(server.requests) == 20


def test_a_records_file_keeps_what_it_says_and_clips_are_cut_inside_their_bounds(endpoint, tmp_path: Path) -> None:
    coloured(tmp_path / "in/v.mp4", ["red", "green", "blue", "white"])
    Image.new("RGB", (20, 20), COLOURS["red"]).save(tmp_path / "in/i.png")
    asked = [QuestionRecord(kind="k", question="q", answer="a")]
    records = [
        Record(id="clip", video="v.mp4", start=0.5, end=1.5, questions=asked),
        Record(id="whole", video="v.mp4"),
        Record(id="image", image="i.png"),
        Record(id="text", questions=asked),
    ]
    write_records(tmp_path / "in/r.jsonl", records)
    out = tmp_path / "captions.jsonl"
    server = endpoint(lambda number, body: " ".join(pictures(body)))
    assert ask(tmp_path / "in/r.jsonl", out, server.url, "--frames", "2") == 0
    found = {record.id: record for record in read_records(out)}
    assert captions(out) == {
        "clip": ["green green", "blue blue"], "whole": ["red green", "blue white"], "image": ["red"],
    }  # fmt: skip
    clip = found["clip"]
    assert (clip.video, clip.start, clip.end, clip.questions) == ("in/v.mp4", 0.5, 1.5, asked)
    assert found["image"].image == "in/i.png"


def test_seconds_and_scenes_decide_how_a_video_is_cut(endpoint, tmp_path: Path) -> None:
    coloured(tmp_path / "videos/v.mp4", ["red"] * 3 + ["blue"] * 5)
    server, out = endpoint(lambda number, body: " ".join(pictures(body))), tmp_path / "captions.jsonl"
    frames = ("--endpoint", server.url, "--model", "eye", "--frames", "1")
    assert main([str(tmp_path / "videos"), "--out", str(out), *frames, "--seconds", "1.3"]) == 0
    assert captions(out) == {"v.mp4": ["red", "blue", "blue"]}
    assert main([str(tmp_path / "videos"), "--out", str(out), *frames, "--scenes", "--segments", "2"]) == 0
    assert captions(out) == {"v.mp4#1": ["red", "red"], "v.mp4#2": ["blue", "blue"]}
    first, second = read_records(out)
    assert first.start is None and second.end is None
    assert first.end == second.start == pytest.approx(1.5, abs=1 / 8)


def test_a_captioner_writes_what_it_writes_in_use_and_stage_2_learns_it(tmp_path: Path) -> None:
    source = runs.write_data(tmp_path / "data", videos=3)
    out = tmp_path / "captions.jsonl"
    given = ["--teacher", "sample:langdc", "--captioner", "--segments", "4", "--out", str(out)]
    assert main([str(source.parent / "videos"), *given]) == 0
    lm = VideoLM.from_pretrained("sample:langdc")
    for record in read_records(out):
        video = lm.open(out.parent / str(record.video))
        assert [s.caption for s in record.segments] == lm.compress([(video, None)])[0].captions
    texts = [segment.caption for record in read_records(out) for segment in record.segments]
    truth = [segment.caption for record in read_records(source) for segment in record.segments]
    assert sum(map(str.__eq__, texts, truth)) >= 9  # of 12; it was trained on such videos
    config = load(RunConfig, "sample/langdc/stage2_density", [f"train.data=[{out}]"])
    assert len(read_samples(lm.model, objectives.build("compress"), config.train)) == 3


def test_segments_of_a_teacher_are_clips_of_their_own(tmp_path: Path) -> None:
    """What a stock model says of a segment is what it says of a file that holds nothing else."""
    coloured(tmp_path / "videos/v.mp4", ["red", "blue"])
    coloured(tmp_path / "parts/0.mp4", ["red"])
    coloured(tmp_path / "parts/1.mp4", ["blue"])
    out = tmp_path / "captions.jsonl"
    given = ["--teacher", "tiny:qwen2_5_vl", "--frames", "4", "--prompt", "describe", "--max-new-tokens", "6"]
    assert main([str(tmp_path / "videos"), "--out", str(out), "--segments", "2", *given]) == 0
    lm = VideoLM.from_pretrained("tiny:qwen2_5_vl", backbone={"frames": 4})
    alone = [lm.ask(tmp_path / f"parts/{part}.mp4", "describe", max_new_tokens=6).text for part in range(2)]
    assert captions(out) == {"v.mp4": [" ".join(text.split()) for text in alone]} and any(alone)


def test_a_batch_with_a_video_that_cannot_be_described_is_described_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    runs.write_data(tmp_path / "data", videos=4)
    (tmp_path / "data/videos/v1.mp4").write_bytes(b"no video")
    compress, black = VideoLM.compress, 0

    def fail(self: VideoLM, batch):
        if any(video.frames.pixels.float().mean() == black for video, _ in batch):
            raise ValueError("NaN or infinity")
        return compress(self, batch)

    monkeypatch.setattr(VideoLM, "compress", fail)
    write_video(tmp_path / "data/videos/v2.mp4", np.zeros((16, 64, 64, 3), np.uint8), 8)
    out = tmp_path / "captions.jsonl"
    given = ["--out", str(out), "--teacher", "sample:langdc", "--captioner"]
    assert main([str(tmp_path / "data/videos"), *given]) == 1
    said = capsys.readouterr().out
    assert "v1.mp4: " in said and "v2.mp4: NaN or infinity" in said
    assert captions(out).keys() == {"v0.mp4", "v3.mp4"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "give a teacher"),
        ("--teacher sample:langdc --model x", "give a teacher"),
        ("--model x", "--endpoint goes with"),
        ("--teacher sample:langdc --endpoint http://x", "--endpoint goes with"),
        ("--endpoint nowhere --model x", "url"),
        ("--endpoint http://x --model x --endpoint-settings [1]", "is a JSON object"),
        ('--endpoint http://x --model x --endpoint-settings {"wrokers":1}', "Did you mean 'workers'"),
        (
            '--endpoint http://x --model x --endpoint-settings {"key_variable":"NOT_THERE"}',
            "NOT_THERE, which is not set",
        ),
        ("--endpoint http://x --model x --captioner", "--captioner is for --teacher"),
        ("--teacher sample:langdc --captioner --prompt hi", "a prompt and segments of its own"),
        ("--teacher sample:langdc --segments 2 --seconds 1", "not both"),
        ("--teacher sample:langdc --segments 0", "numbers are positive"),
        ("--teacher sample:langdc --band 3 1", "LOW and HIGH"),
        ("--teacher sample:langdc --shard 3/2", "--shard is I/N"),
        ("--teacher sample:langdc --shard 0/2", "--shard is I/N"),
        ("--teacher sample:langdc --captioner --segments 3", "writes 4 captions of a video; --segments is 3"),
        ("--teacher tiny:qwen2_5_vl --captioner", "writes 0 captions"),
        ("--teacher not/there", "not/there"),
        ("--teacher sample:langdc --ray 2", "pip install 'langdc\\[ray\\]'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys, given: str, said: str) -> None:
    if "--ray" in given:
        sys.modules.setdefault("ray", None)  # type: ignore[arg-type]
    coloured(tmp_path / "videos/v.mp4", ["red", "blue"])
    assert main([str(tmp_path / "videos"), "--out", str(tmp_path / "out.jsonl"), *given.split()]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out.jsonl").exists()


def test_other_files_are_not_written_over(endpoint, videos: Path, tmp_path: Path, capsys) -> None:
    server, out = endpoint("x"), tmp_path / "mine.jsonl"
    out.write_text("mine")
    assert ask(videos, out, server.url) == 2 and "did not make it" in capsys.readouterr().err
    records = tmp_path / "r.jsonl"
    write_records(records, [Record(id="v", video="videos/v0.mp4")])
    assert ask(records, records, server.url) == 2 and "is the input" in capsys.readouterr().err
    write_records(records, [Record(id="v", video="videos/gone.mp4")])
    assert ask(records, tmp_path / "x.jsonl", server.url) == 2 and "gone.mp4" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert (
        ask(tmp_path / "empty", tmp_path / "x.jsonl", server.url) == 2 and "holds no videos" in capsys.readouterr().err
    )
    (tmp_path / "x.jsonl.work").mkdir(exist_ok=True)
    with FileLock(tmp_path / "x.jsonl.work/1-of-1.lock"):
        assert ask(videos, tmp_path / "x.jsonl", server.url) == 2
    assert "Another process writes" in capsys.readouterr().err and out.read_text() == "mine" and not server.requests


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_double_nothing(endpoint, tmp_path: Path) -> None:
    for number in range(40):
        coloured(tmp_path / f"videos/v{number:02}.mp4", random.Random(number).choices(list(COLOURS), k=2))

    def slow(number: int, body: dict) -> str:
        time.sleep(0.1)
        return pictures(body)[0]

    server, out, rng = endpoint(slow), tmp_path / "captions.jsonl", random.Random(0)
    command = [sys.executable, "data_prep/caption.py", str(tmp_path / "videos"), "--out", str(out), "--segments", "2"]
    command += ["--endpoint", server.url, "--model", "eye", "--endpoint-settings", '{"workers": 2}']
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    work, killed = tmp_path / "captions.jsonl.work/1-of-1.jsonl", 0
    while killed < 3:
        before = len(jsonl.read(work))
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(jsonl.read(work)) <= before + 2 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.2 * rng.random())
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert not out.exists() and 6 <= len(jsonl.read(work)) < 40
    subprocess.run(command, cwd=ROOT, env=environ, check=True, timeout=120, capture_output=True)
    assert ask(tmp_path / "videos", tmp_path / "alone.jsonl", server.url) == 0
    assert out.read_bytes() == (tmp_path / "alone.jsonl").read_bytes() and len(captions(out)) == 40
    keys = [line["key"] for line in jsonl.read(work)]
    assert len(keys) == len(set(keys)) == 40
