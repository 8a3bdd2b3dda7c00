"""Tensors by key: killed or interrupted writers, several of them, damaged files and a full disk."""

import errno
import itertools
import multiprocessing
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from langdc import store as stores
from langdc.store import StoreError, TensorStore

KEYS = [f"{number * 7919:08x}" for number in range(40)]


def value(key: str) -> dict[str, Tensor]:
    """What belongs under a key: 400 bytes and a type of its own."""
    return {"x": torch.full((100,), float(int(key, 16))), "n": torch.tensor(int(key, 16))}


def computed(numbers: list[int], slow: float = 0.0) -> Iterator[tuple[int, dict[str, Tensor]]]:
    for number in numbers:
        time.sleep(slow)
        yield number, value(KEYS[number])


def check_whole(folder: Path) -> None:
    """A fresh reader finds every key with its tensors, and nothing else is in the folder."""
    store = TensorStore(folder)
    assert store.missing(KEYS) == []
    for key in KEYS:
        found = store[key]
        assert found.keys() == {"x", "n"}
        assert torch.equal(found["x"], value(key)["x"]) and torch.equal(found["n"], value(key)["n"])
    left = [path for path in folder.rglob("*.*") if path.suffix != ".partial" and not path.name.startswith(".tmp")]
    assert len(left) == len(KEYS)  # what a kill leaves is deleted once it is old


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def _fill(folder: Path, slow: float = 0.0) -> None:
    TensorStore(folder).fill(KEYS, lambda numbers: computed(numbers, slow), "Testing")


def test_every_key_is_a_file_of_plain_tensors(tmp_path: Path) -> None:
    _fill(tmp_path)
    check_whole(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
    found = load_file(TensorStore(tmp_path).path(KEYS[3]))
    assert found.keys() == {"x", "n"} and torch.equal(found["x"], value(KEYS[3])["x"])


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    TensorStore(tmp_path).fill(KEYS[:25], computed, "Testing")
    asked: list[int] = []

    def noted(numbers: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        asked.extend(numbers)
        return computed(numbers)

    TensorStore(tmp_path).fill(KEYS, noted, "Testing")
    assert asked == list(range(25, 40))
    check_whole(tmp_path)


def test_a_key_that_is_given_twice_is_computed_once(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        assert TensorStore(folder).mine([KEYS[0], KEYS[1], KEYS[0]]) == [0, 1]


def test_killed_at_any_moment_it_goes_on_to_the_same(tmp_path: Path) -> None:
    fork, kept = multiprocessing.get_context("fork"), [0]
    for delay in (0.0, 0.01, 0.02, 0.03):  # after its first file
        before = len(files(tmp_path))
        worker = fork.Process(target=_fill, args=(tmp_path, 0.03))
        worker.start()
        while len(files(tmp_path)) == before and worker.is_alive():
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        kept.append(len(KEYS) - len(TensorStore(tmp_path).missing(KEYS)))
    assert all(more > fewer for fewer, more in itertools.pairwise(kept)) and kept[-1] < len(KEYS)
    _fill(tmp_path)
    check_whole(tmp_path)


def test_an_interruption_keeps_what_was_computed(tmp_path: Path) -> None:
    def interrupted(numbers: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        yield from computed(numbers[:7])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TensorStore(tmp_path).fill(KEYS, interrupted, "Testing")
    assert len(TensorStore(tmp_path).missing(KEYS)) == len(KEYS) - 7
    _fill(tmp_path)
    check_whole(tmp_path)


def test_a_full_disk_leaves_a_valid_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TensorStore(tmp_path).fill(KEYS[:10], computed, "Testing")

    def full(*args: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores, "save_file", full)
    with pytest.raises(StoreError, match=r"No space left.*make room"):
        _fill(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.partial"))
    assert len(TensorStore(tmp_path).missing(KEYS)) == 30
    _fill(tmp_path)
    check_whole(tmp_path)


@pytest.mark.parametrize("harm", ["bit", "cut", "empty", "foreign"])
def test_a_damaged_file_is_named_and_made_again_once_deleted(tmp_path: Path, harm: str) -> None:
    _fill(tmp_path)
    store = TensorStore(tmp_path)
    path = store.path(KEYS[5])
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    if harm == "foreign":
        save_file(value(KEYS[6]), path)
    else:
        path.write_bytes({"bit": bytes(content), "cut": bytes(content[:-50]), "empty": b""}[harm])
    with pytest.raises(StoreError, match=rf"{path.name} are damaged.*Delete that file"):
        store[KEYS[5]]
    path.unlink()
    assert TensorStore(tmp_path).missing(KEYS) == [5]
    _fill(tmp_path)
    check_whole(tmp_path)


@pytest.mark.parametrize("size", [0, 5, -20])
def test_what_a_power_cut_left_cut_off_is_made_again(tmp_path: Path, size: int) -> None:
    _fill(tmp_path)
    path = TensorStore(tmp_path).path(KEYS[5])
    path.write_bytes(path.read_bytes()[:size])
    store = TensorStore(tmp_path)
    assert store.missing(KEYS) == [5] and not path.exists()
    _fill(tmp_path)
    check_whole(tmp_path)


@pytest.mark.parametrize(
    ("error", "said"), [(PermissionError, "Permission denied"), (FileNotFoundError, "No such file")]
)
def test_what_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError], said: str
) -> None:
    _fill(tmp_path)
    store, number = TensorStore(tmp_path), errno.EACCES if error is PermissionError else errno.ENOENT

    def refused(path: Path, *_: object) -> None:
        raise error(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(StoreError, match=rf"{KEYS[0]}.safetensors cannot be read: {said}") as caught:
        store[KEYS[0]]
    assert "damaged" not in str(caught.value)


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        TensorStore(tmp_path)[KEYS[0]] = value(KEYS[0])
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)] == [0o644]


def test_a_folder_of_version_0_1_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with pytest.raises(ValueError, match=r"version 0\.1.*Delete that folder"):
        TensorStore(tmp_path)


def test_what_is_read_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(tmp_path)
    checked: list[int] = []
    whole = stores._checksum
    monkeypatch.setattr(stores, "_checksum", lambda tensors: checked.append(1) or whole(tensors))
    store = TensorStore(tmp_path, memory=0)
    for _ in range(3):
        assert torch.equal(store[KEYS[3]]["x"], value(KEYS[3])["x"])
        store[KEYS[4]]
    assert len(checked) == 2


def test_only_so_much_is_held(tmp_path: Path) -> None:
    _fill(tmp_path)
    store = TensorStore(tmp_path, memory=2000)
    for key in KEYS:
        store[key]
    assert 0 < store.held_bytes <= 2000
    for key in KEYS:
        assert torch.equal(store[key]["x"], value(key)["x"])


@pytest.mark.parametrize("names", [("old.partial", "new.partial"), (".tmpOld", ".tmpNew")], ids=["ours", "safetensors"])
def test_abandoned_halves_are_cleared(tmp_path: Path, names: tuple[str, str]) -> None:
    (tmp_path / "ab").mkdir()
    old, new = (tmp_path / "ab" / name for name in names)
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    _fill(tmp_path)
    assert not old.exists() and new.exists()  # its process may be alive


def test_parts_of_one_batch_are_stored_apart(tmp_path: Path) -> None:
    batch = torch.arange(12.0).view(3, 4)
    store = TensorStore(tmp_path)
    store.fill(KEYS[:3], lambda numbers: ((n, {"x": batch[n], "y": batch.T[n]}) for n in numbers), "Testing")
    again = TensorStore(tmp_path)
    for number in range(3):
        assert torch.equal(again[KEYS[number]]["x"], batch[number])
        assert torch.equal(again[KEYS[number]]["y"], batch.T[number])


def test_in_memory_alone() -> None:
    store = TensorStore(None, memory=0)
    store.fill(KEYS, computed, "Testing")
    assert store.missing(KEYS) == [] and torch.equal(store[KEYS[0]]["x"], value(KEYS[0])["x"])
    assert "cd" not in store
    with pytest.raises(KeyError):
        store["cd"]


def test_another_process_that_never_delivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(stores, "WAIT_SECONDS", 0.1)
    with pytest.raises(StoreError, match="another process stored nothing"):
        _fill(tmp_path)
    assert len(files(tmp_path)) == 20


def _work(rank: int, folder: Path, late: float) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    stores.WAIT_SECONDS = 20
    time.sleep(late * rank)
    done: list[str] = []

    keys = KEYS[::-1] if rank else KEYS  # each may list them in an order of its own

    def compute(numbers: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        for number in numbers:
            time.sleep(0.01)
            done.append(keys[number])
            yield number, value(keys[number])

    store = TensorStore(folder / "store")
    store.fill(keys, compute, "Testing")
    assert all(torch.equal(store[key]["x"], value(key)["x"]) for key in KEYS)
    (folder / f"done{rank}").write_text(" ".join(done))


@pytest.mark.parametrize("late", [0.0, 0.15])
def test_two_processes_divide_the_work_even_if_one_starts_late(tmp_path: Path, late: float) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_work, args=(rank, tmp_path, late)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=40)
    assert [worker.exitcode for worker in workers] == [0, 0]
    done = [(tmp_path / f"done{rank}").read_text().split() for rank in range(2)]
    assert sorted(done[0] + done[1]) == sorted(KEYS)
    assert min(map(len, done)) >= len(KEYS) // 4
    check_whole(tmp_path / "store")


def test_two_runs_that_know_nothing_of_each_other(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_fill, args=(tmp_path, 0.002)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=40)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    check_whole(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
