"""The command that checks a data set: every kind of fault is named with file and line, and nothing else is."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from data_prep.check import main
from langdc import jsonl
from langdc.cli import main as langdc
from langdc.config import RunConfig, load
from langdc.prepare.probing import Job, probed
from langdc.train.quarantine import read_kept
from langdc.train.run import train
from tests.data_prep.checks import asked, found_in, good, movie, run_file

ROOT = Path(__file__).resolve().parents[2]


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def replaced(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


class Faulty:
    """A data set; `line` adds one with the kind of fault that it has, and whether it is fatal."""

    def __init__(self, root: Path) -> None:
        self.root, self.lines, self.wanted = root, [], {}
        root.mkdir()
        self.good = movie(root / "good.mp4", 0)

    def line(self, kind: str | None, fatal: bool = True, **record: Any) -> None:
        text = {"id": f"r{len(self.lines) + 1}", "questions": [asked(question=f"what is {len(self.lines)} ?")]}
        self.raw(json.dumps({**text, **record}).encode(), kind, fatal)

    def raw(self, line: bytes, kind: str | None, fatal: bool = True) -> None:
        self.lines.append(line)
        if kind:
            self.wanted[len(self.lines)] = (kind, fatal)

    def file(
        self, name: str, kind: str, make: Callable[[Path], object], fatal: bool = True, field: str = "video"
    ) -> None:
        make(self.root / name)
        self.line(kind, fatal, **{field: name})

    def write(self) -> Path:
        path = self.root / "data.jsonl"
        path.write_bytes(b"\n".join(self.lines) + b"\n")
        return path


def faulty(root: Path) -> Faulty:
    """One record per kind of fault, between good ones."""
    data = Faulty(root)
    whole = data.good.read_bytes()

    def changed(seed: int, *change: tuple[bytes, bytes]) -> Callable[[Path], object]:
        return lambda path: [movie(path, seed), *(replaced(path, *each) for each in change)]

    def overwritten(path: Path) -> None:
        content = bytearray(movie(path, 30, frames=64).read_bytes())
        start = content.index(b"mdat") + 2000
        content[start : start + 8000] = bytes(range(250)) * 32
        path.write_bytes(content)

    def promised(path: Path) -> None:
        """A film of 20 s, says the header of 2 s."""
        movie(path, 31)
        content = bytearray(path.read_bytes())
        place = content.index(b"mvhd") + 20
        content[place : place + 4] = (20_000).to_bytes(4)
        path.write_bytes(content)

    data.line(None, video="good.mp4")
    data.file("empty.mp4", "empty", lambda p: p.touch())
    data.line("missing", video="absent.mp4")
    data.file("cut.mp4", "truncated", lambda p: p.write_bytes(whole[: len(whole) // 2]))
    data.file("noise.mp4", "corrupt", lambda p: p.write_bytes(np.random.default_rng(1).bytes(5000)))
    data.file("holes.mp4", "corrupt", overwritten)
    data.file("sound.mp4", "no video", sound)
    data.file("codec.mp4", "codec", changed(2, (b"avc1\0", b"zzzz\0")))
    data.file("movie.jpg", "mislabelled", lambda p: shutil.copy(movie(data.root / "tmp.mp4", 3), p))
    data.file("picture.mp4", "mislabelled", lambda p: Image.new("RGB", (32, 32)).save(p, format="PNG"))
    data.file("half.png", "truncated", lambda p: [noise(p), p.write_bytes(p.read_bytes()[:700])], field="image")
    data.line("mislabelled", image="good.mp4")
    data.line("bounds", video="good.mp4", start=1.0, end=9.0)
    data.line(None, video="good.mp4", start=1.0, end=1.5)
    data.line("windows path", video="videos\\good.mp4")
    data.line("other machine", video="/mnt/nobody/good.mp4")
    data.line("outside", video="../../../nowhere/good.mp4")
    movie(root.parent / "above.mp4", 4)
    data.line("outside", video="../above.mp4")
    data.line("missing", video="a" * 300 + ".mp4")
    shutil.copy(data.good, root / "copy.mp4")
    data.line("duplicate file", False, video="copy.mp4")
    data.line("duplicate record", False, video="good.mp4", questions=[asked(question="what is 0 ?")])
    data.file("seen.mp4", "leak", lambda p: movie(p, 5))
    data.line("answer", video="good.mp4", questions=[asked(options=["a", "b", "c"], answer="AB")])
    data.line("answer", video="good.mp4", questions=[asked(answer="  ")])
    data.line("answer", False, video="good.mp4", questions=[asked(answer="")])
    data.line("options", video="good.mp4", questions=[asked(options=["dog", "Dog ", "cat"], answer="A")])
    data.line("options", video="good.mp4", questions=[asked(options=["dog"], answer="A")])
    data.line("options", False, video="good.mp4", questions=[asked(options=["dog", "Dog ", "cat"], answer="C")])
    data.line("marks", video="good.mp4", questions=[asked(question="<video> or <video> ?")])
    data.line("record", video="good.mp4", questionz=[])
    data.line("duplicate id", id="r1", video="good.mp4")
    data.raw(b'{"id": "latin", "video": "caf\xe9.mp4"}', "encoding")
    data.raw(b'{"id": "cut of', "JSON")
    data.file("header.mp4", "length", promised, False)
    data.file("cut.webm", "truncated", webm)
    return data


def webm(path: Path) -> None:
    """The first half of a film whose header promises all of it."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=8, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for image in np.random.default_rng(8).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def noise(path: Path) -> None:
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def held_out(root: Path, seen: Path) -> Path:
    """The records of an evaluation that shows a file of the training data under another name."""
    root.mkdir()
    shutil.copy(seen, root / "other.mp4")
    jsonl.write_lines(root / "test.jsonl", [{"id": "t", "video": "other.mp4", "questions": [asked()]}])
    return root / "test.jsonl"


def test_every_kind_of_fault_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = faulty(tmp_path / "data")
    path = data.write()
    held = held_out(tmp_path / "eval", data.root / "seen.mp4")
    assert main([str(path), "--eval", str(held), "--jobs", "2"]) == 1
    folder = tmp_path / "data/data.check"
    assert found_in(folder) == {line: [fault] for line, fault in data.wanted.items()}
    printed = capsys.readouterr().out
    for line, (kind, fatal) in data.wanted.items():
        assert f"{kind}{' (warning)' * (not fatal)}, " in printed
        assert f"{path}, line {line}" in printed or printed.count("... and")
    kept_out = [one["line"] for one in jsonl.read(folder / "quarantine.jsonl", strict=True)]
    assert kept_out == [line for line, (_, fatal) in data.wanted.items() if fatal]
    assert all(f"<td>{line}</td>" in (folder / "report.html").read_text() for line in data.wanted)


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [
        ("gzip", gzip.compress, 1),
        ("array", lambda content: b"[" + b",".join(content.splitlines()) + b"]", 1),
        ("encoding", lambda content: content.decode().encode("utf-16"), 1),
        ("no records", lambda content: b"\n", 1),
        ("BOM", lambda content: b"\xef\xbb\xbf" + content, 0),
    ],
)
def test_a_file_that_is_no_json_lines(tmp_path: Path, kind: str, change: Callable[[bytes], bytes], code: int) -> None:
    data = good(tmp_path, 1)
    data.write_bytes(change(data.read_bytes()))
    assert main([str(data)]) == code
    assert found_in(tmp_path / "data.check") == {1: [(kind, bool(code))]}


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "frames").mkdir()
    for number in range(3):
        noise(tmp_path / f"frames/{number}.png")
    data = good(tmp_path)
    media = [{"video": "v0.mp4", "end": 1.0}, {"video": "v0.mp4", "start": 1.0, "end": 2.0}, {"image": "frames/0.png"}]
    talk = [{"role": "user", "content": "<video> <video> <image> ?"}, {"role": "assistant", "content": "yes"}]
    lines = [{"id": "talk", "media": media, "messages": talk}]
    lines += [{"id": "frames", "video": "frames", "fps": 2.0, "questions": [asked()]}]
    jsonl.append(data, *lines)
    assert main([str(data), "--out", str(tmp_path / "found"), "--config", str(run_file(tmp_path, data))]) == 1
    kinds = {(fault["kind"], fault["id"]) for fault in jsonl.read(tmp_path / "found/faults.jsonl")}
    assert kinds == {("targets", name) for name in ("v0", "v1", "v2", "v3", "talk", "frames")}, "LangDC wants captions"
    assert main([str(data), "--out", str(tmp_path / "found")]) == 0
    assert "Nothing was found" in (tmp_path / "found/report.html").read_text()
    assert jsonl.read(tmp_path / "found/quarantine.jsonl", strict=True) == []


def test_prompts_are_those_of_the_config(tmp_path: Path) -> None:
    words = " red" * 9000
    model = {
        "backbone": {"name": "qwen2_5_vl", "source": "tiny:qwen2_5_vl"},
        "compressor": {"name": "pool", "sides": [2]},
    }
    data = good(tmp_path, 1)
    others = {
        "long reply": asked(answer=words),
        "long question": asked(question=words),
        "mark of the model": asked(question="<|video_pad|> ?"),
        "no answer": asked(answer=""),
        "of no use": asked(kind="other"),
    }
    jsonl.append(data, *({"id": name, "video": "v0.mp4", "questions": [one]} for name, one in others.items()))
    assert main([str(data), "--config", str(run_file(tmp_path, data, model, kinds=["k"]))]) == 1
    found = jsonl.read(tmp_path / "data.check/faults.jsonl")
    assert [(fault["id"], fault["kind"]) for fault in found if fault["fatal"]] == [
        ("long reply", "too long"),
        ("long question", "too long"),
        ("long question", "masked"),
        ("mark of the model", "prompt"),
        ("no answer", "answer"),
    ]
    # 32x32 pixels are 4x4 tokens of 8 pixels before pooling; 16 steps of two frames
    assert "64 of them visual; the language model has 8192 positions" in found[0]["reason"]


def test_text_of_records_is_no_markup(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "<script>alert(1)</script>", "video": "<b>.mp4"}) + "\n")
    assert main([str(tmp_path / "data.jsonl")]) == 1
    page = (tmp_path / "data.check/report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "&lt;b&gt;.mp4" in page
    assert "<script>alert" not in page and "<b>.mp4" not in page and "src=" not in page


class Abort:
    """What ends the process that receives it."""

    def __reduce__(self) -> tuple:
        return os.abort, ()


def test_a_decoder_that_hangs_or_crashes_ends_only_its_child(tmp_path: Path) -> None:
    data = good(tmp_path, 3)
    (tmp_path / "frames").mkdir()
    os.mkfifo(tmp_path / "frames/0.png")  # whoever opens it waits for ever
    jsonl.append(data, {"id": "hangs", "video": "frames", "fps": 2.0, "questions": [asked()]})
    assert main([str(data), "--timeout", "1", "--jobs", "1"]) == 1
    assert found_in(tmp_path / "data.check") == {4: [("hangs", True)]}
    assert len(jsonl.read(tmp_path / "data.check/media.jsonl")) == 3, "it is tried again"
    jobs = [Job(str(tmp_path / "v0.mp4"), None, ((None, None),), 1, 1)] * 3
    crash: Any = Job(Abort(), None, (), 1, 1)  # pyright: ignore[reportArgumentType]
    found = list(probed([jobs[0], crash, *jobs], 1, 60))
    assert [lived for *_, lived in found] == [True, False, True, True, True]
    assert found[1][1]["faults"] == [[None, "crashes", "the decoder crashed (SIGABRT)", True]]


@pytest.mark.slow
def test_a_killed_check_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = good(tmp_path, 60)
    shutil.copy(tmp_path / "v7.mp4", tmp_path / "v9.mp4")
    (tmp_path / "v5.mp4").write_bytes(b"no film")
    command = [sys.executable, "data_prep/check.py", str(data), "--jobs", "1"]
    started = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    kept = tmp_path / "data.check/media.jsonl"
    while started.poll() is None and (not kept.is_file() or kept.read_bytes().count(b"\n") < 8):
        time.sleep(0.001)
    started.send_signal(signal.SIGKILL)
    started.wait()
    with kept.open("ab") as file:
        file.write(b'{"key": "cut of')
    before = kept.read_bytes().count(b"\n")
    assert 8 <= before < 60 and main([str(data)]) == 1
    lines = jsonl.read(kept, strict=True)
    assert len(lines) == len({line["key"] for line in lines}) == 60
    twice = [("duplicate file", False), ("duplicate record", False)]
    assert found_in(tmp_path / "data.check") == {6: [("corrupt", True)], 10: twice}
    monkeypatch.setattr("langdc.prepare.checking.probed", lambda jobs, *_: pytest.fail("again") if list(jobs) else [])
    assert main([str(data)]) == 1
    monkeypatch.undo()
    movie(tmp_path / "v5.mp4", 5)
    assert main([str(data)]) == 0 and len(jsonl.read(kept)) == 61, "only what changed is looked into"


def test_training_refuses_what_was_found_and_learns_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = good(tmp_path, segments=[{"caption": "a ring"}] * 4)
    (tmp_path / "v1.mp4").write_bytes(b"no film")
    with data.open("ab") as file:
        file.write(b'{"id": "cut of\n{"id": "gone", "video": "gone.mp4", "questions": []}\n')
    config = run_file(tmp_path, data)
    assert main([str(data), "--config", str(config)]) == 1
    quarantine = tmp_path / "data.check/quarantine.jsonl"
    assert langdc(["train", str(config)]) == 2
    said = capsys.readouterr().err
    assert "has 3 record(s) that `langdc data check` refuses" in said and "line 2 (id 'v1'): corrupt: v1.mp4" in said
    assert langdc(["train", str(config), "--quarantine", str(quarantine)]) == 0
    (manifest,) = tmp_path.glob("run/langdc.json")
    assert manifest.is_file()
    lines = jsonl.read(quarantine)
    jsonl.write_lines(quarantine, [{**lines[0], "line": 3}])
    for more in ([], ["train.streaming=true"]):
        with pytest.raises(ValueError, match=r"names line 3 .id 'v1'. of .*, which has no such record"):
            train(load(RunConfig, config, [f"train.quarantine={quarantine}", *more]))
    jsonl.write_lines(quarantine, [{**lines[0], "file": "../other.jsonl"}])
    with pytest.raises(ValueError, match=r"other\.jsonl, which is not there"):
        train(load(RunConfig, config, [f"train.quarantine={quarantine}"]))
    with pytest.raises(ValueError, match="there is no file"):
        train(load(RunConfig, config, ["train.quarantine=nowhere.jsonl"]))
    quarantine.rename(tmp_path / "data.check/elsewhere.jsonl")
    with pytest.raises(ValueError, match=r"has 1 bad line.s.:\n  line 5: not valid JSON"):
        train(load(RunConfig, config))


def test_a_list_older_than_the_data_counts_for_nothing(tmp_path: Path) -> None:
    data = good(tmp_path, 2)
    (tmp_path / "v1.mp4").write_bytes(b"no film")
    assert main([str(data)]) == 1
    settings = load(RunConfig, run_file(tmp_path, data)).train
    with pytest.raises(ValueError, match=r"has 1 record.s. that `langdc data check` refuses"):
        read_kept(data, settings)
    other = data.with_name("other.jsonl")
    other.write_bytes(data.read_bytes())
    assert main([str(data), str(other)]) == 1
    for each in (data, other):  # checked together, each has a list of its own
        with pytest.raises(ValueError, match=r"has 1 record.s. that `langdc data check` refuses"):
            read_kept(each, settings)
    listed = (tmp_path / "data.check/quarantine.jsonl").stat().st_mtime
    os.utime(data, (listed + 1, listed + 1))
    assert len(read_kept(data, settings)) == 2


@pytest.mark.slow
def test_a_process_that_cannot_be_started_is_no_fault_of_a_file(tmp_path: Path) -> None:
    code = f"from langdc.prepare.checking import main; main(['{good(tmp_path, 1)}'])"  # standard input has no file
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-"], input=code, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "could not be started" in done.stderr
    assert not (tmp_path / "data.check/faults.jsonl").exists()
