"""Stored features: no clip is decoded or encoded twice, nothing stale is read, processes divide the work."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langdc import features
from langdc.features import Clip, FeatureStore, TensorStore, module_hash
from langdc.types import FeatureGrid, Frames
from tests import tiny


class Eye:
    """An encoder that counts the frames it sees; its grid is the mean colour of each frame."""

    def __init__(self) -> None:
        self.videos: list[int] = []

    def __call__(self, videos: list[Frames]) -> list[dict[str, FeatureGrid]]:
        self.videos += [len(video) for video in videos]
        return [{"image": FeatureGrid(v.pixels.float().mean((2, 3))[:, None, None])} for v in videos]


def clips(path: Path) -> list[Clip]:
    return [Clip(path, 4, 4), Clip(path, 2, 4), Clip(path, 4, 4, start=0.0, end=1.0)]


def test_each_clip_is_seen_once(sample_video: Path) -> None:
    eye = Eye()
    store = FeatureStore(eye, "eye", dtype=torch.float32)
    first, second, _ = clips(sample_video)
    store.fill([first, first, second])
    store.fill([first])
    grids, seconds = store.get(first)
    assert eye.videos == [16, 8]
    torch.testing.assert_close(grids["image"].values, Eye()([first.read()])[0]["image"].values)
    assert torch.equal(seconds, first.read().seconds.double())
    store.get(Clip(sample_video, 1, 4))
    assert eye.videos == [16, 8, 4]


def test_a_second_run_reads_the_disk_and_gets_the_same(sample_video: Path, tmp_path: Path) -> None:
    wanted = clips(sample_video)
    first = FeatureStore(Eye(), "eye", tmp_path)
    first.fill(wanted)
    eye = Eye()
    second = FeatureStore(eye, "eye", tmp_path)
    second.fill(wanted)
    for clip in wanted:
        (one, times), (other, again) = first.get(clip), second.get(clip)
        assert torch.equal(one["image"].values, other["image"].values)
        assert torch.equal(times, again)
    assert eye.videos == []
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert not list(tmp_path.rglob("*.partial*"))


def test_values_are_kept_in_the_stores_type_and_given_in_the_callers(sample_video: Path, tmp_path: Path) -> None:
    store = FeatureStore(Eye(), "eye", tmp_path, dtype=torch.bfloat16)
    (grids, _) = store.get(clips(sample_video)[0])
    (file,) = tmp_path.rglob("*.safetensors")
    assert load_file(file)["image"].dtype == torch.bfloat16
    assert grids["image"].values.dtype == torch.float32
    assert store.get(clips(sample_video)[0], torch.float16)[0]["image"].values.dtype == torch.float16


def test_keys_change_with_everything_that_changes_values(sample_video: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy.mp4", tmp_path / "other.mp4"
    copy.write_bytes(sample_video.read_bytes())
    other.write_bytes(sample_video.read_bytes() + b"\0")
    store = FeatureStore(Eye(), "eye")
    base = store.key(Clip(sample_video, 4, 4))
    assert store.key(Clip(copy, 4, 4)) == base
    different = [
        store.key(Clip(other, 4, 4)),
        store.key(Clip(sample_video, 8, 2)),
        store.key(Clip(sample_video, 4, 4, start=0.5)),
        store.key(Clip(sample_video, 4, 4, end=0.5)),
        FeatureStore(Eye(), "another eye").key(Clip(sample_video, 4, 4)),
        FeatureStore(Eye(), "eye", dtype=torch.float32).key(Clip(sample_video, 4, 4)),
    ]
    assert len({base, *different}) == 7


def test_the_identity_of_encoders_is_that_of_their_tensors() -> None:
    model = tiny.model("pool").host.encoders
    same, other = tiny.model("pool").host.encoders, tiny.model("pool", seed=1).host.encoders
    assert module_hash(model) == module_hash(same) != module_hash(other)
    with torch.no_grad():
        next(same.parameters()).view(-1)[0] += 1e-3
    assert module_hash(model) != module_hash(same)
    assert module_hash(model.to(torch.bfloat16)) != module_hash(other)


def test_a_broken_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(tensors, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "save_file", half)
    store = TensorStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store["ab"] = {"x": torch.ones(2)}
    monkeypatch.undo()
    again = TensorStore(tmp_path)
    assert "ab" not in again
    again["ab"] = {"x": torch.ones(2)}
    assert torch.equal(TensorStore(tmp_path)["ab"]["x"], torch.ones(2))


def test_in_memory_alone() -> None:
    store = TensorStore(None)
    store["ab"] = {"x": torch.ones(2)}
    assert "ab" in store and "cd" not in store
    with pytest.raises(KeyError):
        store["cd"]


def test_nothing_to_fill(tmp_path: Path) -> None:
    store = FeatureStore(Eye(), "eye", tmp_path)
    store.fill([])
    assert list(tmp_path.iterdir()) == []


def test_another_process_that_never_delivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(features, "WAIT_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match="another process delivered nothing"):
        TensorStore(tmp_path).fill(["aa", "bb"], lambda chunk: [{"x": torch.ones(1)} for _ in chunk], 1, "Testing")


def _work(rank: int, folder: Path, keys: list[str], late: float) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    features.WAIT_SECONDS = 20
    time.sleep(late * rank)
    done: list[str] = []

    def compute(chunk: list[int]) -> list[dict]:
        time.sleep(0.02)
        done.extend(keys[number] for number in chunk)
        return [{"x": torch.tensor([float(number)])} for number in chunk]

    store = TensorStore(folder / "store")
    store.fill(keys, compute, 2, "Testing")
    assert [int(store[key]["x"]) for key in keys] == list(range(len(keys)))
    (folder / f"done{rank}").write_text(" ".join(done))


@pytest.mark.parametrize("late", [0.0, 0.15])
def test_two_processes_divide_the_work_even_if_one_starts_late(tmp_path: Path, late: float) -> None:
    keys = [f"{number:02d}" for number in range(21)]
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_work, args=(rank, tmp_path, keys, late)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=40)
    assert [worker.exitcode for worker in workers] == [0, 0]
    done = [(tmp_path / f"done{rank}").read_text().split() for rank in range(2)]
    assert sorted(done[0] + done[1]) == keys
    assert min(map(len, done)) >= 10
