"""What the tests of commands that prepare data share."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where data sets and their media are; nothing is decoded, so that these may be empty."""
    for name in ("a.mp4", "b.mp4", "c d.mov", "i.jpg", "j.png", "sub/e.mp4"):
        file = tmp_path / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "set"
