"""What a video file shows, and the decoders that read it.

PyAV makes the index of a file (which frame is shown when) and reads it. Another decoder is used where it is asked for,
and its frames are compared with the index by their times. A frame is trusted by its own time, never because a number
fits; what damage hides is concealed by what was decoded before, so damaged files are decoded from their start. Times
are seconds since the first frame.
"""

import importlib
import importlib.util
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

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

from langdc.log import get_logger
from langdc.registry import nearest

log = get_logger(__name__)

DECODERS = ("pyav", "decord", "torchcodec")
ROUNDING_SECONDS = 1e-3  # annotated bounds have three decimals
MAX_THREADS = 8  # that decode one file; each holds full-size frames
PACKETS_PER_THREAD = 16  # fewer are decoded before a thread pays
LEVELS = 2  # of 255, that colours of decoders may differ by
GAP = 8  # packets that are rather decoded than jumped over
INDEXED_FRAMES = 4_000_000  # of all files whose indices are kept, about 20 bytes each
# These fill what damage leaves out from other frames; the rest leave what was in memory before.
EXPLODE = {"err_detect": "explode"}  # damage is an error
CONCEALING = re.compile("h26[134]|mpeg[124]|msmpeg4|wmv|vc1|flv|rv")

_TO_RGB: dict[str, Any] = {"format": "rgb24", "dst_colorspace": Colorspace.ITU601, "dst_color_range": ColorRange.JPEG}
if int(av.__version__.partition(".")[0]) >= 17:
    _TO_RGB["threads"] = 1  # older releases have no such keyword and one thread


class _Key(NamedTuple):
    """A packet that decoding may start at: its time stamps, its place among the packets, its first byte in the file."""

    pts: int
    dts: int | None
    place: int
    byte: int | None


@dataclass(frozen=True)
class Index:
    """The frames that a file shows, by ascending time stamps `pts` in `unit` seconds."""

    pts: np.ndarray
    unit: Fraction
    rate: Fraction
    """Frames per second as the file says, for what its time stamps do not tell."""
    last: int = 0
    """How long the last frame is shown, in units; 0 where the file does not say."""
    places: np.ndarray | None = None
    """The place of each frame's packet."""
    keys: tuple[_Key, ...] = ()
    """Ascending; without any, frames are counted from the start of the file."""
    leading: bool = False
    """Whether frames of H.264 are shown before the key frame that they follow in the file."""
    one_thread: bool = False
    """Whether frames may need others that are missing, which several threads replace in other ways than one."""
    clean: bool = False
    """Whether the whole file was decoded and has no damage."""
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
        """How long the last frame is shown; where the file does not say, as long as half of the others at least."""
        between = float(np.median(np.diff(self.pts)) * self.unit) if len(self.pts) > 2 else float(1 / self.rate)
        return float(self.last * self.unit) or between

    @property
    def seconds(self) -> float:
        return self.last_time + self.last_seconds


@dataclass(frozen=True)
class Video:
    """What is read: a video that is open, or a folder of frames or an image, without `container` and `stream`."""

    path: Path
    index: Index
    container: Any = None
    stream: Any = None


Decoder = Callable[[Video, Sequence[int]], Iterator[np.ndarray]]
_Read = Callable[[int], tuple[np.ndarray, float]]
_indices: dict[tuple[str, int, int], Index] = {}  # by path, size and time of change; the oldest first


def known_decoder(name: str) -> str:
    """The name of a decoder; ValueError if there is none of this name."""
    if name not in DECODERS:
        raise ValueError(f"Unknown decoder {name!r}.{nearest(str(name), DECODERS)}")
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


def decoder_of(name: str) -> Decoder:
    """A function that gives frames [height,width,3] of an open file, upright, by ascending numbers. ValueError if this
    decoder cannot be used here; the function raises one for what it cannot read.
    """
    trouble = decoder_trouble(name)
    if trouble:
        raise ValueError(trouble)
    return _from_pyav if name == "pyav" else _checked(name)


# --- which frames there are -------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[Video]:
    """A file with its index, which is made at the first opening; what FFmpeg raises inside becomes a ValueError."""
    try:
        with _container(path) as (container, stream):
            stat = path.stat()
            key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
            index = _indices.get(key)
            if index is None:
                index = _walked(path, container, stream)
                while sum(len(kept.pts) for kept in list(_indices.values())) > INDEXED_FRAMES:
                    _indices.pop(next(iter(_indices), key), None)
                _indices[key] = index
            yield Video(path, index, container, stream)
    except (FFmpegError, OSError) as error:
        reason = str(error.strerror if isinstance(error, FFmpegError) else error)
        advice = 'Fetch it again, or convert it with "ffmpeg -i IN -c:v libx264 OUT.mp4".'
        if isinstance(error, InvalidDataError | EndOfFile):
            advice = "It is damaged or no video; fetch it again."
        raise ValueError(f"{path}: cannot be read as a video ({reason}). {advice}") from error


@contextmanager
def _container(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    # without "file:", what is before a colon counts as a protocol
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
            raise ValueError(f"{path}: holds no video (only: {kinds}). Give a file with pictures.")
        if stream.codec_context is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ValueError(f"{path}: holds a video in a code that PyAV {av.__version__} does not know. Convert it.")
        yield container, stream


def _demuxed(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    with suppress(IndexError):  # PyAV trips at the end of a file over streams that began late
        yield from container.demux(stream)


def _in_order(path: Path, clean: bool) -> Iterator[VideoFrame]:
    """All frames of a file, as a decoder gives them from its start. `clean`: there is no damage, or an FFmpegError.
    Otherwise it is concealed, in one thread, since it looks different in several; what cannot be read before the first
    frame is left out, since recordings may begin with frames that need others.
    """
    first, trouble = True, None
    with _container(path) as (container, stream):
        if clean or not CONCEALING.match(stream.codec_context.codec.canonical_name):
            stream.codec_context.options = EXPLODE
        _set_threads(stream, MAX_THREADS * PACKETS_PER_THREAD if clean else 0)
        for packet in _demuxed(container, stream):
            try:
                for frame in stream.decode(packet):
                    if clean and frame.is_corrupt:
                        raise InvalidDataError(0, "a damaged frame")
                    first = False
                    yield frame
            except FFmpegError as error:
                trouble = error
                if clean or not first:
                    raise
    if first and trouble:
        raise trouble


def _walked(path: Path, container: InputContainer, stream: VideoStream) -> Index:
    """The index, from the file's packets where they tell it; else by decoding the file once."""
    packets = [
        (p.pts, p.dts, p.is_keyframe, p.is_discard, p.duration or 0, p.pos, p.is_corrupt)
        for p in _demuxed(container, stream)
        if p.size
    ]
    while packets and packets[-1][-1]:  # where the file was cut off
        packets.pop()
    if not packets:
        raise ValueError(f"{path}: holds zero frames. Fetch or make it again.")
    rate = Fraction(stream.guessed_rate or stream.average_rate or 1)
    stamps = np.array([p[0] for p in packets if p[0] is not None], dtype=np.int64)
    read = [p[1] for p in packets if p[1] is not None]
    # what a cut marks as not to be shown is decoded, since other frames may need it
    shown = sorted((p[0], place) for place, p in enumerate(packets) if not p[3] and p[0] is not None)
    pts = np.array([stamp for stamp, _ in shown], dtype=np.int64)
    untold = (
        not shown
        or len(stamps) < len(packets)
        or any(p[-1] for p in packets)  # parts of the file are missing
        or stream.codec_context.name.startswith("msmpeg4")  # its key frames leave settings of before
        or (np.diff(pts) <= 0).any()
        or read != sorted(read)
        or not packets[0][2]  # it does not begin with a key frame
        or pts[0] < stamps[0]
    )
    # stamps that may not know that frames are stored out of order
    guessed = stream.codec_context.has_b_frames and (container.format.name == "avi" or (np.diff(stamps) > 0).all())
    if untold or (guessed and not all(p[2] for p in packets)):
        frames, clean = _decoded(path, damaged=any(p[-1] for p in packets))
        if untold or [frame[0] for frame in frames] != pts.tolist():
            return _counted(frames, clean, rate)
    assert stream.time_base is not None, "a stream with packets has a time base"
    places = np.array([place for _, place in shown], dtype=np.int32)
    keys = sorted(_Key(int(stamps[place]), p[1], place, p[5]) for place, p in enumerate(packets) if p[2])
    leading = bool((stamps < np.maximum.accumulate(np.where([p[2] for p in packets], stamps, stamps[0]))).any())
    last, trouble = packets[shown[-1][1]][4], _only_pyav(container, stream, leading)
    leading &= stream.codec_context.codec.canonical_name == "h264"
    lost = container.format.name == "mpegts" and len({two - one for one, two in pairwise(read)}) > 1
    return Index(pts, stream.time_base, rate, last, places, tuple(keys), leading, leading or lost, only_pyav=trouble)


def _decoded(path: Path, damaged: bool) -> tuple[list[tuple[Any, ...]], bool]:
    """Of each frame that a file shows its time stamp, that of the packet that completes it, and their unit; and whether
    they are without damage.
    """
    for clean in (False,) if damaged else (True, False):
        with suppress(FFmpegError) if clean else nullcontext():
            frames = [(frame.pts, frame.dts, frame.time_base) for frame in _in_order(path, clean)]
            if not frames:
                raise ValueError(f"{path}: holds zero frames. Fetch or make it again.")
            return frames, clean
    raise AssertionError("the second decoding returns or raises")


def _counted(frames: list[tuple[Any, ...]], clean: bool, rate: Fraction) -> Index:
    """The index of a file whose packets do not tell what is shown when: recordings that begin inside a group, raw
    streams, joined files. Its times are those of the frames, or of the packets that complete them (AVI), whichever go
    back less often. Where these are missing or go back, frames follow each other at the file's rate.
    """
    columns, unit = [[frame[n] for frame in frames] for n in (0, 1)], frames[0][2]
    backwards = [sum(two <= one for one, two in pairwise(s for s in column if s is not None)) for column in columns]
    stamps, reason = columns[backwards[1] < backwards[0]], "frames that have to be counted"
    known = next(((number, stamp) for number, stamp in enumerate(stamps) if stamp is not None), None)
    if known is None or unit is None:
        return Index(np.arange(len(frames)), 1 / rate, rate, clean=clean, only_pyav=reason)
    step = max(1, round(1 / (rate * unit)))
    times, shift = [known[1] - (known[0] + 1) * step], 0
    for stamp in stamps:
        time = times[-1] + step if stamp is None else stamp + shift
        if time <= times[-1]:
            shift, time = shift + times[-1] + step - time, times[-1] + step
        times.append(time)
    return Index(np.array(times[1:], dtype=np.int64), unit, rate, step, clean=clean, only_pyav=reason)


def _only_pyav(container: InputContainer, stream: VideoStream, leading: bool) -> str | None:
    """All these cases were seen: wrong frames after a jump, and colours off by 27 levels."""
    codec, pixel_format = stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt or ""
    if not re.search("mp4|matroska", container.format.name):
        return f"frames after a jump in files of the kind {container.format.name}"
    if codec not in ("h264", "hevc", "vp8", "vp9", "av1"):
        return f"frames after a jump in {codec}"
    if re.search(r"p\d+(le|be)$", pixel_format):
        return f"colours of more than 8 bits ({pixel_format})"
    return "frames that are shown before the key frame they follow" if leading else None


# --- reading ----------------------------------------------------------------------------------------------------------


def _from_pyav(video: Video, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of ascending numbers, by jumps to key frames; what these do not bring is read from the start."""
    convert, done = VideoReformatter(), 0
    for frames in (_by_jumps, _from_start):
        for frame in frames(video, wanted[done:]):
            done += 1
            # PyAV before 17 ignores the colour matrix and range of a file unless they are given
            colours = {"src_colorspace": frame.colorspace, "src_color_range": frame.color_range or ColorRange.MPEG}
            image = convert.reformat(frame, **colours, **_TO_RGB).to_ndarray()
            yield np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
        if done == len(wanted):
            return
        log.debug("%s: frame %d is not where the file's key frames lead.", video.path, wanted[done])
    time = f"{video.index.times[wanted[done]]:.3f} s"
    raise ValueError(f"{video.path}: frame {wanted[done]} at {time} cannot be decoded. Fetch the file again.")


def _by_jumps(video: Video, wanted: Sequence[int]) -> Iterator[VideoFrame]:
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
    longest = max((last - key.place for (key, _), last in zip(runs, places, strict=True)), default=0)
    # what is concealed depends on what was decoded before; frames without those that they need count as damaged, too
    if not index.leading:
        stream.codec_context.options = EXPLODE
    _set_threads(stream, 0 if index.one_thread else longest)
    try:
        for key, due in runs:
            for frame in _run(video, key, set(due)):
                if frame.pts is not None and frame.pts < key.pts:
                    continue  # it needs frames before the key frame
                if frame.is_corrupt or (frame.pts == key.pts and key.place and not frame.key_frame):
                    return  # damaged, or no key frame although the file says so
                if due and frame.pts == due[0]:
                    yield frame
                    del due[0]
            if due:
                return
    except FFmpegError:
        return


def _run(video: Video, key: _Key, due: set[int]) -> Iterator[VideoFrame]:
    """Decode from a key frame until the packets of the frames that are `due` were read."""
    for packet in _packets(video, key):
        due.discard(packet.pts)
        yield from video.stream.decode(packet)
        if not due:
            break
    yield from video.stream.decode(None)


def _packets(video: Video, key: _Key) -> Iterator[Packet]:
    """Packets from a key frame on; none if it is not found."""
    for seconds in (0, 1, 10):  # some formats jump to what is decoded at a time, which comes after the key frame
        video.container.seek(key.pts - round(seconds / video.index.unit), stream=video.stream)
        packets = _demuxed(video.container, video.stream)
        for packet in packets:
            if (packet.pts, packet.pos) == (key.pts, key.byte) and packet.is_keyframe:
                yield packet
                yield from (following for following in packets if following.size)
                return
            if packet.dts is not None and key.dts is not None and packet.dts > key.dts:
                break


def _from_start(video: Video, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    """Decode the whole file up to the last frame."""
    index, due = video.index, iter(wanted)
    number = next(due, None)
    for count, frame in enumerate(_in_order(video.path, index.clean)):
        if number is None:
            return
        if count == number if index.places is None else frame.pts == index.pts[number]:
            yield frame
            number = next(due, None)


def _set_threads(stream: VideoStream, packets: int) -> None:
    """Choose how many threads decode a run of packets: one for a short run, at most this process's share."""
    if not stream.codec_context.is_open:
        threads = min(torch.get_num_threads(), MAX_THREADS, packets // PACKETS_PER_THREAD)
        stream.thread_type, stream.codec_context.thread_count = "FRAME", max(1, threads)


def _checked(name: str) -> Decoder:
    """Another decoder. PyAV reads a file of which it sees another number of frames, gives one of another time than that
    of the index, or gives other pixels for the first or the last wanted frame: decord's times are not those of its
    pictures, and pictures of both are wrong where key frames are marked wrongly.
    """

    def decode(video: Video, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        times, done, errors = video.index.times, 0, (RuntimeError, IndexError)
        if name == "decord":
            errors = (*errors, importlib.import_module("decord").DECORDError)
        try:
            if video.index.only_pyav:
                raise RuntimeError(f"it misreads {video.index.only_pyav}")
            count, read = (_decord if name == "decord" else _torchcodec)(video)
            if count != len(times):
                raise RuntimeError(f"it sees {count} frames, the file holds {len(times)}")
            ends = sorted({wanted[0], wanted[-1]})
            expected = dict(zip(ends, _from_pyav(video, ends), strict=True))
            for number in wanted:
                image, seconds = read(number)
                if abs(seconds - times[number]) > ROUNDING_SECONDS:
                    raise RuntimeError(f"it gives the frame at {seconds:.3f} s for the one at {times[number]:.3f} s")
                other = expected.get(number, image)
                if other.shape != image.shape or np.abs(np.subtract(other, image, dtype=np.int16)).max() > LEVELS:
                    raise RuntimeError(f"it gives another picture at {seconds:.3f} s")
                yield image
                done += 1
        except errors as error:
            _warn(f"{video.path}: read by PyAV in place of {name}: {str(error).strip().splitlines()[0]}.")
            yield from _from_pyav(video, wanted[done:])

    return decode


@cache
def _warn(text: str) -> None:
    log.warning(text)


def _decord(video: Video) -> tuple[int, _Read]:
    """How many frames decord sees, and a function that gives one, upright, and its seconds since the first."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # its reasons are in the errors it raises
    reader = decord.VideoReader(str(video.path), num_threads=1)

    def read(number: int) -> tuple[np.ndarray, float]:
        return reader.get_batch([number]).asnumpy()[0], float(reader.get_frame_timestamp(number)[0])

    return len(reader), read


def _torchcodec(video: Video) -> tuple[int, _Read]:
    """As `_decord`, with torchcodec."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    reader = VideoDecoder(str(video.path), dimension_order="NHWC", num_ffmpeg_threads=torch.get_num_threads())
    first = float(int(video.index.pts[0]) * video.index.unit)

    def read(number: int) -> tuple[np.ndarray, float]:
        frame = reader.get_frame_at(number)
        return frame.data.numpy(), frame.pts_seconds - first

    return len(reader), read
