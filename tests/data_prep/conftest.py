"""What the tests of commands that prepare data share."""

from pathlib import Path

import pytest

from tests.data_prep.captions import coloured


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Five videos of two segments in a folder with others."""
    pairs = [["red", "green"], ["blue", "red"], ["white", "white"], ["green", "blue"], ["blue", "white"]]
    for number, names in enumerate(pairs):
        coloured(tmp_path / "videos" / ("deep/" * (number % 2)) / f"v{number}.mp4", names)
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    coloured(tmp_path / "videos" / ".hidden.mp4", ["red"])
    coloured(tmp_path / "videos" / ".trash" / "v.mp4", ["red"])
    return tmp_path / "videos"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where data sets and their media are; nothing is decoded, so that these may be empty."""
    for name in ("a.mp4", "b.mp4", "c d.mov", "i.jpg", "j.png", "sub/e.mp4"):
        file = tmp_path / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "set"
