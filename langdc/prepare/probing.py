"""Looks into media files in child processes, so that a decoder that hangs or crashes ends only its child."""

import multiprocessing
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.logging
import torch

from langdc.hashing import quick_hash
from langdc.video import frame_files, is_image, try_clips

TOLERANCE = 0.02
"""How far, as a share, a header's duration may be from that of the frames, beside two frames."""
_CUT_SHARE = 0.1
_VIDEO = re.compile(
    rb"....ftyp(?!avif|heic|mif1)|\x1aE\xdf\xa3|RIFF....AVI |FLV\x01|\x00\x00\x01\xba|\x30\x26\xb2\x75", re.S
)
_IMAGE = re.compile(rb"\x89PNG|\xff\xd8\xff|BM|RIFF....WEBP", re.S)
_DAMAGED = re.compile("concealing|error while decoding|Invalid NAL", re.I)
_KINDS = {
    "is empty": "empty",
    "holds no video|list of other files": "no video",
    "truncated": "truncated",
    "lies outside the video|has no duration": "bounds",
    "unknown codec|codec that PyAV|[Dd]ecoder not found": "codec",
    "size of its pictures|pixels, (and|but)": "size changes",
}


class Job(NamedTuple):
    """A file, or folder of `fps` frames a second, and the clips to try, each (start, end); its size and time."""

    path: str
    fps: float | None
    clips: tuple[tuple[float | None, float | None], ...]
    size: int
    changed: int


def _probe(job: Job) -> dict[str, Any]:
    """{"hash" of the content, "shape": [height, width, seconds], "faults": [[number of the clip or None, kind, reason,
    whether it is fatal]]}.
    """
    path, found = Path(job.path), {"hash": None, "shape": None, "faults": []}
    head = b""
    try:
        files = frame_files(path) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: the folder holds no images")
        some = [files[place] for place in sorted({0, len(files) // 2, len(files) - 1})]
        hashes = [quick_hash(file) for file in some]
        found["hash"] = hashes[0] if path.is_file() else f"folder:{len(files)} {hashes}"
        with some[0].open("rb") as file:
            head = file.read(32)
        if job.clips:
            found |= _tried(job, head)
    except Exception as error:  # of whatever kind a library raises
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        found["faults"] = [[None, _kind(reason), reason, True]]
    if head and any(fault[1] == "corrupt" for fault in found["faults"]) and is_image(path) and _VIDEO.match(head):
        found["faults"] = [[None, "mislabelled", "it is a video with the name of an image", True]]
    if not job.clips or not path.is_file():
        return found
    if not is_image(path) and _IMAGE.match(head):
        found["faults"] = [[None, "mislabelled", "it is an image with the name of a video", True]]
    elif (place := _parts(path, head)[0]) > job.size:  # explains what else was seen
        cut = f"it was cut off: its parts take {place} bytes, and {job.size} are there; fetch it again"
        others = [fault for fault in found["faults"] if fault[1] in ("bounds", "codec")]
        found["faults"] = [[None, "truncated", cut, True], *others]
    return found


def _tried(job: Job, head: bytes) -> dict[str, Any]:
    with av.logging.Capture(local=True) as said:
        info, promised, troubles = try_clips(job.path, job.clips, job.fps)
    faults: list[list] = [[n, _kind(reason), reason, True] for n, reason in enumerate(troubles) if reason]
    lines = [text.strip() for _, _, text in said if _DAMAGED.search(text)]
    if lines and not any(kind == "corrupt" for _, kind, *_ in faults):
        faults.append([None, "corrupt", f"pictures are damaged; the decoder says: {lines[0]}", True])
    for seconds in filter(None, (promised, _parts(Path(job.path), head)[1] if promised else None)):
        if abs(seconds - info.seconds) > TOLERANCE * seconds + 2 / (info.fps or 1):
            reason = f"its header promises {seconds:.3f} s, its frames last {info.seconds:.3f} s"
            short = seconds is promised and info.seconds < (1 - _CUT_SHARE) * seconds
            faults.append([None, "truncated" if short else "length", reason, short])
            break
    return {"shape": [info.height, info.width, info.seconds], "faults": faults}


def _kind(reason: str) -> str:
    return next((kind for pattern, kind in _KINDS.items() if re.search(pattern, reason)), "corrupt")


def _parts(path: Path, head: bytes) -> tuple[int, float]:
    """Where an mp4 or AVI ends by the lengths of its parts, and the seconds that an mp4 promises; 0 if it does not."""
    size, place, seconds = path.stat().st_size, 0, 0.0
    if head[:4] == b"RIFF":
        return int.from_bytes(head[4:8], "little") + 8, 0.0
    with path.open("rb") as file:
        while head[4:8] == b"ftyp" and place + 8 <= size:
            file.seek(place)
            part = file.read(16)
            length = int.from_bytes(part[8:] if part[:4] == b"\0\0\0\1" else part[:4])
            if length < 8:  # up to the end, or none
                break
            if part[4:8] == b"moov":
                movie = file.read(64)  # 8 bytes of its own header were read; mvhd comes first
                times = movie[20:32] if movie[:1] == b"\1" else movie[12:20]
                seconds = int.from_bytes(times[4:]) / max(int.from_bytes(times[:4]), 1)
            place += length
    return place, seconds


# ---- the processes


def probed(jobs: Iterable[Job], processes: int, seconds: float) -> Iterator[tuple[Job, dict[str, Any], bool]]:
    """Jobs with what was found (`_probe`), in the order in which they are done, and whether the child lived.

    A child that takes longer than `seconds`, or crashes, is replaced.
    """
    context, remaining = multiprocessing.get_context("forkserver"), iter(jobs)
    context.set_forkserver_preload([__name__])  # so that a child begins at once
    idle: list[tuple[Connection, Any]] = []
    busy: dict[Connection, tuple[Job, Any]] = {}
    try:
        while True:
            while len(busy) < processes and (job := next(remaining, None)) is not None:
                connection, child = idle.pop() if idle else _child(context, seconds)
                busy[connection] = job, child
                with suppress(BrokenPipeError):  # a child that died meanwhile is found below
                    connection.send(job)
            if not busy:
                return
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                job, child = busy.pop(connection)
                try:
                    found = connection.recv()
                    idle.append((connection, child))
                    yield job, found, True
                except (EOFError, ConnectionResetError):
                    child.join()
                    yield job, {"hash": None, "shape": None, "faults": [_death(child.exitcode, seconds)]}, False
    finally:
        for child in [child for _, child in (*idle, *busy.values())]:
            child.kill()
            child.join()


def _child(context: Any, seconds: float) -> tuple[Connection, Any]:
    here, there = context.Pipe()
    child = context.Process(target=_serve, args=(there, seconds), daemon=True)
    child.start()
    there.close()
    try:
        here.recv()  # that it has begun; what goes wrong before is no file's fault
    except EOFError:
        raise OSError("A process that looks into media could not be started; see above for the reason.") from None
    return here, child


def _serve(connection: Connection, seconds: float) -> None:
    """Answer jobs until the parent is gone. The alarm ends the process wherever it is, also inside a library."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    torch.set_num_threads(1)
    av.logging.set_level(av.logging.ERROR)
    with suppress(EOFError, OSError):
        connection.send("begun")
        while True:
            job = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, seconds)
            found = _probe(job)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(found)


def _death(code: int | None, seconds: float) -> list:
    if code == -signal.SIGALRM:
        return [None, "hangs", f"was not read within {seconds:g} s (--timeout)", True]
    name = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
    return [None, "crashes", f"the decoder crashed ({name})", True]
