"""Frames come back as written: the right ones, at the right times, from every decoder, or with a clear error."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from langdc import decoders, video
from langdc.decoders import decoder_trouble
from langdc.video import (
    _VideoInfo,
    is_image,
    probe,
    read_frames,
    write_video,
)

LEVELS = 5  # grey levels per frame number in the numbered videos


def _numbered(frames: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Frame n is grey of level 10 + 5 n, so that a decoded frame tells its number."""
    levels = 10 + LEVELS * np.arange(frames, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def _numbers(pixels: torch.Tensor) -> list[int]:
    return ((pixels.float().mean((1, 2, 3)) - 10) / LEVELS).round().int().tolist()


def _textured(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = torch.from_numpy(np.random.default_rng(seed).random((frames, 3, 8, 8), np.float32))
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")
    return (smooth * 255).permute(0, 2, 3, 1).byte().numpy()


def _encode(path: Path, images: np.ndarray, pts: list[int] | None = None, rotate: int = 0, **options: str) -> Path:
    """A file with settings that `write_video` does not offer; `pts` in milliseconds."""
    pixel_format = options.pop("pixel_format", "yuv420p")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"threads": "1", **options})
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], pixel_format
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotate:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip(f"PyAV {av.__version__} writes no turned videos; 18.0 does")
            stream.set_display_rotation(rotate)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 8 fps, a key frame every 8, with frames stored out of order in between."""
    path = tmp_path_factory.mktemp("numbered") / "n.mp4"
    return _encode(path, _numbered(40), g="8", bf="3", crf="5")


@pytest.fixture(params=decoders.DECODERS)
def decoder(request: pytest.FixtureRequest) -> str:
    trouble = decoder_trouble(request.param)
    if trouble:
        pytest.skip(trouble)
    return request.param


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "numbers"),
    [
        ({}, list(range(40))),
        ({"frames": 4}, [5, 15, 25, 35]),
        ({"frames": 3}, [6, 20, 33]),
        ({"segments": 4, "frames_per_segment": 2}, [2, 7, 12, 17, 22, 27, 32, 37]),
        ({"start": 1.0, "end": 2.0}, list(range(8, 16))),
        ({"start": 1.01, "end": 1.99}, list(range(9, 16))),
        ({"start": 4.5}, [36, 37, 38, 39]),
        ({"end": 0.25}, [0, 1]),
        ({"start": 1.03, "end": 1.06}, [8]),
        ({"start": 4.5, "end": 5.0, "frames": 8}, [36, 36, 37, 37, 38, 38, 39, 39]),
        ({"start": 2.0, "end": 4.0, "segments": 2, "frames_per_segment": 1}, [20, 28]),
    ],
)
def test_the_right_frames_at_the_right_times(numbered: Path, decoder: str, how: dict, numbers: list[int]) -> None:
    frames = read_frames(numbered, decoder=decoder, **how)
    assert frames.pixels.dtype == torch.uint8
    assert frames.pixels.shape == (len(numbers), 3, 64, 64)
    assert _numbers(frames.pixels) == numbers
    assert frames.seconds.tolist() == [number / 8 for number in numbers]


def test_any_single_frame_is_found(numbered: Path, decoder: str) -> None:
    for number in (39, 0, 17, 8, 31):
        frames = read_frames(numbered, start=number / 8, end=(number + 1) / 8, decoder=decoder)
        assert _numbers(frames.pixels) == [number]


def test_real_timestamps_count_not_the_average_rate(tmp_path: Path, decoder: str) -> None:
    milliseconds = [500, 600, 700, 800, 1800, 2800, 2900, 3000]
    path = _encode(tmp_path / "uneven.mkv", _numbered(8), pts=milliseconds)
    frames = read_frames(path, decoder=decoder)
    assert frames.seconds.tolist() == pytest.approx([(ms - 500) / 1000 for ms in milliseconds])
    clip = read_frames(path, start=0.3, end=2.4, decoder=decoder)
    assert _numbers(clip.pixels) == [3, 4, 5]


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [
        (64, 64, {}),
        (50, 70, {}),
        (64, 64, {"pixel_format": "yuvj420p"}),
        (64, 64, {"pixel_format": "yuv444p"}),
        (64, 64, {"x264-params": "colormatrix=bt709"}),
        (64, 64, {"rotate": 90}),
        (48, 64, {"rotate": 180}),
    ],
)
def test_decoders_agree(tmp_path: Path, decoder: str, height: int, width: int, options: dict) -> None:
    path = _encode(tmp_path / "v.mp4", _textured(13, height, width), **options)
    for how in (
        {},
        {"frames": 5, "size": (32, 40)},
        {"start": 0.5, "end": 1.5, "segments": 2, "frames_per_segment": 2},
    ):
        one, two = (read_frames(path, decoder=name, **how) for name in ("pyav", decoder))
        assert torch.equal(one.seconds, two.seconds)
        assert one.pixels.shape == two.pixels.shape
        assert (one.pixels.int() - two.pixels.int()).abs().max() <= 2
        assert torch.equal(one.pixels, read_frames(path, **how).pixels), "PyAV reads where nothing else is asked for"


def test_sample_video_survives_all_decoders(sample_video: Path, decoder: str) -> None:
    frames = read_frames(sample_video, segments=4, frames_per_segment=4, decoder=decoder)
    assert frames.pixels.shape == (16, 3, 64, 64)
    assert frames.seconds.tolist() == [n / 8 for n in range(16)]


def test_a_turned_video_is_read_upright(tmp_path: Path) -> None:
    images = _textured(3, 48, 64)
    frames = read_frames(_encode(tmp_path / "v.mp4", images, rotate=90, crf="5"))
    assert frames.pixels.shape == (3, 3, 64, 48)
    upright = np.stack([np.rot90(image) for image in images]).astype(int)
    assert abs(frames.pixels.permute(0, 2, 3, 1).numpy() - upright).mean() < 6
    assert probe(tmp_path / "v.mp4") == _VideoInfo(3, 8.0, 0.375, 64, 48)


@pytest.mark.parametrize(
    "options", [{"pixel_format": "yuv420p10le"}, {"x264-params": "open-gop=1:keyint=10:bframes=3:b-adapt=0:scenecut=0"}]
)
def test_what_others_misread_pyav_reads(tmp_path: Path, decoder: str, options: dict, caplog: Any) -> None:
    path = _encode(tmp_path / "v.mp4", _textured(20, 64, 64), **options)
    expected = read_frames(path, frames=7)
    found = read_frames(path, frames=7, decoder=decoder)
    assert torch.equal(found.pixels, expected.pixels) and torch.equal(found.seconds, expected.seconds)
    assert ("misreads" in caplog.text) == (decoder != "pyav")


def test_resizing(tmp_path: Path, decoder: str) -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[:, None, None], (128, 128, 3))
    write_video(tmp_path / "ramp.mp4", np.stack([ramp] * 2), 8)
    pixels = read_frames(tmp_path / "ramp.mp4", size=(16, 32), decoder=decoder).pixels
    assert pixels.shape == (2, 3, 16, 32)
    assert pixels[0].float().mean((0, 2)).tolist() == pytest.approx([7 + 16 * row for row in range(16)], abs=4)


def test_only_what_was_asked_for_is_handled(tmp_path: Path, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "long.mp4", _textured(1, 64, 64).repeat(600, axis=0), 30)
    resized = []
    resize = video._resize
    monkeypatch.setattr(video, "_resize", lambda image, *how: resized.append(image.shape) or resize(image, *how))
    frames = read_frames(tmp_path / "long.mp4", frames=6, size=(16, 16), decoder=decoder)
    assert frames.pixels.shape == (6, 3, 16, 16)
    assert resized == [(64, 64, 3)] * 6


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_an_image_is_a_video_of_one_frame(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(_textured(1, 20, 30)[0]).convert(mode)
    image.save(tmp_path / "i.PNG")
    frames = read_frames(tmp_path / "i.PNG")
    assert frames.seconds.tolist() == [0.0]
    assert np.array_equal(frames.pixels[0].permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))
    assert probe(tmp_path / "i.PNG") == _VideoInfo(1, 0.0, 0.0, 20, 30)
    assert is_image(tmp_path / "i.PNG")
    repeated = read_frames(tmp_path / "i.PNG", segments=2, frames_per_segment=2, size=(8, 8))
    assert repeated.pixels.shape == (4, 3, 8, 8)
    assert (repeated.pixels == repeated.pixels[0]).all()
    with pytest.raises(ValueError, match="no duration"):
        read_frames(tmp_path / "i.PNG", end=1.0)


# --- errors -----------------------------------------------------------------------------------------------------------


def _cut(good: bytes) -> bytes:
    return good[: len(good) // 2]


def _scrambled(good: bytes) -> bytes:
    middle = good.index(b"mdat") + 200
    return good[:middle] + bytes(len(good) // 2) + good[middle + len(good) // 2 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda _: b"", "empty .0 bytes."),
        (lambda _: b"no video" * 99, "cannot be read as a video"),
        (_cut, "cannot be read"),
        (_scrambled, "cannot be"),
    ],
)
def test_damaged_files(tmp_path: Path, damage: Callable, reason: str) -> None:
    write_video(tmp_path / "good.mp4", _textured(8, 64, 64), 8)
    (tmp_path / "bad.mp4").write_bytes(damage((tmp_path / "good.mp4").read_bytes()))
    with pytest.raises(ValueError, match=rf"bad\.mp4: .*{reason}.*(again|\.)"):
        read_frames(tmp_path / "bad.mp4")


def test_a_file_without_frames(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "none.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    with pytest.raises(ValueError, match=r"none\.mkv: .*(zero frames|cannot be read)"):
        read_frames(tmp_path / "none.mkv")


def test_a_file_with_sound_only(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"sound\.mp4: holds no video .only: audio.\. Give"):
        read_frames(tmp_path / "sound.mp4")


def test_missing_and_damaged_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.mp4: there is no such file"):
        read_frames(tmp_path / "gone.mp4")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n nothing")
    with pytest.raises(ValueError, match=r"bad\.png: cannot be read as an image"):
        read_frames(tmp_path / "bad.png")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"start": 2.0, "end": 1.0}, "before end"),
        ({"start": 1.0, "end": 1.0}, "before end"),
        ({"start": float("nan")}, "before"),
        ({"start": 5.0}, "before end"),
        ({"start": 6.0, "end": 7.0}, "outside.*lasts 5.000 s"),
        ({"end": 9.0}, "outside.*5.000"),
        ({"start": -1.0}, "outside"),
        ({"frames": 0}, "at least 1"),
        ({"frames": 2, "segments": 2}, "together"),
        ({"segments": 2}, "together"),
        ({"decoder": "decrod"}, "Did you mean 'decord'"),
    ],
)
def test_arguments_that_do_not_fit(numbered: Path, how: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_frames(numbered, **how)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_written_frames_come_back(tmp_path: Path) -> None:
    images = _textured(6, 64, 48)
    write_video(tmp_path / "v.mp4", torch.from_numpy(images), 12.5)
    assert probe(tmp_path / "v.mp4") == _VideoInfo(6, 12.5, pytest.approx(0.48), 64, 48)
    frames = read_frames(tmp_path / "v.mp4")
    assert abs(frames.pixels.permute(0, 2, 3, 1).numpy().astype(int) - images).mean() < 10
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert (container.streams[0].codec_context.name, container.streams[0].codec_context.pix_fmt) == (
            "h264",
            "yuv420p",
        )
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_writing_is_deterministic(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    written = set()
    for _ in range(8):
        write_video(tmp_path / "v.mp4", images, 8)
        written.add((tmp_path / "v.mp4").read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((2, 63, 64, 3), np.uint8), "even"),
        (np.zeros((2, 64, 64), np.uint8), "uint8"),
        (np.zeros((2, 64, 64, 3), np.float32), "float32"),
        (np.zeros((0, 64, 64, 3), np.uint8), "T > 0"),
    ],
)
def test_frames_that_cannot_be_written(tmp_path: Path, images: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"v\.mp4: .*{reason}"):
        write_video(tmp_path / "v.mp4", images, 8)
    assert list(tmp_path.iterdir()) == []
