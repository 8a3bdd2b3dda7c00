"""A folder of images reads like a video of so many frames a second, through every door that takes a video."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from langdc.data.records import Record, check_media, read_records, write_records
from langdc.features import FeatureStore, read_spec
from langdc.pipeline import VideoLM
from langdc.types import FrameSpec
from langdc.video import _VideoInfo, frame_files, probe, read_frames, write_video
from tests import tiny


def _grey(number: int, height: int = 20, width: int = 30) -> Image.Image:
    """Frame n is grey of level 10 + 5 n, so that it tells its number."""
    return Image.fromarray(np.full((height, width, 3), 10 + 5 * number, np.uint8))


def _numbers(pixels: torch.Tensor) -> list[int]:
    return ((pixels.float().mean((1, 2, 3)) - 10) / 5).round().int().tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 frames, the numbers in their names not padded, and other files beside them."""
    (tmp_path / "clip").mkdir()
    for number in range(12):
        _grey(number).save(tmp_path / "clip" / f"f{number + 1}.png")
    (tmp_path / "clip" / "Thumbs.db").write_bytes(b"no frame")
    (tmp_path / "clip" / "._f1.png").write_bytes(b"no frame")
    return tmp_path / "clip"


def test_a_folder_of_frames_is_a_video(folder: Path) -> None:
    frames = read_frames(folder, fps=3)
    assert _numbers(frames.pixels) == list(range(12))
    assert frames.seconds.tolist() == pytest.approx([n / 3 for n in range(12)])
    assert [file.name for file in frame_files(folder)] == [f"f{number}.png" for number in range(1, 13)]
    info = probe(folder, fps=3)
    assert (info.frames, info.height, info.width) == (12, 20, 30)
    assert (info.fps, info.seconds) == pytest.approx((3, 4))


def test_a_clip_of_a_folder_follows_its_rate(folder: Path) -> None:
    assert _numbers(read_frames(folder, fps=3, start=1, end=2).pixels) == [3, 4, 5]
    assert _numbers(read_frames(folder, fps=6, start=1, end=2).pixels) == [6, 7, 8, 9, 10, 11]
    small = read_frames(folder, fps=3, start=1, end=4, segments=3, frames_per_segment=1, size=(10, 10))
    assert (_numbers(small.pixels), small.pixels.shape) == ([4, 7, 10], (3, 3, 10, 10))
    with pytest.raises(ValueError, match=r"outside the video, which lasts 4\.000 s"):
        read_frames(folder, fps=3, start=1, end=9)


def test_a_folder_of_one_frame_lasts_one_frame(tmp_path: Path) -> None:
    _grey(0).save(tmp_path / "1.jpg")
    assert probe(tmp_path, fps=2) == _VideoInfo(1, 2.0, 0.5, 20, 30)
    assert _numbers(read_frames(tmp_path, fps=2, frames=3).pixels) == [0, 0, 0]


@pytest.mark.parametrize("rate", [None, 0, -3, float("nan"), float("inf")])
def test_a_folder_without_a_rate_is_refused(folder: Path, rate: float | None) -> None:
    for read in (read_frames, probe):
        with pytest.raises(ValueError, match=r"clip: a folder of frames does not say how fast.*give fps > 0"):
            read(folder, fps=rate)


def test_folders_that_are_no_video(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: the folder holds no images \(\.bmp, .*Fetch it again"):
        read_frames(tmp_path / "empty", fps=3)
    with pytest.raises(ValueError, match=r"gone: there is no such file"):
        read_frames(tmp_path / "gone", fps=3)
    write_video(tmp_path / "n.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    with pytest.raises(ValueError, match=r"n\.mp4: fps=3 is for a folder of frames.*Leave it out"):
        read_frames(tmp_path / "n.mp4", fps=3)
    _grey(6, 10, 30).save(folder / "f7.png")
    with pytest.raises(ValueError, match=r"f7\.png: 10x30 pixels, but frames before it in this folder have 20x30"):
        read_frames(folder, fps=3)
    (folder / "f5.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"f5\.png: cannot be read as an image"):
        read_frames(folder, fps=3)


def _key(spec: FrameSpec) -> str:
    """Under which a store that was just opened keeps its features."""
    return FeatureStore(lambda videos: [], "encoders").key(spec)


def test_a_clip_of_a_folder_is_named_by_all_that_it_shows(folder: Path) -> None:
    clip = FrameSpec(folder, 2, 3, fps=3.0)
    assert _numbers(read_spec(clip).pixels) == [1, 3, 5, 7, 9, 11]
    key = _key(clip)
    assert _key(FrameSpec(folder, 2, 3, fps=3.0)) == key
    assert _key(FrameSpec(folder, 2, 3, fps=4.0)) != key
    _grey(0).save(folder / "f12.png")
    assert _key(clip) != key


def test_a_model_opens_a_folder(folder: Path) -> None:
    lm = VideoLM(tiny.model("pool"))
    video = lm.open(folder, 1.0, 3.0, fps=3.0)
    assert len(video.times) == 16
    assert (video.times[0].item(), video.times[-1].item()) == pytest.approx((1, 8 / 3))
    with pytest.raises(ValueError, match="give fps > 0, not None"):
        lm.open(folder)


def test_records_name_folders(folder: Path) -> None:
    path = folder.parent / "test.jsonl"
    write_records(path, [Record(id="v", video="clip", fps=3), Record(id="w", video="gone", fps=3)])
    records = read_records(path)
    assert records[0].fps == 3.0
    assert check_media(path, records[:1]) == records[:1]
    with pytest.raises(ValueError, match=r"1 record.*\n  .*'w'.*there is no file .*gone"):
        check_media(path, records)
    bare = [Record(id="v", video="clip")]
    with pytest.raises(ValueError, match=r"there is no file .*clip"):
        check_media(path, bare)
    for wrong in ({"fps": 3, "image": "i.png"}, {"fps": 3}, {"fps": 0, "video": "clip"}):
        with pytest.raises(ValueError, match="fps"):
            Record.model_validate({"id": "v", **wrong})
