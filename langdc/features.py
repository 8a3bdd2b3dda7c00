"""Encoder features of videos, computed once and stored under a key made of everything that can change them.

Several processes divide the work and wait for each other's files.
Letters: T frames, H W patch grid, C encoder width.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from langdc.config import FeatureType
from langdc.devices import at_once
from langdc.generate import require_finite
from langdc.hashing import module_hash, text_hash
from langdc.interfaces import Backbone
from langdc.log import get_logger, track
from langdc.store import TensorStore
from langdc.types import FeatureGrid, Frames, FrameSpec, Grids
from langdc.video import frame_files, read_frames

logger = get_logger(__name__)

TYPES: dict[FeatureType, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8": torch.float8_e4m3fn,
}
_ROUNDED = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_FLOAT8 = torch.finfo(torch.float8_e4m3fn).max  # 448
READER = "pyav"  # before 0.3 some files were read at wrong frames, which are not taken for these
_DECODED_BYTES = 2**30
"""Frames that wait for the encoders take about as much at most, where more than one video for each thread waits."""
_ENCODING = 32
"""Bytes of intermediate results that encoding takes for a byte of frames, of which batches are made."""
_BATCH = 64
"""Videos and images of a batch at most."""


def read_spec(spec: FrameSpec) -> Frames:
    """Decode the frames of a spec; ValueError as `langdc.video.read_frames`."""
    return read_frames(**vars(spec))


def _decoded(clips: Sequence[FrameSpec]) -> Iterator[Frames | ValueError]:
    """The frames of each clip, or why they cannot be read; as many threads decode as torch computes with."""
    threads = max(2, min(16, torch.get_num_threads()))
    with ThreadPoolExecutor(threads) as readers:
        decoding = (readers.submit(read_spec, clip) for clip in clips)
        ahead = deque(islice(decoding, 2 * threads))
        while ahead:
            try:
                video = ahead.popleft().result()
            except ValueError as error:
                yield error
                ahead.extend(islice(decoding, 1))
            else:
                room = max(threads, min(4 * threads, _DECODED_BYTES // video.pixels.nbytes))
                ahead.extend(islice(decoding, max(0, room - len(ahead))))
                yield video


def _spec_key(spec: FrameSpec) -> str:
    """A hash of the content, of the file or the folder's frames, and of what is read of it."""
    if spec.path.is_dir():
        digest = hashlib.sha256(f"{spec.fps}".encode())
        for frame in frame_files(spec.path):
            digest.update(hashlib.sha256(frame.read_bytes()).digest())
    else:
        with spec.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(READER.encode())
    digest.update(f"{spec.segments} {spec.frames_per_segment} {spec.start} {spec.end}".encode())
    if spec.size is not None:
        digest.update(f"{spec.size} {spec.resample}".encode())
    if spec.times is not None:
        digest.update(f"times {spec.times}".encode())
    return digest.hexdigest()


def preprocessing_hash(backbone: Backbone) -> str:
    """A hash of all that decides what a backbone's encoders see of frames: their tensors and settings."""
    return text_hash(f"{module_hash(backbone.encoders)} {backbone.preprocessing}")


class FeatureStore:
    """Encoder grids of clips. `encoders` runs the encoders on decoded frames, `identity` identifies their weights.

    Values are stored as `dtype`. Small clips are encoded in batches. A value then differs by at most 1e-5 of the
    largest one of its grid from what is encoded alone, where encoders compute in float32; encoders in bfloat16 round
    by more. The two may round to neighbouring values of `dtype`. `found` and `made` count the clips of `fill` that were
    stored already, and those that were not.
    """

    def __init__(
        self,
        encoders: Callable[[list[Frames]], Sequence[Grids]],
        identity: str,
        folder: Path | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.encoders, self.identity, self.dtype = encoders, identity, dtype
        self.store = TensorStore(folder)
        self.found = self.made = 0
        self._keys: dict[FrameSpec, str] = {}
        self._where = torch.device("cpu")  # of the encoders, as their first output says

    @classmethod
    def of(
        cls, backbone: Backbone, folder: Path | None, dtype: FeatureType = "bfloat16", saliency: bool = False
    ) -> "FeatureStore":
        """The store of a backbone's encoder features; with `saliency`, also their attention."""
        need = frozenset({"saliency"} if saliency else ())
        identity = f"{preprocessing_hash(backbone)}{' saliency' if saliency else ''}"
        return cls(lambda videos: backbone.encode(videos, need), identity, folder, TYPES[dtype])

    def key(self, clip: FrameSpec) -> str:
        """The key of a clip under these encoders."""
        if clip not in self._keys:
            self._keys[clip] = text_hash(f"{_spec_key(clip)} {self.identity} {self.dtype}")
        return self._keys[clip]

    def keys(self, clips: Sequence[FrameSpec]) -> list[str]:
        """The key of each clip, for which all files are read."""
        return list(map(self.key, track(clips, len(clips), "Reading files")))

    def fill(self, clips: Sequence[FrameSpec], failed: Callable[[FrameSpec, ValueError], None] | None = None) -> None:
        """Decode and encode every clip that is not stored yet. What cannot be decoded or encoded raises ValueError, or
        goes to `failed` and is left out; then other processes are not waited for.
        """
        clips = list(dict.fromkeys(clips))
        keys = self.keys(clips)
        hits = len(keys) - len(self.store.missing(keys))
        self.found, self.made = self.found + hits, self.made + len(keys) - hits
        if self.store.folder is not None and keys:
            text = "Of %d videos and images %d are stored in %s (hit rate %.1f %%)."
            logger.info(text, len(keys), hits, self.store.folder, 100 * hits / len(keys))
        encode = partial(self._encoded, clips, failed=failed)
        self.store.fill(keys, encode, "Encoding videos", wait=failed is None)

    def _encoded(
        self, clips: list[FrameSpec], numbers: list[int], failed: Callable[[FrameSpec, ValueError], None] | None
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        remaining = iter(numbers)
        for batch in self._batches([clips[number] for number in numbers]):
            grids = iter(self._together([video for video in batch if isinstance(video, Frames)]))
            for number, video in zip(islice(remaining, len(batch)), batch, strict=True):
                try:
                    if isinstance(video, ValueError):
                        raise video
                    encoded = self.encode(video, clips[number].path, next(grids))
                except ValueError as error:
                    if failed is None:
                        raise
                    failed(clips[number], error)
                else:
                    yield number, encoded

    def _batches(self, clips: list[FrameSpec]) -> Iterator[list[Frames | ValueError]]:
        """The frames of clips, or why they cannot be read, in batches to encode; a CPU gains by small ones only."""
        batch, largest = [], 1
        for video in _decoded(clips):
            size = video.pixels.nbytes if isinstance(video, Frames) else 1
            largest = max(largest, size)
            if len(batch) >= min(_BATCH, at_once(_ENCODING * largest, self._where)):
                yield batch
                batch, largest = [], size
            batch.append(video)
        if batch:
            yield batch

    def _together(self, videos: list[Frames]) -> Sequence[Grids | None]:
        """The grids of a batch; None for videos that are to be encoded alone, as after an error of one of them."""
        with suppress(ValueError, torch.OutOfMemoryError):
            if len(videos) > 1:
                return self.encoders(videos)
        return [None] * len(videos)

    def encode(self, video: Frames, path: Path, grids: Grids | None = None) -> dict[str, Tensor]:
        """What is stored of the frames of a file, whose grids may be known; ValueError if they are not finite."""
        if grids is None:
            (grids,) = self.encoders([video])
        try:
            require_finite(grids)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        packed: dict[str, Tensor] = {"seconds": video.seconds.double()}
        for name, grid in grids.items():
            self._where = grid.values.device
            packed |= _pack(name, grid.values, self.dtype)
            for number, values in enumerate(grid.extra):
                packed |= _pack(f"{name}.extra{number}", values, self.dtype)
            if grid.saliency is not None:
                packed[f"{name}.saliency"] = grid.saliency.cpu().contiguous()
            if grid.size is not None:
                packed[f"{name}.size"] = torch.tensor(grid.size)
        if broken := [name for name, part in packed.items() if part.dtype in _ROUNDED and not part.isfinite().all()]:
            raise ValueError(
                f"{path}: what the encoder gives for this video is NaN or infinite as {self.dtype} ({broken[0]}). Set "
                "features_dtype to bfloat16 or float32, which hold larger numbers; or load the encoder in float32."
            )
        return packed

    def get(self, clip: FrameSpec, dtype: torch.dtype | None = torch.float32) -> tuple[dict[str, FeatureGrid], Tensor]:
        """The grids and frame times [T] of a clip, encoded if need be; `dtype` None: as the encoders gave them."""
        if self.key(clip) not in self.store:
            self.fill([clip])
        return self._unpacked(self.key(clip), dtype)

    def kept(self, clip: FrameSpec) -> tuple[dict[str, FeatureGrid], Tensor]:
        """As `get`, in the type that values are kept in (float8: float32), so that they are not converted twice."""
        return self.get(clip, torch.float32 if self.dtype == torch.float8_e4m3fn else self.dtype)

    def find(self, clip: FrameSpec, dtype: torch.dtype | None = None) -> tuple[dict[str, FeatureGrid], Tensor] | None:
        """As `get`, or None for a clip that is not stored."""
        return self._unpacked(self.key(clip), dtype) if self.key(clip) in self.store else None

    def _unpacked(self, key: str, dtype: torch.dtype | None) -> tuple[dict[str, FeatureGrid], Tensor]:
        tensors = self.store[key]
        grids = {}
        for name in (name for name in tensors if "." not in name and name != "seconds"):
            extra = [part for part in tensors if part.startswith(f"{name}.extra") and part.count(".") == 1]
            grids[name] = FeatureGrid(
                _unpack(name, tensors, dtype),
                tensors.get(f"{name}.saliency"),
                tuple(_unpack(f"{name}.extra{number}", tensors, dtype) for number in range(len(extra))),
                tuple(tensors[f"{name}.size"].tolist()) if f"{name}.size" in tensors else None,
            )
        return grids, tensors["seconds"]


def _pack(name: str, values: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Values [T,H,W,C] as `dtype`, and an empty tensor of the type that they had.

    float8 has 3 bits of mantissa and a range of 2^-9 to 448: each channel C is divided by a scale of its own, such that
    its largest value becomes 448. A few channels of a vision transformer are far larger than all others.
    """
    packed = {f"{name}.was": values.new_empty(0, device="cpu")}
    if dtype != torch.float8_e4m3fn:
        return {**packed, name: values.to("cpu", dtype).contiguous()}
    values = values.detach().to("cpu", torch.float32)
    scale = values.abs().amax(dim=(0, 1, 2)).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST_FLOAT8
    small = (values / scale).clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8).to(torch.float8_e4m3fn)
    return {**packed, name: small.contiguous(), f"{name}.scale": scale}


def _unpack(name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Tensor:
    """What `pack` made of values, as `dtype`; None: as the type that they had."""
    values, scale = tensors[name], tensors.get(f"{name}.scale")
    values = values if scale is None else values.float() * scale
    return values.to(tensors[f"{name}.was"].dtype if dtype is None else dtype)
