"""The command that checks a data set: every kind of fault is named with file and line, and nothing else is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from data_prep.check import main
from langdc.video import write_video

ROOT = Path(__file__).resolve().parents[2]


def movie(path: Path, seed: int, frames: int = 16, size: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8), 8)
    return path


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


def asked(**changes: Any) -> dict[str, Any]:
    return {"kind": "k", "question": "what is it ?", "answer": "a ring", **changes}


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
        self, name: str, kind: str | None, make: Callable[[Path], object], fatal: bool = True, **record: Any
    ) -> None:
        make(self.root / name)
        self.line(kind, fatal, video=name, **record)

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
    data.file("half.png", "truncated", lambda p: [noise(p), p.write_bytes(p.read_bytes()[:700])])
    data.line("bounds", video="good.mp4", start=1.0, end=9.0)
    data.line(None, video="good.mp4", start=1.0, end=1.5)
    data.line("windows path", video="videos\\good.mp4")
    data.line("other machine", video="/mnt/nobody/good.mp4")
    data.line("outside", video="../../../nowhere/good.mp4")
    movie(root.parent / "above.mp4", 4)
    data.line("outside", False, video="../above.mp4")
    data.line("missing", video="a" * 300 + ".mp4")
    shutil.copy(data.good, root / "copy.mp4")
    data.line("duplicate file", False, video="copy.mp4")
    data.line("duplicate record", False, video="good.mp4", questions=[asked(question="what is 0 ?")])
    data.file("seen.mp4", "leak", lambda p: movie(p, 5))
    data.line("answer", video="good.mp4", questions=[asked(options=["a", "b", "c"], answer="AB")])
    data.line("answer", video="good.mp4", questions=[asked(answer="  ")])
    data.line("answer", False, video="good.mp4", questions=[asked(answer="")])
    data.line("options", video="good.mp4", questions=[asked(options=["dog", "Dog ", "cat"], answer="A")])
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


def found_in(folder: Path) -> dict[int, set[tuple[str, bool]]]:
    lines: dict[int, set[tuple[str, bool]]] = {}
    for text in (folder / "faults.jsonl").read_text().splitlines():
        fault = json.loads(text)
        lines.setdefault(fault["line"], set()).add((fault["kind"], fault["fatal"]))
    return lines


def test_every_kind_of_fault_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = faulty(tmp_path / "data")
    path = data.write()
    (tmp_path / "eval").mkdir()
    shutil.copy(tmp_path / "data/seen.mp4", tmp_path / "eval/other.mp4")
    held = tmp_path / "eval/test.jsonl"
    held.write_text(json.dumps({"id": "t", "video": "other.mp4", "questions": [asked()]}) + "\n")
    assert main([str(path), "--eval", str(held), "--jobs", "2"]) == 1
    folder = tmp_path / "data/data.check"
    found = found_in(folder)
    assert {line: sorted(kinds) for line, kinds in found.items()} == {n: [one] for n, one in data.wanted.items()}
