"""Files that are not as an mp4 of a camera is: every frame that is shown is found at its time, or one sentence says why
not. The reference is a decoding of the whole file in order, in one thread.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from langdc import decoders, video, videoindex
from langdc.video import probe, read_frames, write_video

RATE, FRAMES = 25, 60


def _moving(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A texture that moves, so that no two frames are alike."""
    noise = torch.from_numpy(np.random.default_rng(0).random((1, 3, 16, 16), np.float32))
    wide = torch.nn.functional.interpolate(noise, (height, width + 2 * count), mode="bicubic")[0].clamp(0, 1) * 255
    return np.stack([wide[:, :, 2 * n : 2 * n + width].permute(1, 2, 0).byte().numpy() for n in range(count)])


def _write(path: Path, codec: str, images: np.ndarray | None = None, **options: str) -> Path:
    images = _moving(FRAMES) if images is None else images
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options={"threads": "1", **options})
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def _in_order(path: Path) -> torch.Tensor:
    """All frames [T,3,height,width] that a decoder shows."""
    with av.open(f"file:{path}") as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def _check(path: Path, count: int = FRAMES) -> None:
    """A few frames, many and all of them are those of a decoding in order, at their times."""
    expected, times = _in_order(path), [number / RATE for number in range(count)]
    assert len(expected) == count
    assert probe(path).seconds == pytest.approx(count / RATE)
    for frames in (1, 3, 16, None):
        found = read_frames(path, frames=frames)
        numbers = range(count) if frames is None else video._uniform_indices(count, frames)
        assert found.seconds.tolist() == pytest.approx([times[number] for number in numbers], abs=1e-3)
        assert torch.equal(found.pixels, expected[list(numbers)]), f"{path.name}, {frames} frames"


H264 = {"g": "13", "bf": "2"}
OPEN = {"x264-params": "open-gop=1:keyint=10:bframes=3:b-adapt=0:scenecut=0"}
PYRAMID = {"x264-params": "open-gop=1:keyint=20:bframes=5:b-pyramid=normal:ref=5:b-adapt=0"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=20"}  # no picture is whole, but the first one
HEVC = {"x265-params": "keyint=15:bframes=3:log-level=error:pools=1:frame-threads=1"}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        *((f"v.{kind}", "libx264", H264) for kind in ("mp4", "mkv", "ts", "m2ts", "avi", "flv", "h264")),
        ("open.ts", "libx264", OPEN),
        ("open.mp4", "libx264", OPEN),
        ("pyramid.mp4", "libx264", PYRAMID),
        ("refresh.mp4", "libx264", REFRESH),
        ("interlaced.mp4", "libx264", {"x264-params": "interlaced=1:keyint=20"}),
        ("intra.mp4", "libx264", {"g": "1"}),
        *((f"v.{kind}", "mpeg2video", {"g": "12", "bf": "2"}) for kind in ("mpg", "vob", "ts")),
        ("interlaced.mpg", "mpeg2video", {"g": "12", "bf": "2", "flags": "+ildct+ilme"}),
        *((f"v.{kind}", "mpeg4", {"g": "12", "bf": "2"}) for kind in ("mp4", "avi")),
        ("ms.avi", "msmpeg4v2", {"g": "12"}),
        *((f"v.{kind}", "wmv2", {"g": "12"}) for kind in ("wmv", "avi")),
        *((f"hevc.{kind}", "libx265", HEVC) for kind in ("mp4", "ts", "hevc")),
        ("v.webm", "libvpx", {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
    ],
)
def test_frames_are_those_of_a_decoding_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str, options: dict, threads: int
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    _check(_write(tmp_path / name, codec, **options))


def test_common_files_are_read_by_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_from_start", lambda *_: pytest.fail("the whole file was decoded"))
    for name, options in (("v.mp4", H264), ("v.mkv", H264), ("v.ts", H264), ("open.mp4", OPEN), ("p.mp4", PYRAMID)):
        assert len(read_frames(_write(tmp_path / name, "libx264", **options), frames=5)) == 5


def test_a_late_clip_decodes_its_own_group_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = _write(tmp_path / "v.mp4", "libx264", g="10", bf="2"), decoders._run
    starts = []
    monkeypatch.setattr(decoders, "_run", lambda one, key, due: starts.append(key.place) or run(one, key, due))
    read_frames(path, start=45 / RATE, end=48 / RATE)
    read_frames(path, start=5 / RATE, end=12 / RATE)
    assert starts == [40, 0]


def test_a_file_is_opened_and_walked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "v.mp4", "libx264", **H264)
    opened, walked, really, walk = [], [], av.open, decoders.walked
    monkeypatch.setattr(decoders.av, "open", lambda *given, **how: opened.append(given) or really(*given, **how))
    monkeypatch.setattr(decoders, "walked", lambda *given: walked.append(given[0]) or walk(*given))
    first = read_frames(path, frames=4)
    assert (len(opened), len(walked)) == (1, 1)
    assert torch.equal(read_frames(path, frames=4).pixels, first.pixels) and len(walked) == 1
    _write(path, "libx264", _moving(30))
    assert probe(path).frames == 30 and len(walked) == 2


def test_indices_that_are_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_indices", {})
    monkeypatch.setattr(decoders, "INDEXED_FRAMES", 25)
    for number in range(4):
        write_video(tmp_path / f"{number}.mp4", _moving(10), RATE)
        assert probe(tmp_path / f"{number}.mp4").frames == 10
    assert [Path(name).name for name, *_ in decoders._indices] == ["1.mp4", "2.mp4", "3.mp4"]


def test_what_a_cut_hides_is_not_shown(tmp_path: Path) -> None:
    """A copy without its first second keeps the packets of its first group, marked as not to be shown."""
    source, hidden = _write(tmp_path / "v.mp4", "libx264", g="20", bf="2"), 25
    with av.open(str(source)) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size and packet.pts is not None and packet.dts is not None and packet.time_base is not None:
                shift = round(hidden / RATE / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                cut.mux(packet)
    with av.open(str(tmp_path / "cut.mp4")) as cut:
        assert sum(packet.is_discard for packet in cut.demux(video=0)) > 0
    _check(tmp_path / "cut.mp4", FRAMES - hidden)


def test_a_recording_that_begins_inside_a_group(tmp_path: Path) -> None:
    whole = _write(tmp_path / "v.ts", "libx264", **H264).read_bytes()
    (tmp_path / "tail.ts").write_bytes(whole[188 * 12 :])
    _check(tmp_path / "tail.ts", FRAMES - 13)


def test_frames_stored_out_of_order_with_time_stamps_in_order(tmp_path: Path) -> None:
    """So a raw stream becomes an mp4 where nothing says when its frames are shown."""
    source = _write(tmp_path / "v.mp4", "libx264", **H264)
    with av.open(str(source)) as whole, av.open(str(tmp_path / "copy.mp4"), "w") as copy:
        stream = copy.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(packet for packet in whole.demux(video=0) if packet.size):
            packet.pts = packet.dts = round(number / RATE / packet.time_base)
            packet.stream = stream
            copy.mux(packet)
    _check(tmp_path / "copy.mp4")


def test_a_stream_that_begins_late_and_a_file_that_ends_early(tmp_path: Path) -> None:
    part = _write(tmp_path / "v.ts", "libx264", **H264).read_bytes()
    with av.open(str(tmp_path / "sound.ts"), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        sound.id = 300
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    (tmp_path / "late.ts").write_bytes(part + (tmp_path / "sound.ts").read_bytes())
    _check(tmp_path / "late.ts")

    def demux(_: Any) -> Iterator[int]:
        yield from range(3)
        raise IndexError("list index out of range")  # PyAV, where such a stream was not seen when the file was opened

    assert list(videoindex.demuxed(SimpleNamespace(demux=demux), None)) == [0, 1, 2]  # pyright: ignore[reportArgumentType]
    with (
        av.open(str(tmp_path / "v.ts")) as whole,
        av.open(str(tmp_path / "v.mp4"), "w", options={"movflags": "+faststart"}) as copy,
    ):
        stream = copy.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "v.mp4").read_bytes()[:-1000])
    found = read_frames(tmp_path / "cut.mp4")
    assert 40 < len(found) < FRAMES and probe(tmp_path / "cut.mp4").frames == len(found)
    assert torch.equal(found.pixels, _in_order(tmp_path / "v.mp4")[: len(found)])


MUTATED = """
import json, random, sys
from pathlib import Path
import av, numpy as np, torch
from langdc.video import read_frames

torch.set_num_threads(4)
said = []
for number, path in enumerate(map(Path, sys.argv[1:])):
    data, draw = bytearray(path.read_bytes()), random.Random(number)
    start = draw.randrange(len(data))
    kind = ("flips", "cut", "drop", "zeros", "header")[number % 5]
    if kind == "flips":
        for _ in range(20):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[start:]
    elif kind == "drop":
        del data[start : start + 2000]
    else:
        start = 0 if kind == "header" else start
        data[start : start + 700] = bytes(len(data[start : start + 700]))
    path.write_bytes(data)
    shown = {}
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for packet in container.demux(stream):
                try:
                    for frame in stream.decode(packet):
                        shown[len(shown)] = (frame.pts, frame.to_ndarray(format="rgb24"))
                except av.FFmpegError:
                    pass
            unit = float(stream.time_base)
    except (av.FFmpegError, IndexError):
        pass
    pixels = {image.tobytes() for _, image in shown.values()}
    for how in ({"frames": 8}, {}):
        try:
            found = read_frames(path, **how)
        except ValueError as error:
            said.append([path.name, kind, "refused" if path.name in str(error) else str(error)])
            continue
        images = [image.permute(1, 2, 0).numpy() for image in found.pixels]
        right = all(image.tobytes() in pixels for image in images)
        stamps = [stamp for stamp, _ in shown.values()]
        if right and None not in stamps and stamps == sorted(set(stamps)):
            at = {round((stamp - stamps[0]) * unit, 2): image for stamp, image in shown.values()}
            times = [round(seconds, 2) for seconds in found.seconds.tolist()]
            right = all((at[time] == image).all() for time, image in zip(times, images))
        said.append([path.name, kind, "right" if right else "wrong"])
print(json.dumps(said))
"""


@pytest.mark.slow
def test_mutated_files_are_read_as_in_order_or_refused(tmp_path: Path) -> None:
    """In a process of its own with a time limit: no crash, no endless reading, no other frames than those said."""
    kinds = (("mp4", "libx264", H264), ("ts", "libx264", H264), ("avi", "mpeg4", {"g": "12", "bf": "2"}))
    files = [_write(tmp_path / f"{n}.{kind}", codec, **how) for n in range(5) for kind, codec, how in kinds]
    run = subprocess.run([sys.executable, "-c", MUTATED, *map(str, files)], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-2000:]
    said = json.loads(run.stdout.splitlines()[-1])
    assert len(said) == 2 * len(files) and {what for *_, what in said} == {"right", "refused"}, said


def test_joined_files_whose_times_start_again(tmp_path: Path) -> None:
    part = _write(tmp_path / "v.ts", "libx264", **H264).read_bytes()
    (tmp_path / "joined.ts").write_bytes(part + part)
    _check(tmp_path / "joined.ts", 2 * FRAMES)


@pytest.mark.parametrize("name", ["12:30.mp4", "http:v.mp4", "a b%20'c.mp4"])
def test_names_that_look_like_something_else(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "v.mp4", _moving(8), 8)
    (tmp_path / "v.mp4").rename(tmp_path / name)
    assert len(read_frames(tmp_path / name)) == 8


def test_the_last_frame_lasts_as_long_as_the_file_says(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"threads": "1", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in _moving(2)]
        for frame, pts in zip(frames, (0, 8 * 3600 * RATE), strict=True):
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert 28800 < probe(tmp_path / "v.mp4").seconds < 28801
    with pytest.raises(ValueError, match=r"outside the video, which lasts 28800\."):
        read_frames(tmp_path / "v.mp4", end=32000)


def test_a_size_that_changes_inside_a_file(tmp_path: Path) -> None:
    parts = [_write(tmp_path / f"{n}.ts", "libx264", _moving(10, 48, 64 + 16 * n)).read_bytes() for n in (0, 1)]
    (tmp_path / "v.ts").write_bytes(b"".join(parts))
    with pytest.raises(ValueError, match=r"v\.ts: pictures are 48x64 pixels, and 48x80 at 0\.400 s\..*ffmpeg -i IN"):
        read_frames(tmp_path / "v.ts")
    assert read_frames(tmp_path / "v.ts", size=(24, 32)).pixels.shape == (20, 3, 24, 32)


def test_pictures_that_are_no_pictures(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", _moving(2), 8)
    (tmp_path / "v.mp4").rename(tmp_path / "v.jpg")
    with pytest.raises(
        ValueError, match=r"v\.jpg: cannot be read as an image.*It is a video \(mov,mp4.*the suffix of one"
    ):
        read_frames(tmp_path / "v.jpg")
    pictures = [Image.fromarray(image) for image in _moving(3)]
    for kind in ("webp", "png"):
        pictures[0].save(tmp_path / f"v.{kind}", save_all=True, append_images=pictures[1:])
        with pytest.raises(ValueError, match=rf"v\.{kind}: an animation of 3 pictures.*Convert it"):
            read_frames(tmp_path / f"v.{kind}")
        pictures[0].save(tmp_path / f"still.{kind}")
        assert len(read_frames(tmp_path / f"still.{kind}")) == 1
    for kind in ("png", "jpeg", "bmp", "webp"):
        pictures[0].save(tmp_path / "still.mp4", kind)
        with pytest.raises(ValueError, match=rf"still\.mp4: is an image \({kind}\) with the name of a video"):
            read_frames(tmp_path / "still.mp4")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"no video" * 99, r"damaged or no video"), (b"\x00" * 999, r"damaged or no video")],
)
def test_only_what_is_damaged_is_called_so(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=rf"v\.mp4: cannot be read as a video .*{said}"):
        probe(tmp_path / "v.mp4")
