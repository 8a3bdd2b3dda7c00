"""What trackers are given, for real: a log of JSON lines, files of wandb without an account, events of TensorBoard."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from langdc import jsonl
from langdc.config import RunConfig
from langdc.density import density_correlation
from langdc.train.run import train
from tests import tiny
from tests.train import small

ROOT = Path(__file__).resolve().parents[2]


def watching(place: Path, **changes) -> RunConfig:
    """A captioner learns, and describes three held-out videos."""
    watch = {"data": str(small.folder() / "test.jsonl"), "every": 3, "captions": 2, "density": 3, "batch_size": 2}
    settings = {"objective": "compress", "trainable": ["compressor.projectors.*"], "log_steps": 2, "watch": watch}
    return small.run_config(tiny.model("langdc"), output=str(place), **{**settings, **changes})


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Path:
    """The directory of a run with nothing changed."""
    return train(watching(tmp_path_factory.mktemp("watched") / "x"))


def test_a_line_of_the_log_has_all_figures_and_captions_of_held_out_videos_have_their_own_file(watched):
    first, second = jsonl.read(watched / "log.jsonl")
    for line in (first, second):
        assert line["samples_per_second"] > 0 and 0 <= line["data_wait"] <= 1 and line["mfu"] > 0
        assert line["tokens_per_second"] == pytest.approx(
            line["samples_per_second"] * line["tokens_per_sample"], rel=1e-3
        )
        assert line["peak_bytes"] > 10_000_000
    # one accumulation step a batch: the part of the only loss is the mean over all targets, the loss one over batches
    assert first["loss_caption"] == pytest.approx(first["loss"], rel=0.1) and "loss_answer" not in first
    assert "held_out_soft_tokens" not in first
    looks = jsonl.read(watched / "captions.jsonl")
    assert [look["step"] for look in looks] == [3, 4], "every third step, and the last"
    assert second["held_out_soft_tokens"] == looks[-1]["soft_tokens_per_segment"]
    records = [json.loads(line) for line in (small.folder() / "test.jsonl").read_text().splitlines()]
    shown = looks[-1]["captions"]
    assert [each["id"] for each in shown] == [record["id"] for record in records[:2]]
    assert [each["target"] for each in shown] == [[s["caption"] for s in r["segments"]] for r in records[:2]]
    assert all(len(each["written"]) == 4 for each in shown)


def test_evaluating_changes_nothing_that_is_learned(watched, tmp_path):
    alone = train(watching(tmp_path / "x", watch=None))
    assert not (alone / "captions.jsonl").exists()
    pairs = zip(jsonl.read(watched / "log.jsonl"), jsonl.read(alone / "log.jsonl"), strict=True)
    assert all(one["loss"] == other["loss"] for one, other in pairs)


def test_the_correlation_is_that_of_the_captions_written(tmp_path):
    config = watching(tmp_path / "x")
    config = config.model_copy(update={"watch": config.watch.model_copy(update={"captions": 3})})
    look = jsonl.read(train(config) / "captions.jsonl")[-1]
    encode = tiny.model().compressor.captioner.encode
    records = [json.loads(line) for line in (small.folder() / "test.jsonl").read_text().splitlines()]
    wanted = [segment["density"] for record in records for segment in record["segments"]]
    written = [len(encode(text)) for each in look["captions"] for text in each["written"]]
    expected = density_correlation(wanted, written)
    assert look["density_correlation"] == (None if math.isnan(expected) else pytest.approx(expected, abs=1e-3))


def test_a_compressor_that_writes_no_text_cannot_be_watched(tmp_path):
    watch = {"data": str(small.folder() / "test.jsonl")}
    config = small.run_config(
        tiny.model("resampler", queries=3, depth=1), trainable=["compressor.*"], output=str(tmp_path / "x"), watch=watch
    )
    with pytest.raises(ValueError, match="'resampler' writes no text"):
        train(config)


def test_wandb_offline_leaves_the_files_of_every_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("x", "y"):
        train(watching(tmp_path / name, trackers=["wandb"]))
    kept = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == 2, "one for each run of a chain"
    assert all(b"held_out_soft_tokens" in file.read_bytes() for file in kept)


@pytest.mark.parametrize("key", ["", pytest.param("0" * 40, marks=pytest.mark.slow)])
def test_a_tracker_that_cannot_be_used_is_said_before_the_model_is_built(tmp_path, monkeypatch, key: str):
    """Without a login and a terminal to ask on; with a login and without a network."""
    pytest.importorskip("wandb")
    settings = {
        "WANDB_MODE": "online",
        "WANDB_API_KEY": key,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "HOME": str(tmp_path),
    }
    code = (
        "import sys\nfrom langdc.config import RunConfig, load\nfrom langdc.train.arguments import check_environment\n"
        "check_environment(load(RunConfig, 'sample/langdc/stage1', ['trackers=[wandb]']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NETRC": str(tmp_path / "netrc"), **settings}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "ValueError: trackers: wandb cannot be used (" in done.stderr and "WANDB_MODE=offline" in done.stderr


def test_tensorboard_leaves_events_in_the_run(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    directory = train(watching(tmp_path / "x", trackers=["tensorboard"]))
    seen = accumulator.EventAccumulator(str(directory / "tensorboard"))
    seen.Reload()
    losses = [event.value for event in seen.Scalars("train/loss")]
    expected = [line["loss"] for line in jsonl.read(directory / "log.jsonl")]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected))
    assert "train/data_wait" in seen.Tags()["scalars"]
