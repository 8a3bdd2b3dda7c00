"""Which frames a video file shows, and when: from its packets, or from decoding it once where these do not tell.

Times are seconds since the first frame.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

MAX_THREADS = 8  # that decode one file; each holds full-size frames
PACKETS_PER_THREAD = 16  # fewer are decoded before a thread pays
MAX_PIXELS = 2 * 89_478_485  # of a picture, as Pillow
LIMITED = {"max_pixels": str(MAX_PIXELS)}
EXPLODE = {"err_detect": "explode", **LIMITED}  # damage is an error
# Formats that hold what they show. Others name files or addresses (hls, concat, dash, sdp, image2) or run scripts.
FORMATS = (
    "4xm,amv,apng,apv,asf,av1,avi,avs2,avs3,bink,bmp_pipe,cavsvideo,cine,dhav,dirac,dv,evc,film_cpk,flic,flv,gif,gxf,"
    "h261,h263,h264,hevc,ipmovie,ivf,jpeg_pipe,kux,live_flv,lxf,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,mtv,mxf,"
    "nsv,nut,nuv,obu,ogg,png_pipe,pva,rm,roq,smjpeg,smk,swf,ty,vc1,vc1test,vvc,webp_pipe,wtv,yuv4mpegpipe"
)
_OPEN = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
# These fill what damage leaves out from other frames; the rest leave what was in memory before.
CONCEALING = re.compile("h26[134]|mpeg[124]|msmpeg4|wmv|vc1|flv|rv")


class Key(NamedTuple):
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
    keys: tuple[Key, ...] = ()
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


@contextmanager
def container_of(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """An open file and its video; ValueError if it holds none that can be decoded."""
    # without "file:", what is before a colon counts as a protocol; older PyAVs crash where streams that come late (flv)
    # are given options, too
    with av.open(f"file:{path}", container_options=_OPEN, metadata_errors="replace") as container:
        stream, kind = container.streams.best("video"), container.format.name
        if kind.endswith("_pipe"):
            raise ValueError(f"{path}: is an image ({kind[:-5]}) with the name of a video. Give it as image, renamed.")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
            raise ValueError(f"{path}: holds no video (only: {kinds}). Give a file with pictures.")
        if stream.codec_context is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ValueError(f"{path}: holds a video in a codec that PyAV {av.__version__} does not know. Convert it.")
        if stream.width * stream.height > MAX_PIXELS:
            raise ValueError(f"{path}: pictures of {stream.width}x{stream.height} are too large. Make them smaller.")
        stream.codec_context.options = LIMITED
        yield container, stream


def demuxed(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The packets of a stream, and an empty one at its end."""
    with suppress(IndexError):  # PyAV raises it at the end of a file with streams that begin late
        yield from container.demux(stream)


def in_order(path: Path, clean: bool) -> Iterator[VideoFrame]:
    """All frames of a file, as a decoder gives them from its start. `clean`: there is no damage, or an FFmpegError.
    Otherwise it is concealed, in one thread, since it looks different in several; what cannot be read before the first
    frame is left out, since recordings may begin with frames that need others.
    """
    first, trouble = True, None
    with container_of(path) as (container, stream):
        if clean or not CONCEALING.match(stream.codec_context.codec.canonical_name):
            stream.codec_context.options = EXPLODE
        set_threads(stream, MAX_THREADS * PACKETS_PER_THREAD if clean else 0)
        for packet in demuxed(container, stream):
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


def walked(path: Path, container: InputContainer, stream: VideoStream) -> Index:
    """The index of a file: from its packets or, where these do not suffice, from decoding it once."""
    packets = [
        (p.pts, p.dts, p.is_keyframe, p.is_discard, p.duration or 0, p.pos, p.is_corrupt)
        for p in demuxed(container, stream)
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
    keys = sorted(Key(int(stamps[place]), p[1], place, p[5]) for place, p in enumerate(packets) if p[2])
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
            frames = [(frame.pts, frame.dts, frame.time_base) for frame in in_order(path, clean)]
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


def set_threads(stream: VideoStream, packets: int) -> None:
    """Choose how many threads decode a run of packets: one for a short run, at most this process's share."""
    if not stream.codec_context.is_open:
        threads = min(torch.get_num_threads(), MAX_THREADS, packets // PACKETS_PER_THREAD)
        stream.thread_type, stream.codec_context.thread_count = "FRAME", max(1, threads)
