"""Starts, interruptions and shards of `langdc data caption`: each video is described once, and written once."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from langdc import jsonl
from langdc.data.records import Record, write_records
from tests.data_prep.captions import COLOURS, ask, captions, coloured, main, pictures

ROOT = Path(__file__).resolve().parents[2]


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
    assert len(captions(out)) == 5 and len(server.requests) - before == 4


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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "give a teacher"),
        ("--teacher sample:langdc --model x", "give a teacher"),
        ("--model x", "--endpoint goes with"),
        ("--teacher sample:langdc --endpoint http://x", "--endpoint goes with"),
        ('--teacher sample:langdc --endpoint-settings {"workers":1}', "--endpoint goes with"),
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
