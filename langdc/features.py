"""Frozen outputs kept: what encoders saw and what a frozen captioner thought, computed once per video.

Each file holds one video's tensors under a key made of everything that can change them. Several processes divide the
work and wait for each other's files.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from langdc.log import console, get_logger, is_first, rank, world_size
from langdc.types import FeatureGrid, Frames
from langdc.video import frame_files, read_frames

log = get_logger(__name__)

WAIT_SECONDS = 1800  # for another process's next file before giving up


@dataclass(frozen=True)
class Clip:
    """Which frames of which file, or folder of frames: the sampling that every part of a run uses."""

    path: Path
    segments: int
    frames_per_segment: int
    start: float | None = None
    end: float | None = None
    size: tuple[int, int] | None = None
    """Height and width that frames are resized to while reading; the file's own where None."""
    resample: str = "bilinear"
    fps: float | None = None
    """Frames per second, of a folder of frames only."""

    def read(self) -> Frames:
        """Decode the frames; ValueError as `langdc.video.read_frames`."""
        return read_frames(
            self.path,
            segments=self.segments,
            frames_per_segment=self.frames_per_segment,
            start=self.start,
            end=self.end,
            size=self.size,
            resample=self.resample,
            fps=self.fps,
        )

    def key(self) -> str:
        """A hash of the content, of the file or the folder's frames, and the sampling."""
        if self.path.is_dir():
            digest = hashlib.sha256(f"{self.fps}".encode())
            for frame in frame_files(self.path):
                digest.update(hashlib.sha256(frame.read_bytes()).digest())
        else:
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        digest.update(f"{self.segments} {self.frames_per_segment} {self.start} {self.end}".encode())
        if self.size is not None:
            digest.update(f"{self.size} {self.resample}".encode())
        return digest.hexdigest()


def module_hash(*modules: nn.Module) -> str:
    """A hash of the tensors of modules."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class TensorStore:
    """Tensors by key, in memory and, with a folder, on disk, one file a key, written whole or not at all."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, dict[str, Tensor]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._memory or (self.folder is not None and self._file(key).is_file())

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        if key not in self._memory:
            if self.folder is None:
                raise KeyError(key)
            self._memory[key] = load_file(self._file(key))
        return self._memory[key]

    def __setitem__(self, key: str, tensors: dict[str, Tensor]) -> None:
        self._memory[key] = tensors
        if self.folder is None:
            return
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".partial{rank()}")
        save_file(tensors, partial)
        partial.rename(file)

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"

    def fill(
        self, keys: Sequence[str], compute: Callable[[list[int]], list[dict[str, Tensor]]], size: int, what: str
    ) -> None:
        """Compute what is missing, `size` keys at a time; processes take turns and wait for the others' files."""
        missing = [number for number, key in enumerate(keys) if key not in self]
        # shares of all keys, not of the missing ones: a process that starts later finds fewer missing
        mine = [n for n in missing if self.folder is None or n % world_size() == rank()]
        with Progress(console=console, disable=not is_first() or not mine) as progress:
            task = progress.add_task(what, total=len(mine))
            for first in range(0, len(mine), size):
                chunk = mine[first : first + size]
                for number, tensors in zip(chunk, compute(chunk), strict=True):
                    self[keys[number]] = tensors
                progress.advance(task, len(chunk))
        self._wait([keys[number] for number in missing], what)

    def _wait(self, keys: list[str], what: str) -> None:
        for key in keys:
            deadline = time.monotonic() + WAIT_SECONDS  # a new one with each file: slow is not stuck
            while key not in self:
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"{what}: another process delivered nothing for {WAIT_SECONDS} s. Look at what it printed and "
                        "start again."
                    )
                time.sleep(0.05)


class FeatureStore:
    """Raw encoder grids of clips. `see` runs the encoders on decoded frames, `identity` names their weights.

    Values are kept as `dtype`; the same clip is never decoded or encoded twice.
    """

    def __init__(
        self,
        see: Callable[[list[Frames]], list[Mapping[str, FeatureGrid]]],
        identity: str,
        folder: Path | None = None,
        dtype: torch.dtype = torch.bfloat16,
        size: int = 16,
    ) -> None:
        self.see = see
        self.identity = identity
        self.dtype = dtype
        self.size = size
        self.store = TensorStore(folder)
        self._keys: dict[Clip, str] = {}

    def key(self, clip: Clip) -> str:
        """The key of a clip under these encoders."""
        if clip not in self._keys:
            text = f"{clip.key()} {self.identity} {self.dtype}"
            self._keys[clip] = hashlib.sha256(text.encode()).hexdigest()
        return self._keys[clip]

    def fill(self, clips: Sequence[Clip]) -> None:
        """Decode and encode every clip that is not there yet."""
        clips = list(dict.fromkeys(clips))
        with ThreadPoolExecutor(2) as readers:

            def compute(chunk: list[int]) -> list[dict[str, Tensor]]:
                videos = list(readers.map(Clip.read, [clips[number] for number in chunk]))
                return [self._pack(video, grids) for video, grids in zip(videos, self.see(videos), strict=True)]

            self.store.fill([self.key(clip) for clip in clips], compute, self.size, "Encoding videos")

    def _pack(self, video: Frames, grids: Mapping[str, FeatureGrid]) -> dict[str, Tensor]:
        packed = {name: grid.values.to("cpu", self.dtype).contiguous() for name, grid in grids.items()}
        return {**packed, "seconds": video.seconds.double()}

    def get(self, clip: Clip, dtype: torch.dtype = torch.float32) -> tuple[dict[str, FeatureGrid], Tensor]:
        """The raw grids and frame times [T] of a clip; encodes it if need be."""
        if self.key(clip) not in self.store:
            self.fill([clip])
        tensors = dict(self.store[self.key(clip)])
        seconds = tensors.pop("seconds")
        return {name: FeatureGrid(values.to(dtype)) for name, values in tensors.items()}, seconds
