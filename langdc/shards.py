"""Tensors by key in few large files, written by any number of processes, each file whole or not at all.

A store is a folder: `shards/NAME.safetensors` hold tensors named KEY/TENSOR and, in their header, each key's checksum;
`index/NAME.jsonl` of each process that wrote says which keys are in which shard. A shard is written beside, renamed,
and only then indexed; one that a process had no time to index is found by its header.
"""

import errno
import json
import os
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from langdc.distributed import is_main_process, rank, world_size
from langdc.log import console

WAIT_SECONDS = 1800  # for another process's next file before giving up
FLUSH_SECONDS = 60  # a shard is written after so long even if small: others wait for it, and a kill costs no more
ABANDONED_SECONDS = 3600  # a half-written file this old belongs to a process that was killed
SHARD_BYTES = 256 * 10**6
MEMORY_BYTES = 4 * 2**30
OPEN_SHARDS = 64


class StoreError(OSError):
    """A store that cannot be read or written. No ValueError: it is never the fault of one video."""


def writer_of(key: str, writers: int) -> int:
    """Which of several processes makes a key; a key is hexadecimal."""
    return int(key[-8:], 16) % writers


def checksum(tensors: dict[str, Tensor]) -> str:
    """The CRC-32 of names and bytes of tensors."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(name.encode(), found)
        found = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


class Shard:
    """One file, opened when first asked; its tensors are mapped, so that only what is used is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _blamed(self.path):
            self._file = safe_open(path, "pt")
            self.sums = dict(self._file.metadata() or {})
            self._names: dict[str, list[str]] = {key: [] for key in self.sums}
            for name in self._file.keys():  # noqa: SIM118 - it is no dict
                self._names[name.partition("/")[0]].append(name)
        self._checked: set[str] = set()

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        """The tensors of a key; what is read for the first time is compared with its checksum."""
        with _blamed(self.path):
            tensors = {name.partition("/")[2]: self._file.get_tensor(name) for name in self._names[key]}
            if key not in self._checked and checksum(tensors) != self.sums[key]:
                raise ValueError("its content is not what was written")
        self._checked.add(key)
        return tensors


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a shard into an error that names it."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise StoreError(
            f"The stored tensors {path} are damaged: {error}. Delete that file; what it held is made again at the "
            "next start."
        ) from error


class Index:
    """Which shard of a folder holds which key, as far as its files said when they were last read."""

    def __init__(self, folder: Path) -> None:
        self.shards, self.files = folder / "shards", folder / "index"
        self.where: dict[str, str] = {}
        self._known: set[str] = set()
        self._read: dict[str, int] = {}
        self.refresh()
        for path in sorted(self.shards.glob("*.safetensors")):
            if path.stem not in self._known:
                self._enter(path.stem, list(Shard(path).sums))

    def refresh(self) -> None:
        """Read what processes have added; a last line that is not complete is left for later."""
        for path in sorted(self.files.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path.name, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read[path.name] = self._read.get(path.name, 0) + len(line)
                    self._take(path, line)

    def _take(self, path: Path, line: bytes) -> None:
        try:
            found = json.loads(line)
            self._enter(found["shard"], found["keys"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} is damaged: {error!r}. Delete that file; nothing is lost, for shards say what they hold."
            ) from error

    def _enter(self, shard: str, keys: list[str]) -> None:
        """Know the keys of a shard, unless someone deleted it."""
        self._known.add(shard)
        if (self.shards / f"{shard}.safetensors").is_file():
            self.where |= dict.fromkeys(keys, shard)

    def add(self, writer: str, shard: str, keys: list[str]) -> None:
        """Write down what a shard holds, in the writer's own file; a line is never left half written."""
        self.files.mkdir(parents=True, exist_ok=True)
        path = self.files / f"{writer}.jsonl"
        line = json.dumps({"shard": shard, "keys": keys}).encode() + b"\n"
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            if file.write(line) < len(line):
                os.truncate(path, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._enter(shard, keys)


class TensorStore:
    """Tensors by key, in memory and, with a folder, in shards on disk.

    Without a folder all are held. With one, at most `memory` bytes of those used last are; and new ones wait until
    `shard_bytes` of them are together.
    """

    def __init__(self, folder: Path | None, memory: float = MEMORY_BYTES, shard_bytes: float = SHARD_BYTES) -> None:
        self.folder = folder
        self.memory, self.shard_bytes = memory, shard_bytes
        self._held: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self.held_bytes = 0
        """Of what was used last, without what waits to be written."""
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._waiting_bytes, self._waiting_since = 0, 0.0
        self._index = None if folder is None else Index(folder)
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._token, self._written = uuid4().hex[:12], 0

    def __contains__(self, key: str) -> bool:
        return key in self._held or key in self._waiting or (self._index is not None and key in self._index.where)

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        if key in self._waiting:
            return self._waiting[key]
        if key not in self._held:
            self._hold(key, self._read(key))
        self._held.move_to_end(key)
        return self._held[key]

    def __setitem__(self, key: str, tensors: dict[str, Tensor]) -> None:
        self.put(key, tensors)
        self.flush()

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors; on disk they are when a shard is full, or after `flush`."""
        if self.folder is None:
            self._held[key] = tensors
            return
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting[key] = {name: _alone(tensor) for name, tensor in tensors.items()}
        self._waiting_bytes += _bytes(tensors)
        if self._waiting_bytes >= self.shard_bytes or time.monotonic() - self._waiting_since > FLUSH_SECONDS:
            self.flush()

    def refresh(self) -> None:
        """Notice what other processes have stored since."""
        if self._index is not None:
            self._index.refresh()

    def flush(self) -> None:
        """Write what waits as one shard. StoreError if that cannot be written; all earlier shards stay valid."""
        if self._index is None or not self._waiting:
            return
        writer = f"{self._token}-{os.getpid()}"  # a forked process has its parent's token
        shard = f"{writer}-{self._written:05d}"
        path = self._index.shards / f"{shard}.safetensors"
        partial = path.with_suffix(".partial")
        try:
            self._index.shards.mkdir(parents=True, exist_ok=True)
            _clear_abandoned(self._index.shards)
            _save(self._waiting, partial)
            partial.rename(path)
            self._index.add(writer, shard, list(self._waiting))
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise StoreError(
                f"{path} could not be written: {error}. What was stored before stays; make room and start again."
            ) from error
        self._written += 1
        waited, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        for key, tensors in waited.items():
            self._hold(key, tensors)

    def _hold(self, key: str, tensors: dict[str, Tensor]) -> None:
        self.held_bytes += _bytes(tensors) - _bytes(self._held.get(key, {}))
        self._held[key] = tensors
        while self.folder is not None and self.held_bytes > self.memory and len(self._held) > 1:
            self.held_bytes -= _bytes(self._held.popitem(last=False)[1])

    def _read(self, key: str) -> dict[str, Tensor]:
        if key not in self:
            self.refresh()
        if self._index is None or key not in self._index.where:
            raise KeyError(key)
        shard = self._index.where[key]
        if shard not in self._open:
            self._open[shard] = Shard(self._index.shards / f"{shard}.safetensors")
        self._open.move_to_end(shard)
        while len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[shard][key]

    # ---- many keys

    def fill(
        self, keys: Sequence[str], compute: Callable[[list[int]], list[dict[str, Tensor]]], size: int, what: str
    ) -> None:
        """Compute what is missing, `size` keys at a time; processes take turns and wait for the others' files."""

        def streamed(numbers: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
            for first in range(0, len(numbers), size):
                chunk = numbers[first : first + size]
                yield from zip(chunk, compute(chunk), strict=True)

        self.stream(keys, streamed, what)
        self.wait(keys, what)

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The numbers of the keys that are nowhere yet."""
        self.refresh()
        return [number for number, key in enumerate(keys) if key not in self]

    def mine(self, keys: Sequence[str]) -> list[int]:
        """The numbers of the missing keys that this process makes: its share by the keys themselves.

        So it does not matter which are there already, or in which order each process lists them.
        """
        missing = self.missing(keys)
        return [n for n in missing if self.folder is None or writer_of(keys[n], world_size()) == rank()]

    def stream(
        self, keys: Sequence[str], compute: Callable[[list[int]], Iterator[tuple[int, dict[str, Tensor]]]], what: str
    ) -> None:
        """Keep what `compute` gives for this process's missing keys, one after the other.

        What was computed is written also when it is interrupted.
        """
        mine = self.mine(keys)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not is_main_process() or not mine) as progress:
            task = progress.add_task(what, total=len(mine))
            try:
                for number, tensors in compute(mine):
                    self.put(keys[number], tensors)
                    progress.advance(task)
            except BaseException:
                with suppress(StoreError):  # the first error is the one to tell
                    self.flush()
                raise
        self.flush()

    def wait(self, keys: Sequence[str], what: str) -> None:
        """Wait until other processes have stored the rest of some keys."""
        left, deadline = self.missing(keys), time.monotonic() + WAIT_SECONDS
        while left:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{what}: another process delivered nothing for {WAIT_SECONDS} s. Look at what it printed and "
                    "start again."
                )
            time.sleep(0.05)
            now = self.missing([keys[number] for number in left])
            if len(now) < len(left):  # slow is not stuck
                deadline = time.monotonic() + WAIT_SECONDS
            left = [left[number] for number in now]


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _alone(tensor: Tensor) -> Tensor:
    """A tensor that shares no memory with others: the part of a batch would keep all of it."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _save(waiting: dict[str, dict[str, Tensor]], path: Path) -> None:
    """Write a shard and wait until it is on the disk: a rename may get there before the content does."""
    tensors = {f"{key}/{name}": tensor for key, of_key in waiting.items() for name, tensor in of_key.items()}
    save_file(tensors, path, metadata={key: checksum(of_key) for key, of_key in waiting.items()})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _clear_abandoned(folder: Path) -> None:
    """Delete files that were half written when their process was killed."""
    for path in folder.glob("*.partial"):
        with suppress(FileNotFoundError):  # another process does the same, or has just finished it
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
