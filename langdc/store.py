"""Tensors by key: in memory and, with a folder, one file each, which any number of processes fill together.

The file of key abcd... is `ab/abcd....safetensors`: written whole, then never changed, with a checksum in its header.
"""

import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from langdc.distributed import rank, waiting, world_size
from langdc.jsonl import writing
from langdc.log import get_logger, progress, track
from langdc.watchdog import beat

logger = get_logger(__name__)

_POLL_SECONDS = 0.05
_ABANDONED_SECONDS = 3600  # a half-written file this old belongs to a process that was killed
_CHECKSUM = "crc32"


class StoreError(OSError):
    """A store that cannot be read or written. No ValueError: it is never the fault of one video."""


class TensorStore:
    """Named tensors by key, a hexadecimal number; with a folder memory holds those used last, up to `memory` bytes.

    ValueError for a folder that version 0.1 wrote.
    """

    def __init__(self, folder: Path | None, memory: float = 4 * 2**30) -> None:
        if folder is not None and (folder / "shards").is_dir():
            raise ValueError(f"{folder} was written by version 0.1 of langdc. Delete that folder, or choose another.")
        self.folder, self.memory = folder, memory
        self.held_bytes = 0
        self._held: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._checked: set[str] = set()

    def path(self, key: str) -> Path:
        """The file of a key, which need not be there."""
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return key in self._held or (self.folder is not None and self.path(key).is_file())

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        if key not in self._held:
            if self.folder is None:
                raise KeyError(key)
            self._hold(key, self._read(key))
        self._held.move_to_end(key)
        return self._held[key]

    def __setitem__(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors; with a folder they are on the disk afterwards. StoreError if they cannot be written."""
        # copies, since a part of a batch would keep all of it in memory
        alone = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        if self.folder is not None:
            path = self.path(key)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with writing(path, shared=True, sync=False) as partial:
                    save_file(alone, partial, {_CHECKSUM: _checksum(alone)})
            except (OSError, SafetensorError) as error:
                raise StoreError(
                    f"{path} could not be written: {error}; make room, or get the right to write, and start again."
                ) from error
        self._hold(key, alone)

    def _hold(self, key: str, tensors: dict[str, Tensor]) -> None:
        self.held_bytes += _bytes(tensors) - _bytes(self._held.get(key, {}))
        self._held[key] = tensors
        while self.folder is not None and self.held_bytes > self.memory and len(self._held) > 1:
            self.held_bytes -= _bytes(self._held.popitem(last=False)[1])

    def _read(self, key: str) -> dict[str, Tensor]:
        path = self.path(key)
        try:
            path.open("rb").close()
        except OSError as error:
            raise StoreError(
                f"The stored tensors {path} cannot be read: {error.strerror}. Get the right to read it; a file that is "
                "not there is made again at the next start."
            ) from error
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
                if key not in self._checked and (file.metadata() or {}).get(_CHECKSUM) != _checksum(tensors):
                    raise ValueError("its content is not what was written")
        except (OSError, SafetensorError, ValueError) as error:
            raise StoreError(
                f"The stored tensors {path} are damaged: {error}. Delete that file; it is made again at the next start."
            ) from error
        self._checked.add(key)
        return tensors

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The indices of the keys that are not stored yet; damaged files are deleted, and a warning names them."""
        for path in [self.path(key) for key in dict.fromkeys(keys) if key not in self._held] if self.folder else ():
            with suppress(OSError):  # missing or unreadable: an error when it is read
                try:
                    with safe_open(path, "pt"):
                        pass
                except SafetensorError as error:
                    logger.warning("%s is damaged (%s); it is made again.", path, error)
                    path.unlink()
        return [number for number, key in enumerate(keys) if key not in self]

    def mine(self, keys: Sequence[str]) -> list[int]:
        """The numbers of the missing keys that this process makes: its share by the keys, whatever their order."""
        alone = self.folder is None
        once = {keys[n]: n for n in reversed(self.missing(keys))}
        return sorted(n for key, n in once.items() if alone or int(key[-8:], 16) % world_size() == rank())

    def fill(
        self,
        keys: Sequence[str],
        compute: Callable[[list[int]], Iterable[tuple[int, dict[str, Tensor]]]],
        what: str,
        wait: bool = True,
    ) -> None:
        """Store what `compute` gives for this process's missing keys, one after the other, by their numbers.

        With `wait` until other processes have stored theirs; a `langdc.watchdog` ends a wait in vain.
        """
        mine = self.mine(keys)
        if self.folder is not None and mine:
            _clear_abandoned(self.folder)
        for number, tensors in track(compute(mine), len(mine), what):
            self[keys[number]] = tensors
        if wait:
            self._wait(keys, what)

    def _wait(self, keys: Sequence[str], what: str) -> None:
        left = self.missing(keys)
        with progress(f"{what}: waiting for other processes", len(left)) as advance, waiting():
            while left:
                beat(f"{what}: waiting for other processes, as for {self.path(keys[left[0]])}")
                while keys[left[0]] not in self:
                    time.sleep(_POLL_SECONDS)
                before, left = len(left), [number for number in left if keys[number] not in self]
                advance(before - len(left))


def _checksum(tensors: dict[str, Tensor]) -> str:
    """The CRC-32 of names and bytes of tensors."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(name.encode(), found)
        found = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _clear_abandoned(folder: Path) -> None:
    """Delete files that were half written when their process was killed, those of safetensors (.tmp*) among them."""
    for path in (*folder.glob("*/*.partial"), *folder.glob("*/.tmp*")):
        with suppress(FileNotFoundError):  # another process does the same, or has just finished it
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()
