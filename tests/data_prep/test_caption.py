"""The command that writes captions of segments: by checkpoints, and by models behind a local server that misbehaves."""

import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langdc import jsonl
from langdc.config import RunConfig, load
from langdc.data.records import QuestionRecord, Record, read_records, write_records
from langdc.pipeline import VideoLM
from langdc.prepare.teachers import REWRITE
from langdc.train.objectives import objectives
from langdc.train.samples import read_samples, usable
from langdc.video import write_video
from tests import tiny
from tests.data_prep.captions import COLOURS, FAST, ask, captions, coloured, main, pictures
from tests.evaluate import runs


def dense(text: str, cues: list[str]) -> str:
    """A text model's reply."""
    return json.dumps({"caption": text, "subjects": cues, "attributes": [], "actions": [], "background": []})


def model(number: int, body: dict) -> str:
    """A teacher that names the colour it sees, and a text model that leaves out what is around it."""
    if isinstance(text := body["messages"][0]["content"], str):
        colour = re.findall("a (.*) wall", text)[0]
        return f"<think>a {{ wall }} ?</think>Sure!\n```json\n{dense(f'{colour}  wall', [colour, ' wall', ''])}\n```"
    (colour,) = set(pictures(body))
    return f"There seems to be a {colour} wall, perhaps."


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
    server, out = (
        endpoint(lambda number, body: f"<think>a wall\n...</think>\n\n{pictures(body)[0]} wall\n"),
        tmp_path / "captions.jsonl",
    )
    assert ask(videos, out, server.url) == 0
    assert captions(out) == WANTED
    assert "No --text-model: captions are the teacher's own words, without cues" in capsys.readouterr().out
    assert all(s.density is None and not s.subjects for record in read_records(out) for s in record.segments)
    assert "as few words as possible" in server.requests[0]["messages"][0]["content"][-1]["text"]


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


def test_a_records_file_keeps_what_it_says_and_clips_are_cut_inside_their_bounds(endpoint, tmp_path: Path) -> None:
    coloured(tmp_path / "in/v.mp4", ["red", "green", "blue", "white"])
    Image.new("RGB", (20, 20), COLOURS["red"]).save(tmp_path / "in/i.png")
    for number, name in enumerate(["red", "red", "blue", "green"]):
        (tmp_path / "in/frames").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), COLOURS[name]).save(tmp_path / f"in/frames/{number}.png")
    asked = [QuestionRecord(kind="k", question="q", answer="a")]
    records = [
        Record(id="clip", video="v.mp4", start=0.5, end=1.5, questions=asked),
        Record(id="whole", video="v.mp4"),
        Record(id="image", image="i.png"),
        Record(id="text", questions=asked),
        Record(id="frames", video="frames", fps=2),
    ]
    write_records(tmp_path / "in/r.jsonl", records)
    out = tmp_path / "captions.jsonl"
    server = endpoint(lambda number, body: " ".join(pictures(body)))
    assert ask(tmp_path / "in/r.jsonl", out, server.url, "--frames", "2") == 0
    found = {record.id: record for record in read_records(out)}
    assert captions(out) == {
        "clip": ["green green", "blue blue"], "whole": ["red green", "blue white"], "image": ["red"],
        "frames": ["red red", "blue green"],
    }  # fmt: skip
    clip = found["clip"]
    assert (clip.video, clip.start, clip.end, clip.questions) == ("in/v.mp4", 0.5, 1.5, asked)
    assert found["image"].image == "in/i.png"


def test_a_clip_of_several_records_is_described_and_learned_once(endpoint, tmp_path: Path, capsys) -> None:
    coloured(tmp_path / "in/v.mp4", ["red", "green", "blue", "white"])
    asked = [[QuestionRecord(kind="k", question=f"q{n}", answer="a")] for n in range(4)]
    bounds = [{}, {"start": 0.5, "end": 1.5}, {}, {"start": 0.5, "end": 1.5}]
    rows = [Record(id=f"r{n}", video="v.mp4", questions=asked[n], **bounds[n]) for n in range(4)]
    write_records(tmp_path / "in/r.jsonl", [*rows, Record(id="last", video="v.mp4", start=1.5)])
    out = tmp_path / "captions.jsonl"
    server = endpoint(lambda number, body: " ".join(pictures(body)))
    assert ask(tmp_path / "in/r.jsonl", out, server.url, "--frames", "1", "--ask", "say {number}") == 0
    said = capsys.readouterr().out
    assert len(server.requests) == 6 and "3 clips of 1 videos and images, of which 0 have captions." in said
    assert "2 records show a clip that an earlier one shows" in said and f"Written: {out}, 5 records." in said
    records = read_records(out)
    assert [record.id for record in records] == ["r0", "r1", "r2", "r3", "last"]
    assert [[q.question for q in record.questions] for record in records] == [
        ["q0", "say 1", "say 2"], ["q1", "say 1", "say 2"], ["q2"], ["q3"], ["say 1", "say 2"],
    ]  # fmt: skip
    assert records[0].segments == records[2].segments != records[1].segments == records[3].segments
    assert (records[3].video, records[3].start, records[3].end) == ("in/v.mp4", 0.5, 1.5)
    settings = load(RunConfig, "sample/langdc/stage2_density", [f"train.data=[{out}]"]).train
    model = tiny.model("langdc")
    for objective, ids in (("compress", ["r0", "r1", "last"]), ("answer", ["r0", "r1", "r2", "r3", "last"])):
        found = usable(model, objectives.build(objective), settings, records)
        assert [record.id for record in found] == ids


@pytest.mark.parametrize(
    "words",
    [
        ["--ask", "describe segment {n}"],
        ["--ask", "describe {number"],
        ["--ask", "what is there ?"],
        ["--ask", "what is there ?", "--seconds", "1"],
    ],
)
def test_what_is_asked_names_the_segment(videos: Path, tmp_path: Path, capsys, words: list[str]) -> None:
    given = ["--out", str(tmp_path / "c.jsonl"), "--teacher", "no/where", *words]
    assert main([str(videos), *given]) == 2
    assert "{number}, the one field there is" in capsys.readouterr().err and not list(tmp_path.glob("c.jsonl*"))


def test_broken_and_empty_videos_are_named_and_the_others_described(endpoint, videos: Path, tmp_path, capsys) -> None:
    (videos / "empty.mp4").touch()
    (videos / "v0.mp4").write_bytes(b"no film")
    server, out = endpoint(lambda number, body: pictures(body)[0]), tmp_path / "captions.jsonl"
    assert ask(videos, out, server.url) == 1
    said = capsys.readouterr().out
    assert (
        "2 videos have no captions; the same command tries them again" in said and "Loading the teacher eye ..." in said
    )
    assert "empty.mp4: " in said and "is empty" in said and "v0.mp4: " in said
    assert captions(out).keys() == WANTED.keys() - {"v0.mp4"}
    assert ask(tmp_path / "video", tmp_path / "o.jsonl", server.url) == 2
    assert f"There is no {tmp_path / 'video'}. Give a file of records, or a folder" in capsys.readouterr().err


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


def colours(file: Path) -> list[list[str]]:
    """The first word of each object of each segment; of the last, where it moves, the model that ships is less sure."""
    texts = [segment.caption for record in read_records(file) for segment in record.segments]
    return [[thing.split()[0] for thing in text.split(" ; ") if thing] for text in texts]


def test_a_captioner_writes_what_it_writes_in_use_and_stage_2_learns_it(tmp_path: Path) -> None:
    source = runs.write_data(tmp_path / "data", videos=3)
    out = tmp_path / "captions.jsonl"
    given = ["--teacher", "sample:langdc", "--captioner", "--segments", "4", "--out", str(out)]
    assert main([str(source.parent / "videos"), *given]) == 0
    assert not any(record.questions for record in read_records(out))
    assert main([str(source.parent / "videos"), *given, "--ask", "describe segment {number}"]) == 0  # nothing anew
    for record in read_records(out):
        said = [(f"describe segment {n}", s.caption) for n, s in enumerate(record.segments, 1) if s.caption]
        assert [(question.question, question.answer) for question in record.questions] == said
    lm = VideoLM.from_pretrained("sample:langdc")
    for record in read_records(out):
        video = lm.open(out.parent / str(record.video))
        assert [s.caption for s in record.segments] == lm.compress([(video, None)])[0].captions
    said, shown = (colours(file) for file in (out, source))
    assert said == shown and any(shown)
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
