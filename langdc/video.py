"""Read frames from videos, folders of frames and images, and write videos.

`langdc/decoders.py` says which frames a file shows, and decodes them. Times are seconds since the first frame. Frames
are resized one by one while reading: that saves memory, and a batch of them takes longer. Letters: T frames.
"""

import base64
import io
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from langdc.data.records import IMAGE_SUFFIXES
from langdc.decoders import A_LIST, ROUNDING_SECONDS, Decoder, Index, Video, decoder_of, lists_files, opened
from langdc.jsonl import writing
from langdc.registry import nearest
from langdc.types import Frames

VIDEO_SUFFIXES = (
    ".3gp",
    ".avi",
    ".flv",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".mts",
    ".ts",
    ".webm",
    ".wmv",
)
"""What counts as a video in a folder; a file that is named may be called anything."""
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")  # others of Pillow run programs, or are seldom looked after
RESAMPLES = ("bilinear", "bicubic")


@dataclass(frozen=True)
class _VideoInfo:
    """How many `frames` of `height` x `width` pixels a file holds, at `fps` on average; an image lasts 0 `seconds`."""

    frames: int
    fps: float
    seconds: float
    height: int
    width: int


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
    with _opened(_existing(path, fps), fps) as video:
        height, width = next(_decoder("pyav", video.path)(video, [0])).shape[:2]
        if video.path.is_file() and is_image(video.path):
            return _VideoInfo(1, 0.0, 0.0, height, width)
        return _VideoInfo(len(video.index.pts), video.index.fps, video.index.seconds, height, width)


def try_clips(
    path: str | Path, clips: Sequence[tuple[float | None, float | None]], fps: float | None = None
) -> tuple[_VideoInfo, float | None, list[str]]:
    """What a file or folder of frames holds, the seconds that its header promises, and why each clip cannot be read
    ("" if it can): its first, middle and last frame are decoded. ValueError if the file cannot be read at all.
    """
    with _opened(_existing(path, fps), fps) as video:
        troubles, wanted = [""] * len(clips), set()
        for number, (start, end) in enumerate(clips):
            try:
                clip = _clip(video.path, video.index, video.index.times, start, end)
                wanted |= {clip[0], clip[len(clip) // 2], clip[-1]}
            except ValueError as error:
                troubles[number] = str(error)
        stream, seconds, promised = video.stream, video.index.seconds, None
        if stream is None:
            seconds *= video.path.is_dir()
        elif "mpeg" in video.container.format.name:
            pass  # these have no such header
        elif stream.duration:
            promised = float(stream.duration * stream.time_base)
        elif len(video.container.streams) == 1 and video.container.duration:
            promised = video.container.duration / av.time_base
        try:
            images = [image.shape for image in _decoder("pyav", video.path)(video, sorted(wanted))]
        except ValueError:
            if len(clips) == 1:
                raise
            images = []
        if len(set(images)) > 1:
            troubles = [trouble or "the size of its pictures changes" for trouble in troubles]
        height, width = images[0][:2] if images else (0, 0)
        info = _VideoInfo(len(video.index.pts), video.index.fps if seconds else 0.0, seconds, height, width)
    if wanted and not images:  # which clips are damaged
        troubles = [trouble or _trouble(path, clip, fps) for trouble, clip in zip(troubles, clips, strict=True)]
    return info, promised, troubles


def _trouble(path: str | Path, clip: tuple[float | None, float | None], fps: float | None) -> str:
    try:
        return try_clips(path, [clip], fps)[2][0]
    except ValueError as error:
        return str(error)


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
    times: Sequence[float] | None = None,
) -> Frames:
    """Read frames of a video: `frames` uniformly, or `frames_per_segment` in each of `segments`, or all of them; with
    `times`, in place of those, the frames that are shown nearest to these seconds, in this order.

    `start` and `end` (seconds since the first frame, end excluded) cut a clip first. `size` (height, width) resizes
    with antialiasing, `resample` being "bilinear" or "bicubic". A clip shorter than asked repeats frames, as does an
    image, a video of one frame. `decoder` is "pyav", "decord" or "torchcodec", whose
    colours may differ by 2 of 255 levels; what these two would misread is read by PyAV, with a warning. A folder of
    images is a video of `fps` frames per second, in the order of `frame_files`.

    Returns pixels [T,3,height,width] uint8 RGB and seconds [T] float32. ValueError, with the file, the reason and what
    to do, if the file is missing, unreadable or has no video, or if an argument does not fit it.
    """
    path = _existing(path, fps)
    _check_sampling(frames, segments, frames_per_segment)
    decode = _decoder(decoder, path)
    if resample not in RESAMPLES:
        raise ValueError(f"Unknown resample {resample!r}.{nearest(resample, RESAMPLES)}")
    with _opened(path, fps) as video:
        known = video.index.times
        clip = _clip(path, video.index, known, start, end)
        if times is None:
            each = frames_per_segment or frames or len(clip)
            picked = [clip[place] for place in _segment_indices(len(clip), segments or 1, each)]
        else:
            _require_positive(times=len(times))
            shown = np.array([known[number] for number in clip])
            picked = [clip[int(np.abs(shown - seconds).argmin())] for seconds in times]
        wanted = sorted(set(picked))
        images = [_resize(image, size, resample) for image in decode(video, wanted)]
    changed = next((n for n, image in enumerate(images) if image.shape != images[0].shape), None)
    if changed is not None:
        one, two = (f"{images[n].shape[1]}x{images[n].shape[2]}" for n in (0, changed))
        raise ValueError(
            f"{path}: pictures are {one} pixels, and {two} at {known[wanted[changed]]:.3f} s. Frames of one video have "
            'one size; convert it with "ffmpeg -i IN -c:v libx264 OUT.mp4".'
        )
    pixels = torch.stack(images)
    if len(wanted) < len(picked):
        pixels = pixels[[wanted.index(number) for number in picked]]
    return Frames(pixels, torch.tensor([known[number] for number in picked], dtype=torch.float32))


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
    with writing(path, sync=False) as partial, av.open(f"file:{partial}", "w", format="mp4") as container:
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


def _clip(path: Path, index: Index, times: list[float], start: float | None, end: float | None) -> list[int]:
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
        with Image.open(path, formats=_FORMATS) as image:
            if not (image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False)):
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
            pictures: int = image.n_frames  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # of whatever kind a damaged image makes Pillow raise
        large = isinstance(error, Image.DecompressionBombError)
        advice = "Make it smaller." if large else "It is damaged or no image; fetch it again."
        if lists_files(path):
            advice = f"{A_LIST} Give the image itself."
        with suppress(ValueError), opened(path) as video:
            kind = video.container.format.name
            if not re.search("image|pipe", kind):
                advice = f"It is a video ({kind}); give it the suffix of one, such as .mp4."
        raise ValueError(f"{path}: cannot be read as an image ({error}). {advice}") from error
    raise ValueError(
        f"{path}: an animation of {pictures} pictures, where one is read. Convert it to a video (.mp4), or save its "
        "pictures in a folder."
    )


@contextmanager
def _opened(path: Path, fps: float | None) -> Iterator[Video]:
    """A file, a folder with `fps` frames per second, or an image, and which frames it shows."""
    if path.is_dir() or is_image(path):
        rate, frames = Fraction(fps or 1), len(frame_files(path)) if path.is_dir() else 1
        yield Video(path, Index(np.arange(frames), 1 / rate, rate))
    else:
        with opened(path) as video:
            yield video


def _decoder(name: str, path: Path) -> Decoder:
    decode = decoder_of(name)
    if path.is_dir():
        return _from_folder
    return decode if not is_image(path) else lambda video, wanted: iter([_read_image(path)])


def _from_folder(video: Video, wanted: Sequence[int]) -> Iterator[np.ndarray]:
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
