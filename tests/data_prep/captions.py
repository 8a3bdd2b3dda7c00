"""What tests of `langdc data caption` share: videos of plain colours, and a model that is asked about them."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from langdc.cli import door
from langdc.data.records import read_records
from langdc.video import write_video

main = door("data caption")
COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230), "white": (235, 235, 235)}
FAST = '"timeout": 5, "pause": 0.01, "retries": 2'


def coloured(path: Path, names: list[str]) -> Path:
    """A video whose segments of 4 frames have one colour each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [np.full((32, 48, 3), COLOURS[name], np.uint8) for name in names for _ in range(4)]
    write_video(path, np.stack(frames), 8)
    return path


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


def captions(path: Path) -> dict[str, list[str]]:
    return {record.id: [segment.caption for segment in record.segments] for record in read_records(path)}


def ask(videos: Path, out: Path, url: str, *more: str, settings: str = FAST) -> int:
    given = ["--endpoint", url, "--model", "eye", "--segments", "2", "--endpoint-settings", f"{{{settings}}}"]
    return main([str(videos), "--out", str(out), *given, *more])
