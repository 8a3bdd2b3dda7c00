"""Videos that several tests caption."""

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
