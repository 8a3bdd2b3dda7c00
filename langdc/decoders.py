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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.error import EOFError as EndOfFile
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from langdc.log import get_logger
from langdc.registry import nearest
from langdc.videoindex import EXPLODE, Index, Key, container_of, demuxed, in_order, set_threads, walked

log = get_logger(__name__)

DECODERS = ("pyav", "decord", "torchcodec")
ROUNDING_SECONDS = 1e-3  # annotated bounds have three decimals
LEVELS = 2  # of 255, that colours of decoders may differ by
GAP = 8  # packets that are rather decoded than jumped over
INDEXED_FRAMES = 4_000_000  # of all files whose indices are kept, about 20 bytes each

_LIST = re.compile(  # how lists of HLS, FFmpeg's concat, players, SDP, DASH and SMIL begin
    rb"(?is)(\xef\xbb\xbf)?\s*(#EXTM3U|ffconcat|file '|\[playlist\]|<asx|v=0\s+o=|(<\?xml.*?)?<(MPD|smil)\b)"
)
A_LIST = "It is a list of other files, which is not read."
_TO_RGB: dict[str, Any] = {"format": "rgb24", "dst_colorspace": Colorspace.ITU601, "dst_color_range": ColorRange.JPEG}
if int(av.__version__.partition(".")[0]) >= 17:
    _TO_RGB["threads"] = 1  # older releases have no such keyword and one thread


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
        with container_of(path) as (container, stream):
            stat = path.stat()
            key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
            index = _indices.get(key)
            if index is None:
                index = walked(path, container, stream)
                while sum(len(kept.pts) for kept in list(_indices.values())) > INDEXED_FRAMES:
                    _indices.pop(next(iter(_indices), key), None)
                _indices[key] = index
            yield Video(path, index, container, stream)
    except (FFmpegError, OSError) as error:
        reason = str(error.strerror if isinstance(error, FFmpegError) else error)
        advice = 'Fetch it again, or convert it with "ffmpeg -i IN -c:v libx264 OUT.mp4".'
        if lists_files(path):
            advice = f"{A_LIST} Give the video itself."
        elif isinstance(error, InvalidDataError | EndOfFile):
            advice = "It is damaged or no video; fetch it again."
        raise ValueError(f"{path}: cannot be read as a video ({reason}). {advice}") from error


def lists_files(path: Path) -> bool:
    """Whether a file begins as lists of other files do, whatever its name."""
    with suppress(OSError), path.open("rb") as file:
        return _LIST.match(file.read(512)) is not None
    return False


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
    runs: list[tuple[Key, list[int]]] = []
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
    set_threads(stream, 0 if index.one_thread else longest)
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


def _run(video: Video, key: Key, due: set[int]) -> Iterator[VideoFrame]:
    """Decode from a key frame until the packets of the frames that are `due` were read."""
    for packet in _packets(video, key):
        due.discard(packet.pts)
        yield from video.stream.decode(packet)
        if not due:
            break
    yield from video.stream.decode(None)


def _packets(video: Video, key: Key) -> Iterator[Packet]:
    """Packets from a key frame on; none if it is not found."""
    for seconds in (0, 1, 10):  # some formats jump to what is decoded at a time, which comes after the key frame
        video.container.seek(key.pts - round(seconds / video.index.unit), stream=video.stream)
        packets = demuxed(video.container, video.stream)
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
    for count, frame in enumerate(in_order(video.path, index.clean)):
        if number is None:
            return
        if count == number if index.places is None else frame.pts == index.pts[number]:
            yield frame
            number = next(due, None)


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
            if video.stream.frames > video.path.stat().st_size:  # decord ends the process
                raise RuntimeError("the header promises more frames than the file has bytes")
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
    reader = decord.VideoReader(str(video.path.absolute()), num_threads=1)  # of others, a beginning may be a protocol

    def read(number: int) -> tuple[np.ndarray, float]:
        return reader.get_batch([number]).asnumpy()[0], float(reader.get_frame_timestamp(number)[0])

    return len(reader), read


def _torchcodec(video: Video) -> tuple[int, _Read]:
    """As `_decord`, with torchcodec."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    reader = VideoDecoder(
        str(video.path.absolute()), dimension_order="NHWC", num_ffmpeg_threads=torch.get_num_threads()
    )
    first = float(int(video.index.pts[0]) * video.index.unit)

    def read(number: int) -> tuple[np.ndarray, float]:
        frame = reader.get_frame_at(number)
        return frame.data.numpy(), frame.pts_seconds - first

    return len(reader), read
