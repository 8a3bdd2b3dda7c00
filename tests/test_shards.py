"""Tensors in shards: killed or interrupted writers, several of them, damaged files and a full disk."""

import errno
import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from langdc import shards
from langdc.shards import Shard, StoreError, TensorStore

KEYS = [f"{number * 7919:08x}" for number in range(40)]


def value(key: str) -> dict[str, Tensor]:
    """What belongs under a key: 400 bytes and a type of its own."""
    return {"x": torch.full((100,), float(int(key, 16))), "n": torch.tensor(int(key, 16))}


def computed(numbers: list[int], slow: float = 0.0) -> Iterator[tuple[int, dict[str, Tensor]]]:
    for number in numbers:
        time.sleep(slow)
        yield number, value(KEYS[number])


def check_whole(folder: Path) -> None:
    """A fresh reader finds every key with its tensors."""
    store = TensorStore(folder)
    assert store.missing(KEYS) == []
    for key in KEYS:
        found = store[key]
        assert found.keys() == {"x", "n"}
        assert torch.equal(found["x"], value(key)["x"]) and torch.equal(found["n"], value(key)["n"])


def files(folder: Path) -> list[Path]:
    return sorted((folder / "shards").glob("*.safetensors"))


def test_many_keys_share_a_file_up_to_its_size(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, shard_bytes=4000)
    store.stream(KEYS, computed, "Testing")
    assert len(files(tmp_path)) == 4  # 40 keys of 408 bytes, 10 of which make 4000
    assert sum(len(load_file(path)) for path in files(tmp_path)) == 2 * len(KEYS)
    assert not list(tmp_path.rglob("*.partial*"))
    check_whole(tmp_path)


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    TensorStore(tmp_path).stream(KEYS[:25], computed, "Testing")
    asked: list[int] = []

    def noted(numbers: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        asked.extend(numbers)
        return computed(numbers)

    TensorStore(tmp_path).stream(KEYS, noted, "Testing")
    assert asked == list(range(25, 40))
    check_whole(tmp_path)


def _fill(folder: Path, shard_bytes: float = 2000, slow: float = 0.0) -> None:
    TensorStore(folder, shard_bytes=shard_bytes).stream(KEYS, lambda numbers: computed(numbers, slow), "Testing")


def test_killed_at_any_moment_it_goes_on_to_the_same(tmp_path: Path) -> None:
    fork, kept = multiprocessing.get_context("fork"), [0]
    for delay in (0.0, 0.01, 0.02, 0.03):  # after its first shard, which holds five keys
        before = len(files(tmp_path))
        worker = fork.Process(target=_fill, args=(tmp_path, 2000, 0.03))
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
    assert sum(len(load_file(path)) for path in files(tmp_path)) == 2 * len(KEYS)  # nothing twice


def test_a_kill_between_renaming_and_indexing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(shards.Index, "add", killed)
    with pytest.raises(SystemExit):
        TensorStore(tmp_path, shard_bytes=2000).stream(KEYS, computed, "Testing")
    monkeypatch.undo()
    assert not (tmp_path / "index").exists() or not list((tmp_path / "index").iterdir())
    assert len(TensorStore(tmp_path).missing(KEYS)) == len(KEYS) - len(load_file(files(tmp_path)[0])) // 2
    _fill(tmp_path)
    check_whole(tmp_path)


def test_a_line_cut_short_is_left_alone(tmp_path: Path) -> None:
    TensorStore(tmp_path).stream(KEYS[:20], computed, "Testing")
    torn = tmp_path / "index" / "killed.jsonl"
    torn.write_text('{"shard": "none-0", "ke')
    store = TensorStore(tmp_path)
    assert len(store.missing(KEYS)) == 20
    torn.write_text(json.dumps({"shard": files(tmp_path)[0].stem, "keys": KEYS[:20]}) + "\n")
    store.stream(KEYS, computed, "Testing")
    check_whole(tmp_path)


def test_without_its_index_the_shards_say_what_they_hold(tmp_path: Path) -> None:
    _fill(tmp_path)
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    check_whole(tmp_path)


def test_an_interruption_keeps_what_was_computed(tmp_path: Path) -> None:
    def interrupted(numbers: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        yield from computed(numbers[:7])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TensorStore(tmp_path).stream(KEYS, interrupted, "Testing")
    assert len(TensorStore(tmp_path).missing(KEYS)) == len(KEYS) - 7
    _fill(tmp_path)
    check_whole(tmp_path)


@pytest.mark.parametrize("where", ["shard", "index"])
def test_a_full_disk_leaves_a_valid_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    TensorStore(tmp_path).stream(KEYS[:10], computed, "Testing")

    def full(*args: object, **_: object) -> None:
        if where == "shard":
            Path(str(args[1])).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((shards, "save_file") if where == "shard" else (shards.Index, "add")), full)
    with pytest.raises(StoreError, match=r"No space left.*make room"):
        TensorStore(tmp_path, shard_bytes=2000).stream(KEYS, computed, "Testing")
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.partial*"))
    assert len(TensorStore(tmp_path).missing(KEYS)) <= 30
    _fill(tmp_path)
    check_whole(tmp_path)


@pytest.mark.parametrize("harm", ["bit", "cut", "gone"])
def test_a_damaged_shard_is_named_and_made_again_once_deleted(tmp_path: Path, harm: str) -> None:
    _fill(tmp_path)
    store, path = TensorStore(tmp_path), files(tmp_path)[1]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content if harm == "bit" else content[:-50])
    with pytest.raises(StoreError, match=rf"{path.name} are damaged.*Delete that file"):
        for key in KEYS:
            store[key]
    path.unlink(missing_ok=True)
    assert 0 < len(TensorStore(tmp_path).missing(KEYS)) < len(KEYS)
    _fill(tmp_path)
    check_whole(tmp_path)


def test_a_damaged_index_is_named_and_can_be_deleted(tmp_path: Path) -> None:
    _fill(tmp_path)
    (path,) = (tmp_path / "index").iterdir()
    path.write_bytes(b"\0\0\n" + path.read_bytes())
    with pytest.raises(StoreError, match=rf"{path.name} is damaged.*nothing is lost"):
        TensorStore(tmp_path)
    path.unlink()
    check_whole(tmp_path)


def test_what_is_read_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(tmp_path, shard_bytes=1e6)
    checked: list[int] = []
    whole = shards.checksum
    monkeypatch.setattr(shards, "checksum", lambda tensors: checked.append(1) or whole(tensors))
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


def test_many_shards_are_not_all_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    _fill(tmp_path, shard_bytes=400)
    opened: list[str] = []
    monkeypatch.setattr(shards, "Shard", lambda path: opened.append(path.stem) or Shard(path))
    store = TensorStore(tmp_path, memory=0)
    for key in (KEYS[0], KEYS[0], KEYS[1], KEYS[2], KEYS[0]):
        store[key]
    assert len(opened) == 4  # the first had to be closed for the third


def test_abandoned_halves_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    old, new = tmp_path / "shards" / "old.partial", tmp_path / "shards" / "new.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    TensorStore(tmp_path)[KEYS[0]] = value(KEYS[0])
    assert not old.exists() and new.exists()  # its process may be alive


def test_parts_of_one_batch_are_stored_apart(tmp_path: Path) -> None:
    batch = torch.arange(12.0).view(3, 4)
    store = TensorStore(tmp_path)
    store.stream(KEYS[:3], lambda numbers: ((n, {"x": batch[n], "y": batch.T[n]}) for n in numbers), "Testing")
    again = TensorStore(tmp_path)
    for number in range(3):
        assert torch.equal(again[KEYS[number]]["x"], batch[number])
        assert torch.equal(again[KEYS[number]]["y"], batch.T[number])


def test_small_shards_come_out_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "FLUSH_SECONDS", 0.02)
    store, other = TensorStore(tmp_path), TensorStore(tmp_path)
    store.put(KEYS[0], value(KEYS[0]))
    time.sleep(0.03)
    store.put(KEYS[1], value(KEYS[1]))
    assert other.missing(KEYS[:2]) == []  # nobody waits for a full shard


def test_in_memory_alone() -> None:
    store = TensorStore(None)
    store["ab"] = {"x": torch.ones(2)}
    assert "ab" in store and "cd" not in store
    with pytest.raises(KeyError):
        store["cd"]


def test_another_process_that_never_delivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(shards, "WAIT_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match="another process delivered nothing"):
        TensorStore(tmp_path).fill(["aa", "ab"], lambda chunk: [{"x": torch.ones(1)} for _ in chunk], 1, "Testing")


def _work(rank: int, folder: Path, late: float) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    shards.WAIT_SECONDS = 20
    time.sleep(late * rank)
    done: list[str] = []

    keys = KEYS[::-1] if rank else KEYS  # each may list them in an order of its own

    def compute(chunk: list[int]) -> list[dict[str, Tensor]]:
        time.sleep(0.02)
        done.extend(keys[number] for number in chunk)
        return [value(keys[number]) for number in chunk]

    store = TensorStore(folder / "store", shard_bytes=2000)
    store.fill(keys, compute, 2, "Testing")
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
