"""Read frames from videos, folders of frames and images, and write videos.

PyAV makes the index of a file (which frame is shown when) and reads it. Another decoder is used where it is asked for,
and its frames are compared with the index by their times. A frame is trusted by its own time, never because a number
fits. Times are seconds since the first frame. Frames are resized one by one while reading: that saves memory, and a
batch of them takes longer. Letters: T frames.
"""

import base64
import importlib.util
import io
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import EOFError as EndOfFile
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from langdc.jsonl import writing
from langdc.log import get_logger
from langdc.registry import nearest
from langdc.types import Frames

log = get_logger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
DECODERS = ("pyav", "decord", "torchcodec")
RESAMPLES = ("bilinear", "bicubic")
ROUNDING_SECONDS = 1e-3  # annotated bounds have three decimals
MAX_THREADS = 8  # that decode one file; each holds full-size frames
PACKETS_PER_THREAD = 16  # fewer are decoded before a thread pays
GAP = 8  # packets that are rather decoded than jumped over
INDEXED_FRAMES = 4_000_000  # of all files whose indices are kept, about 20 bytes each

_TO_RGB: dict[str, Any] = {"format": "rgb24", "dst_colorspace": Colorspace.ITU601, "dst_color_range": ColorRange.JPEG}
if int(av.__version__.partition(".")[0]) >= 17:
    _TO_RGB["threads"] = 1  # older releases have no such keyword and one thread


@dataclass(frozen=True)
class _VideoInfo:
    """How many `frames` of `height` x `width` pixels a file holds, at `fps` on average; an image lasts 0 `seconds`."""

    frames: int
    fps: float
    seconds: float
    height: int
    width: int


@dataclass(frozen=True)
class _Key:
    """A packet that decoding may start at: its time stamps, and its place among the file's packets."""

    pts: int
    dts: int | None
    place: int


@dataclass(frozen=True)
class _Index:
    """The frames that a file shows, by ascending time stamps `pts` in `unit` seconds."""

    pts: np.ndarray
    unit: Fraction
    rate: Fraction
    """Frames per second as the file says, for files of one frame."""
    last: int = 0
    """How long the last frame is shown, in units; 0 where the file does not say."""
    places: np.ndarray | None = None
    """The place of each frame's packet."""
    keys: tuple[_Key, ...] = ()
    """Ascending; without any, frames are counted from the start of the file."""
    only_pyav: str | None = None
    """Why another decoder would give wrong pixels without saying so, if it would."""

    @property
    def times(self) -> list[float]:
        first, unit = int(self.pts[0]), self.unit
        return [(pts - first) * unit.numerator / unit.denominator for pts in self.pts.tolist()]

    @property
    def last_time(self) -> float:
        return float((int(self.pts[-1]) - int(self.pts[0])) * self.unit)

    @property
    def fps(self) -> float:
        return (len(self.pts) - 1) / self.last_time if len(self.pts) > 1 else float(self.rate)

    @property
    def last_seconds(self) -> float:
        """How long the last frame is shown."""
        return float(self.last * self.unit) or 1 / self.fps

    @property
    def seconds(self) -> float:
        return self.last_time + self.last_seconds


@dataclass(frozen=True)
class _Video:
    """What is read: a video that is open, or a folder of frames or an image, without `container` and `stream`."""

    path: Path
    index: _Index
    container: Any = None
    stream: Any = None


Decoder = Callable[[_Video, Sequence[int]], Iterator[np.ndarray]]
_Read = Callable[[int], tuple[np.ndarray, float]]
_indices: dict[tuple[str, int, int], _Index] = {}  # by path, size and time of change; the oldest first


def _uniform_indices(total: int, frames: int) -> list[int]:
    """The middles of `frames` equal parts of `total` frames, repeated where there are fewer: floor((i + 1/2) * total /
    frames).
    """
    _require_positive(total=total, frames=frames)
    return [(2 * i + 1) * total // (2 * frames) for i in range(frames)]


def _segment_indices(total: int, segments: int, frames_per_segment: int) -> list[int]:
    """`frames_per_segment` frame numbers in each of `segments` equal parts of a video, by `_uniform_indices`. Part s
    begins at floor(s * total / segments); a part that would be empty holds the frame that it begins at.
    """
    _require_positive(total=total, segments=segments, frames_per_segment=frames_per_segment)
    bounds = [s * total // segments for s in range(segments + 1)]
    parts = [(start, _uniform_indices(max(end - start, 1), frames_per_segment)) for start, end in pairwise(bounds)]
    return [start + inner for start, indices in parts for inner in indices]


def is_image(path: str | Path) -> bool:
    """Whether a file counts as a still image, by its suffix."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def frame_files(folder: str | Path) -> list[Path]:
    """The images of a folder of frames, in the order of the numbers in their names ("9.jpg" comes before "10.jpg")."""
    images = [file for file in Path(folder).iterdir() if is_image(file) and not file.name.startswith(".")]
    return sorted(images, key=lambda file: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", file.name)])


def known_decoder(name: str) -> str:
    """The name of a decoder; ValueError if there is none of this name."""
    if name not in DECODERS:
        raise ValueError(f"Unknown decoder {name!r}.{nearest(name, DECODERS)}")
    return name


def decoder_trouble(name: str) -> str | None:
    """Why a decoder cannot be used here and what to install, in a sentence; None if it can. ValueError if unknown."""
    if known_decoder(name) != "pyav" and importlib.util.find_spec(name) is None:
        return f'{name} is not installed. Run "pip install {name}", or use decoder="pyav" (the same frames).'
    if name == "torchcodec":
        try:
            from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

            VideoDecoder(b"no video")  # loads the libraries, which importing may not
        except Exception as error:  # of whatever kind a broken library raises
            if isinstance(error, ImportError | OSError) or "Could not load" in str(error):
                return (
                    "torchcodec is installed and cannot be loaded: it needs FFmpeg's shared libraries (libavcodec, "
                    'libavformat, ...), which its wheel does not bring. Run "apt install ffmpeg" or "conda install '
                    f'ffmpeg", and take the torchcodec for torch {torch.__version__}; or use decoder="pyav" (the same '
                    "frames)."
                )
    return None


def probe(path: str | Path, fps: float | None = None) -> _VideoInfo:
    """What a video, a folder of frames or an image holds, by decoding one frame; ValueError as in `read_frames`."""
    with _opened(_existing(path, fps), fps) as video:
        height, width = next(_decoder("pyav", video.path)(video, [0])).shape[:2]
        if video.path.is_file() and is_image(video.path):
            return _VideoInfo(1, 0.0, 0.0, height, width)
        return _VideoInfo(len(video.index.pts), video.index.fps, video.index.seconds, height, width)


def read_frames(
    path: str | Path,
    *,
    frames: int | None = None,
    segments: int | None = None,
    frames_per_segment: int | None = None,
    start: float | None = None,
    end: float | None = None,
    size: tuple[int, int] | None = None,
    resample: str = "bilinear",
    decoder: str = "pyav",
    fps: float | None = None,
) -> Frames:
    """Read frames of a video: `frames` uniformly, or `frames_per_segment` in each of `segments`, or all of them.

    `start` and `end` (seconds since the first frame, end excluded) cut a clip first. `size` (height, width) resizes
    with antialiasing, `resample` being "bilinear" or "bicubic". A clip shorter than asked repeats frames, as does an
    image, a video of one frame. `decoder` is "pyav", "decord" or "torchcodec"; these two read common files only, in
    colours that may differ by 2 of 255 levels. A folder of images is a video of `fps` frames per second, in the order
    of `frame_files`.

    Returns pixels [T,3,height,width] uint8 RGB and seconds [T] float32. ValueError, with the file, the reason and what
    to do, if the file is missing, unreadable or has no video, or if an argument does not fit it.
    """
    path = _existing(path, fps)
    _check_sampling(frames, segments, frames_per_segment)
    decode = _decoder(decoder, path)
    if resample not in RESAMPLES:
        raise ValueError(f"Unknown resample {resample!r}.{nearest(resample, RESAMPLES)}")
    with _opened(path, fps) as video:
        times = video.index.times
        clip = _clip(path, video.index, times, start, end)
        each = frames_per_segment or frames or len(clip)
        picked = [clip[place] for place in _segment_indices(len(clip), segments or 1, each)]
        wanted = sorted(set(picked))
        images = [_resize(image, size, resample) for image in decode(video, wanted)]
    changed = next((n for n, image in enumerate(images) if image.shape != images[0].shape), None)
    if changed is not None:
        one, two = (f"{images[n].shape[1]}x{images[n].shape[2]}" for n in (0, changed))
        raise ValueError(
            f"{path}: pictures are {one} pixels, and {two} at {times[wanted[changed]]:.3f} s. Frames of one video have "
            'one size; convert it with "ffmpeg -i IN -c:v libx264 OUT.mp4".'
        )
    pixels = torch.stack(images)
    if len(wanted) < len(picked):
        pixels = pixels[[wanted.index(number) for number in picked]]
    return Frames(pixels, torch.tensor([times[number] for number in picked], dtype=torch.float32))


def write_video(path: str | Path, frames: np.ndarray | Tensor, fps: float) -> None:
    """Write frames [T,height,width,3] uint8 RGB as an H.264 mp4 (yuv420p, crf 18), with the same bytes every time. The
    file appears under its name only when it is complete. Height and width must be even (yuv420p halves them).
    """
    path, images = Path(path), np.asarray(frames)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or len(images) == 0:
        raise ValueError(f"{path}: frames are {images.dtype} {images.shape}; give uint8 [T,height,width,3], T > 0.")
    height, width = images.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: frames of {height}x{width}; H.264 needs even sizes. Crop a row or a column.")
    # without cpu-independent, x264 wrote other bytes for about one file in twenty, even in the same process
    options = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"}
    with writing(path, sync=False) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())


def jpeg_url(picture: Image.Image, quality: int) -> str:
    """A picture as the data URI of a JPEG file, for a page that needs no other files."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1.")


def _check_sampling(frames: int | None, segments: int | None, frames_per_segment: int | None) -> None:
    given = {"frames": frames, "segments": segments, "frames_per_segment": frames_per_segment}
    asked = {name: number for name, number in given.items() if number is not None}
    if set(asked) not in (set(), {"frames"}, {"segments", "frames_per_segment"}):
        raise ValueError(f"Give frames, or segments and frames_per_segment together, or none of them; given: {asked}.")
    _require_positive(**asked)


def _existing(path: str | Path, fps: float | None) -> Path:
    path = Path(path)
    if not path.is_file() and not path.is_dir():
        raise ValueError(f"{path}: there is no such file. Check the path and the folder it is relative to.")
    if path.is_dir():
        if fps is None or not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"{path}: a folder of frames does not say how fast they follow; give fps > 0, not {fps}.")
        if not frame_files(path):
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"{path}: the folder holds no images ({kinds}). Fetch it again.")
        return path
    if fps is not None:
        raise ValueError(f"{path}: fps={fps} is for a folder of frames, and this is none. Leave it out.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes). Fetch or make it again.")
    return path


def _clip(path: Path, index: _Index, times: list[float], start: float | None, end: float | None) -> list[int]:
    """Numbers of the frames shown in [start, end), at least one."""
    if start is None and end is None:
        return list(range(len(times)))
    if path.is_file() and is_image(path):
        raise ValueError(f"{path}: an image has no duration; leave out start={start} and end={end}.")
    first, last = 0.0 if start is None else start, index.seconds if end is None else end
    if not (math.isfinite(first) and math.isfinite(last)) or first >= last:
        raise ValueError(f"{path}: clip from {start} to {end} s; start must come before end. Give both in seconds.")
    if first < 0 or first >= index.seconds or last > index.seconds + index.last_seconds:
        raise ValueError(
            f"{path}: clip from {start} to {end} s lies outside the video, which lasts {index.seconds:.3f} s. "
            "Correct the bounds, or leave them out."
        )
    inside = [n for n, t in enumerate(times) if first - ROUNDING_SECONDS <= t < last - ROUNDING_SECONDS]
    return inside or [max(bisect_right(times, first) - 1, 0)]


def _resize(image: np.ndarray, size: tuple[int, int] | None, resample: str) -> Tensor:
    """[height,width,3] uint8 to [3,*size] uint8."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    if size is None or tuple(pixels.shape[1:]) == tuple(size):
        return pixels.contiguous()
    small = torch.nn.functional.interpolate(pixels[None].float(), size=tuple(size), mode=resample, antialias=True)
    return small[0].round().clamp(0, 255).to(torch.uint8)


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
                raise ValueError(
                    f"{path}: an animation of {image.n_frames} pictures, where one is read. Convert it to a video "  # pyright: ignore[reportAttributeAccessIssue]
                    "(.mp4), or save its pictures in a folder."
                )
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: the image is too large to be read ({error}). Make it smaller.") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(
            f"{path}: cannot be read as an image ({error}). It is damaged or no image; fetch it again, or give it the "
            "suffix of what it is."
        ) from error


# --- which frames there are -------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path, fps: float | None) -> Iterator[_Video]:
    """A video with its index; `fps` only of a folder of frames. What a decoder raises inside becomes a ValueError."""
    if path.is_dir() or is_image(path):
        rate = Fraction(fps or 1)
        yield _Video(path, _Index(np.arange(len(frame_files(path)) if path.is_dir() else 1), 1 / rate, rate))
        return
    with _explained(path), _container(path) as (container, stream):
        stat = path.stat()
        key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
        index = _indices.get(key)
        if index is None:
            index = _walked(path, container, stream)
            while sum(len(kept.pts) for kept in list(_indices.values())) > INDEXED_FRAMES:
                _indices.pop(next(iter(_indices), key), None)
            _indices[key] = index
        yield _Video(path, index, container, stream)


@contextmanager
def _container(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    with av.open(f"file:{path}") as container:  # without "file:", what is before a colon counts as a protocol
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
            raise ValueError(f"{path}: holds no video (only: {kinds}). Give a file with pictures.")
        yield container, stream


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what a decoder raises into a ValueError that names the file and says what to do."""
    try:
        yield
    except (FFmpegError, OSError) as error:
        reason = str(error.strerror if isinstance(error, FFmpegError) else error)
        advice = 'Fetch it again, or convert it with "ffmpeg -i IN -c:v libx264 OUT.mp4".'
        if isinstance(error, InvalidDataError | EndOfFile):
            advice = "It is damaged or no video; fetch it again."
        raise ValueError(f"{path}: cannot be read as a video ({reason}). {advice}") from error


def _walked(path: Path, container: InputContainer, stream: VideoStream) -> _Index:
    """The index, from the file's packets where they tell it; else by decoding the file once."""
    packets = [(p.pts, p.dts, p.is_keyframe, p.is_discard, p.duration or 0) for p in container.demux(stream) if p.size]
    if not packets:
        raise ValueError(f"{path}: holds zero frames. Fetch or make it again.")
    rate, first = Fraction(stream.average_rate or 1), packets[0][0]
    read = [dts for _, dts, *_ in packets if dts is not None]
    # what a cut marks as not to be shown is decoded, since other frames may need it
    shown = sorted((p[0], place) for place, p in enumerate(packets) if not p[3] and p[0] is not None)
    pts = np.array([stamp for stamp, _ in shown], dtype=np.int64)
    if (
        not shown
        or any(stamp is None for stamp, *_ in packets)
        or (np.diff(pts) <= 0).any()
        or read != sorted(read)
        or not packets[0][2]  # it does not begin with a key frame
        or pts[0] < first
        or (container.format.name == "avi" and stream.codec_context.has_b_frames)  # its times are guesses
    ):
        return _counted(path, rate)
    assert stream.time_base is not None, "a stream with packets has a time base"
    places = np.array([place for _, place in shown], dtype=np.int32)
    keys = sorted(
        (_Key(p[0], p[1], place) for place, p in enumerate(packets) if p[2] and p[0] is not None),
        key=lambda key: key.pts,
    )
    last, trouble = packets[shown[-1][1]][-1], _only_pyav(container, stream, packets)
    return _Index(pts, stream.time_base, rate, last, places, tuple(keys), trouble)


def _counted(path: Path, rate: Fraction) -> _Index:
    """The index of a file whose packets do not tell what is shown when: recordings that begin inside a group, raw
    streams, joined files. Times are those of its frames, or by its rate where these do not ascend.
    """
    with _container(path) as (container, stream):
        _set_threads(stream, MAX_THREADS * PACKETS_PER_THREAD)
        pts = [frame.pts for frame in container.decode(stream)]
        if not pts:
            raise ValueError(f"{path}: holds zero frames. Fetch or make it again.")
        reason, unit = "frames that have to be counted", stream.time_base
    if unit is None or None in pts or any(two <= one for one, two in pairwise(pts)):  # pyright: ignore[reportOperatorIssue]
        return _Index(np.arange(len(pts)), 1 / rate, rate, only_pyav=reason)
    return _Index(np.array(pts, dtype=np.int64), unit, rate, only_pyav=reason)


def _only_pyav(container: InputContainer, stream: VideoStream, packets: Sequence[tuple]) -> str | None:
    """All these cases were seen: wrong frames after a jump, and colours off by 27 levels."""
    codec, pixel_format = stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt or ""
    if not re.search("mp4|matroska", container.format.name):
        return f"frames after a jump in files of the kind {container.format.name}"
    if codec not in ("h264", "hevc", "vp8", "vp9", "av1"):
        return f"frames after a jump in {codec}"
    if re.search(r"p\d+(le|be)$", pixel_format):
        return f"colours of more than 8 bits ({pixel_format})"
    last_key = packets[0][0]
    for pts, _, is_key, *_ in packets:
        if pts < last_key:
            return "frames that are shown before the key frame they follow"
        last_key = pts if is_key else last_key
    return None


# --- decoders ---------------------------------------------------------------------------------------------------------


def _decoder(name: str, path: Path) -> Decoder:
    trouble = decoder_trouble(name)
    if trouble:
        raise ValueError(trouble)
    if path.is_dir():
        return _from_folder
    if is_image(path):
        return lambda video, wanted: iter([_read_image(path)])
    return _from_pyav if name == "pyav" else _checked(name)


def _from_folder(video: _Video, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The images of ascending numbers; ValueError if their sizes differ."""
    files, first = frame_files(video.path), None
    for number in wanted:
        image = _read_image(files[number])
        first = image.shape if first is None else first
        if image.shape != first:
            raise ValueError(
                f"{files[number]}: {image.shape[0]}x{image.shape[1]} pixels, but frames before it in this folder have "
                f"{first[0]}x{first[1]}. Frames of one video have one size; make the folder again."
            )
        yield image


def _from_pyav(video: _Video, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of ascending numbers, by jumps to key frames; what these do not bring is read from the start."""
    convert, done = VideoReformatter(), 0
    for frames in (_by_jumps, _from_start):
        for frame in frames(video, wanted[done:]):
            done += 1
            # PyAV before 17 heeds a file's matrix and range only if it is told them
            colours = {"src_colorspace": frame.colorspace, "src_color_range": frame.color_range or ColorRange.MPEG}
            image = convert.reformat(frame, **colours, **_TO_RGB).to_ndarray()
            yield np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
        if done == len(wanted):
            return
        log.debug("%s: frame %d is not where the file's key frames lead.", video.path, wanted[done])
    time = f"{video.index.times[wanted[done]]:.3f} s"
    raise ValueError(f"{video.path}: frame {wanted[done]} at {time} cannot be decoded. Fetch the file again.")


def _by_jumps(video: _Video, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    """Decode from the key frames before the frames; ends early where a frame is not what the index says."""
    index, stream, ends = video.index, video.stream, [key.pts for key in video.index.keys]
    if index.places is None:
        return
    runs: list[tuple[_Key, list[int]]] = []
    places: list[int] = []  # of the last packet that each run needs
    for number in wanted:
        pts, place = int(index.pts[number]), int(index.places[number])
        key = index.keys[bisect_right(ends, pts) - 1]
        if runs and key.place <= places[-1] + GAP:
            runs[-1][1].append(pts)
            places[-1] = max(places[-1], place)
        else:
            runs.append((key, [pts]))
            places.append(place)
    _set_threads(stream, max((last - key.place for (key, _), last in zip(runs, places, strict=True)), default=0))
    try:
        for key, due in runs:
            for frame in _run(video, key, set(due)):
                if frame.pts == key.pts and key.place and not frame.key_frame:
                    return  # the file calls a frame a key frame that is none
                if due and frame.pts == due[0]:
                    yield frame
                    del due[0]
            if due:
                return
    except FFmpegError:
        return


def _run(video: _Video, key: _Key, due: set[int]) -> Iterator[VideoFrame]:
    """Decode from a key frame until the packets of the frames that are `due` were read."""
    context = video.stream.codec_context
    disposable = context.codec.canonical_name == "h264"  # others do not promise that frames stay the same
    for packet in _packets(video, key):
        wanted = packet.pts in due
        # of frames that are neither wanted nor referred to, nothing is decoded
        context.skip_frame = "DEFAULT" if wanted or not disposable else "NONREF"
        due.discard(packet.pts)
        yield from video.stream.decode(packet)
        if not due:
            break
    yield from video.stream.decode(None)


def _packets(video: _Video, key: _Key) -> Iterator[Packet]:
    """Packets from a key frame on; none if it is not found."""
    for seconds in (0, 1, 10):  # some formats jump to what is decoded at a time, which comes after the key frame
        video.container.seek(key.pts - round(seconds / video.index.unit), stream=video.stream)
        packets = video.container.demux(video.stream)
        for packet in packets:
            if packet.pts == key.pts and packet.is_keyframe:
                yield packet
                yield from (following for following in packets if following.size)
                return
            if packet.dts is not None and key.dts is not None and packet.dts > key.dts:
                break


def _from_start(video: _Video, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    """Decode the whole file up to the last frame."""
    index, due = video.index, iter(wanted)
    number = next(due, None)
    with _container(video.path) as (container, stream):
        _set_threads(stream, MAX_THREADS * PACKETS_PER_THREAD)
        for count, frame in enumerate(container.decode(stream)):
            if number is None:
                return
            if count == number if index.places is None else frame.pts == index.pts[number]:
                yield frame
                number = next(due, None)


def _set_threads(stream: VideoStream, packets: int) -> None:
    """Choose how many threads decode a run of packets: one for a short run, at most this process's share."""
    stream.thread_type = "FRAME"
    stream.codec_context.thread_count = max(1, min(torch.get_num_threads(), MAX_THREADS, packets // PACKETS_PER_THREAD))


def _checked(name: str) -> Decoder:
    """Another decoder, whose number of frames and their times must be those of the index."""

    def decode(video: _Video, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        times = video.index.times
        try:
            if video.index.only_pyav:
                raise RuntimeError(f"it misreads {video.index.only_pyav}")
            count, read = (_decord if name == "decord" else _torchcodec)(video)
            if count != len(times):
                raise RuntimeError(f"it sees {count} frames, the file holds {len(times)}")
            for number in wanted:
                image, seconds = read(number)
                if abs(seconds - times[number]) > ROUNDING_SECONDS:
                    raise RuntimeError(f"it gives the frame at {seconds:.3f} s for the one at {times[number]:.3f} s")
                yield image
        except (RuntimeError, IndexError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f'{video.path}: {name} cannot read it ({reason}). Try decoder="pyav".') from error

    return decode


def _decord(video: _Video) -> tuple[int, _Read]:
    """How many frames decord sees, and a function that gives one, upright, and its seconds since the first."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # its reasons are in the errors it raises
    reader = decord.VideoReader(str(video.path), num_threads=1)

    def read(number: int) -> tuple[np.ndarray, float]:
        return reader.get_batch([number]).asnumpy()[0], float(reader.get_frame_timestamp(number)[0])

    return len(reader), read


def _torchcodec(video: _Video) -> tuple[int, _Read]:
    """As `_decord`, with torchcodec."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    reader = VideoDecoder(str(video.path), dimension_order="NHWC", num_ffmpeg_threads=torch.get_num_threads())
    first = float(int(video.index.pts[0]) * video.index.unit)

    def read(number: int) -> tuple[np.ndarray, float]:
        frame = reader.get_frame_at(number)
        return frame.data.numpy(), frame.pts_seconds - first

    return len(reader), read
