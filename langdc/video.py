"""Read frames from videos, folders of frames and images, and write videos.

PyAV makes the index of a file (which frame is shown when); pixels come from decord where it is installed and can read
the file, else from PyAV, so indices and times are the same with both. Times are seconds since the first frame.
Frames are resized one by one while reading, to save memory. Letters: T frames.
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
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
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
DECODERS = ("auto", "decord", "pyav")
RESAMPLES = ("bilinear", "bicubic")
ROUNDING_SECONDS = 1e-3  # annotated bounds have three decimals

_TO_RGB: dict[str, Any] = {"format": "rgb24", "dst_colorspace": Colorspace.ITU601, "dst_color_range": ColorRange.JPEG}
if int(av.__version__.partition(".")[0]) >= 17:
    _TO_RGB["threads"] = 1  # older releases have no such keyword and one thread

Decoder = Callable[[Path, "_Index", Sequence[int]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class _VideoInfo:
    """How many `frames` of `height` x `width` pixels a file holds, at `fps` on average; an image lasts 0 `seconds`."""

    frames: int
    fps: float
    seconds: float
    height: int
    width: int


@dataclass(frozen=True)
class _Index:
    """Times of all frames and of key frames of a file, ascending, in `unit` seconds."""

    pts: list[int]
    keys: list[int]
    unit: Fraction
    rate: float
    """Frames per second as the file says, for files of one frame."""
    decord_trouble: str | None
    """Why decord would give wrong pixels without saying so, if it would."""

    @cached_property
    def times(self) -> list[float]:
        return [float((pts - self.pts[0]) * self.unit) for pts in self.pts]

    @property
    def fps(self) -> float:
        return (len(self.pts) - 1) / self.times[-1] if len(self.pts) > 1 else self.rate

    @property
    def seconds(self) -> float:
        return self.times[-1] + 1 / self.fps


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


def probe(path: str | Path, fps: float | None = None) -> _VideoInfo:
    """What a video, a folder of frames or an image holds, by decoding one frame; ValueError as in `read_frames`."""
    path = _existing(path, fps)
    if path.is_file() and is_image(path):
        height, width = _read_image(path).shape[:2]
        return _VideoInfo(1, 0.0, 0.0, height, width)
    index = _index(path, fps)
    height, width = next((_from_folder if path.is_dir() else _from_pyav)(path, index, [0])).shape[:2]
    return _VideoInfo(len(index.pts), index.fps, index.seconds, height, width)


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
    decoder: str = "auto",
    fps: float | None = None,
) -> Frames:
    """Read frames of a video: `frames` uniformly, or `frames_per_segment` in each of `segments`, or all of them.

    `start` and `end` (seconds since the first frame, end excluded) cut a clip first. `size` (height, width) resizes
    with antialiasing, `resample` being "bilinear" or "bicubic". A clip shorter than asked repeats frames, as does an
    image, a video of one frame. `decoder` is "auto", "decord" or "pyav". A folder of images is a video of
    `fps` frames per second, in the order of `frame_files`.

    Returns pixels [T,3,height,width] uint8 RGB and seconds [T] float32. ValueError, with the file, the reason and what
    to do, if the file is missing, unreadable or has no video, or if an argument does not fit it.
    """
    path = _existing(path, fps)
    _check_sampling(frames, segments, frames_per_segment)
    decode = _decoder(decoder)
    if resample not in RESAMPLES:
        raise ValueError(f"Unknown resample {resample!r}.{nearest(resample, RESAMPLES)}")
    if path.is_file() and is_image(path):
        if start is not None or end is not None:
            raise ValueError(f"{path}: an image has no duration; leave out start={start} and end={end}.")
        index, clip, times = None, [0], [0.0]
    else:
        index = _index(path, fps)
        clip, times = _clip(path, index, start, end), index.times
    each = frames_per_segment or frames or len(clip)
    picked = [clip[place] for place in _segment_indices(len(clip), segments or 1, each)]
    wanted = sorted(set(picked))
    decode = _from_folder if path.is_dir() else decode
    images = [_read_image(path)] if index is None else decode(path, index, wanted)
    pixels = torch.stack([_resize(image, size, resample) for image in images])
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


def _clip(path: Path, index: _Index, start: float | None, end: float | None) -> list[int]:
    """Numbers of the frames shown in [start, end), at least one."""
    first, last = 0.0 if start is None else start, index.seconds if end is None else end
    frame = 1 / index.fps
    if not (math.isfinite(first) and math.isfinite(last)) or first >= last:
        raise ValueError(f"{path}: clip from {start} to {end} s; start must come before end. Give both in seconds.")
    if first < 0 or first >= index.seconds or last > index.seconds + frame:
        raise ValueError(
            f"{path}: clip from {start} to {end} s lies outside the video, which lasts {index.seconds:.3f} s. "
            "Correct the bounds, or leave them out."
        )
    inside = [n for n, t in enumerate(index.times) if first - ROUNDING_SECONDS <= t < last - ROUNDING_SECONDS]
    return inside or [max(bisect_right(index.times, first) - 1, 0)]


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
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: the image is too large to be read ({error}). Make it smaller.") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error}). It is damaged; fetch it again.") from error


def _index(path: Path, fps: float | None) -> _Index:
    """Walk through the file's packets without decoding them; `fps` only of a folder of frames."""
    if fps is not None:
        numbers = list(range(len(frame_files(path))))
        return _Index(numbers, numbers, 1 / Fraction(fps), fps, None)
    with _explained(path), av.open(str(path)) as container:
        stream = _video_stream(container)
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and p.pts is not None]
        if not packets:
            raise ValueError(f"{path}: holds zero frames. Fetch or make it again.")
        assert stream.time_base is not None, "a stream with packets has a time base"
        pts, keys = sorted({pts for pts, _ in packets}), sorted({pts for pts, key in packets if key})
        trouble = _decord_trouble(packets, stream.codec_context.pix_fmt or "")
        return _Index(pts, keys, stream.time_base, float(stream.average_rate or 1), trouble)


def _decord_trouble(packets: list[tuple[int, bool]], pixel_format: str) -> str | None:
    """Both cases were seen with decord 0.6: colours off by 27 levels, and wrong frames after a seek."""
    if re.search(r"p\d+(le|be)$", pixel_format):
        return f"colours of more than 8 bits ({pixel_format})"
    last_key = packets[0][0]
    for pts, is_key in packets:
        if pts < last_key:
            return "frames that are shown before the key frame they follow"
        last_key = pts if is_key else last_key
    return None


def _video_stream(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
        raise ValueError(f"{container.name}: holds no video (only: {kinds}). Give a file with pictures.")
    return stream


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what a decoder raises into a ValueError that names the file and says what to do."""
    try:
        yield
    except (FFmpegError, OSError) as error:
        reason = str(error.strerror if isinstance(error, FFmpegError) else error)
        raise ValueError(f"{path}: cannot be read as a video ({reason}). It is damaged; fetch it again.") from error


def _from_pyav(path: Path, index: _Index, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """Decode the frames of ascending numbers, seeking to the key frame before one where that skips frames."""
    convert = VideoReformatter()
    with _explained(path), av.open(str(path)) as container:
        stream = _video_stream(container)
        stream.thread_type = "SLICE"  # frame threads would keep several full-size frames
        frames, shown = container.decode(stream), index.pts[0] - 1
        for number in wanted:
            key = index.keys[max(bisect_right(index.keys, index.pts[number]) - 1, 0)] if index.keys else index.pts[0]
            if key > max(shown, index.pts[0]):
                container.seek(key, stream=stream)
                frames = container.decode(stream)
            frame = next((f for f in frames if f.pts is not None and f.pts >= index.pts[number]), None)
            if frame is None or frame.pts != index.pts[number]:
                at = f"{index.times[number]:.3f} s"
                raise ValueError(f"{path}: frame {number} at {at} cannot be decoded. Fetch the file again.")
            shown = index.pts[number]
            # PyAV before 17 heeds a file's matrix and range only if it is told them
            colours = {"src_colorspace": frame.colorspace, "src_color_range": frame.color_range or ColorRange.MPEG}
            image = convert.reformat(frame, **colours, **_TO_RGB).to_ndarray()
            yield np.ascontiguousarray(np.rot90(image, frame.rotation // 90))


def _from_folder(path: Path, index: _Index, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The images of ascending numbers; ValueError if their sizes differ."""
    files, first = frame_files(path), None
    for number in wanted:
        image = _read_image(files[number])
        first = image.shape if first is None else first
        if image.shape != first:
            raise ValueError(
                f"{files[number]}: {image.shape[0]}x{image.shape[1]} pixels, but frames before it in this folder have "
                f"{first[0]}x{first[1]}. Frames of one video have one size; make the folder again."
            )
        yield image


def _from_decord(path: Path, index: _Index, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """As `_from_pyav`, with decord, which turns pictures upright itself."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # its reasons are in the errors it raises
    try:
        if index.decord_trouble:
            raise RuntimeError(f"it misreads {index.decord_trouble}")
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) != len(index.pts):
            raise RuntimeError(f"it sees {len(reader)} frames, the file holds {len(index.pts)}")
        for number in wanted:
            yield reader.get_batch([number]).asnumpy()[0]
    except (RuntimeError, decord.DECORDError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f'{path}: decord cannot read it ({reason}). Try decoder="pyav".') from error


def _from_any(path: Path, index: _Index, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """Use decord as far as it gets, then PyAV, which raises the error if it cannot either."""
    done = 0
    try:
        for image in _from_decord(path, index, wanted):
            yield image
            done += 1
    except ValueError as error:
        log.debug("%s", error)
        yield from _from_pyav(path, index, wanted[done:])


def _decoder(name: str) -> Decoder:
    if name not in DECODERS:
        raise ValueError(f"Unknown decoder {name!r}.{nearest(name, DECODERS)}")
    installed = importlib.util.find_spec("decord") is not None
    if name == "decord" and not installed:
        raise ValueError('decord is not installed. Run "pip install decord", or use decoder="pyav" (the same frames).')
    return {"auto": _from_any if installed else _from_pyav, "decord": _from_decord, "pyav": _from_pyav}[name]
