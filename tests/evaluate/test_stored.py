"""Evaluation from stored features: the same answers as from pixels, honest counters, and no wrong ones."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from langdc.config import check
from langdc.evaluate import tasks
from langdc.evaluate.folder import EvalFolder, LineFile
from langdc.evaluate.loop import evaluate
from langdc.evaluate.settings import EvalConfig
from langdc.evaluate.videos import FeatureReader, VideoCache
from langdc.features import FeatureStore
from langdc.pipeline import VideoLM
from langdc.store import StoreError
from tests import stock
from tests.evaluate import runs
from tests.evaluate.test_videos import record, salient


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.prepare(tmp_path_factory.mktemp("stored"))


def run(folder: Path, out: Path, **changes: Any) -> EvalFolder:
    config = runs.config(folder, output=str(out), **changes)
    return evaluate(check(EvalConfig, config.model_dump(mode="json"), "test"), tasks.build(**config.task.model_dump()))


def answers(folder: EvalFolder) -> dict[str, list[tuple]]:
    kept = ("key", "answer", "tokens", "flops")
    return {
        name: [tuple(line[each] for each in kept) for line in folder.lines(name) if line["type"] == "answer"]
        for name in folder.names()
    }


def fill(folder: Path, store: Path, videos: int = 3) -> None:
    lm = VideoLM.from_pretrained(folder / "langdc")
    clips = [lm.frame_spec(folder / "data" / "videos" / f"v{number}.mp4") for number in range(videos)]
    FeatureStore.of(lm.model.backbone, store, "float32").fill(clips)


def test_answers_from_the_store_are_those_from_pixels(prepared: Path, tmp_path: Path) -> None:
    fill(prepared, tmp_path / "store", videos=2)
    pixels = run(prepared, tmp_path / "pixels")
    stored = run(prepared, tmp_path / "stored", features=str(tmp_path / "store"), features_dtype="float32")
    assert answers(stored) == answers(pixels)
    (session,) = stored.file("sessions").lines
    assert (session["videos"], session["decoded"], session["read"]) == (3, 1, 2)  # one was not there
    assert "decoded and encoded 1 times and read 2 times" in stored.loop_cost()
    assert "read" not in pixels.loop_cost()
    seconds = {line["video"]: set(line["seconds"]) for line in stored.file("encoding").lines}
    assert seconds["v0"] == {"read"} and {"decode", "encode"} <= seconds["v2"]


def test_another_type_is_not_taken_for_this_one(prepared: Path, tmp_path: Path) -> None:
    fill(prepared, tmp_path / "store")
    stored = run(prepared, tmp_path / "stored", features=str(tmp_path / "store"), features_dtype="bfloat16")
    assert (stored.file("sessions").lines[0]["decoded"], stored.file("sessions").lines[0]["read"]) == (3, 0)


def test_a_damaged_file_stops_the_run_and_fails_no_answer(prepared: Path, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "eval"
    fill(prepared, store)
    file = next(store.rglob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreError, match=file.name):
        run(prepared, out, features=str(store), features_dtype="float32")
    file.unlink()
    found = run(prepared, out, features=str(store), features_dtype="float32")
    assert not any(line["failed"] for name in found.names() for line in found.lines(name) if line["type"] == "answer")


def test_what_is_stored_without_saliency_serves_only_who_needs_none(tmp_path: Path) -> None:
    lm = VideoLM.from_pretrained(stock.folder("llava_onevision"), backbone={"frames": 4})
    mp4, store = stock.mp4(tmp_path, count=8, fps=4), tmp_path / "store"
    FeatureStore.of(lm.model.backbone, store, "float32").fill([lm.frame_spec(mp4)])
    library = VideoCache(LineFile(tmp_path / "one.jsonl", alone=True), stored=FeatureReader(store, "float32"))
    library.open(lm, VideoCache.key_of(lm), record(0), mp4)
    assert (library.decoded, library.read) == (0, 1)
    assert library.open(salient(lm), VideoCache.key_of(lm), record(0), mp4).encoder["video"].saliency is not None
    assert (library.decoded, library.read) == (1, 1)
    shutil.rmtree(store)
    FeatureStore.of(lm.model.backbone, store, "float32", saliency=True).fill([lm.frame_spec(mp4)])
    for one in (lm, salient(lm)):
        library = VideoCache(LineFile(tmp_path / "two.jsonl", alone=True), stored=FeatureReader(store, "float32"))
        video = library.open(one, VideoCache.key_of(lm), record(0), mp4)
        assert (library.decoded, library.read) == (0, 1)
        assert (video.encoder["video"].saliency is not None) == (one is not lm)


@pytest.mark.parametrize("kind", ["videogpt_plus", "llava_onevision"])
def test_a_missing_file_fails_as_it_does_without_a_store(prepared: Path, tmp_path: Path, kind: str) -> None:
    if kind == "videogpt_plus":  # which frames it reads of a file is known without opening it
        lm = VideoLM.from_pretrained(prepared / "langdc")
    else:
        lm = VideoLM.from_pretrained(stock.folder(kind), backbone={"frames": 4})
    library = VideoCache(
        LineFile(tmp_path / "one.jsonl", alone=True), stored=FeatureReader(tmp_path / "store", "float32")
    )
    with pytest.raises(ValueError, match=r"gone\.mp4"):
        library.open(lm, VideoCache.key_of(lm), record(0), tmp_path / "gone.mp4")
