"""What trackers are given, for real: a log of JSON lines, files of wandb without an account, events of TensorBoard."""

import json
import math

import pytest
import torch
from langdc.training import stages

from langdc import jsonl
from langdc.config import StageConfig, check
from langdc.density import density_correlation
from langdc.sample.dataset import make_dataset
from langdc.train.progress import read_log
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "sample"
    make_dataset(folder, {"train": 6, "test": 3}, images=0, workers=1)
    return folder


@pytest.fixture(scope="module")
def watched(data, tmp_path_factory):
    """The directory of a run with nothing changed."""
    return stages.run_stage(stage(data, tmp_path_factory.mktemp("watched")))


def stage(data, tmp_path, **changes) -> StageConfig:
    common = {"data": [str(data / "train.jsonl")], "batch_size": 2, "learning_rate": 1e-3}
    caption = {
        **common,
        "name": "density",
        "objective": "caption",
        "steps": 4,
        "trainable": ["compressor.projectors.*"],
    }
    answer = {
        **common, "name": "post", "objective": "answer", "steps": 2, "questions_per_video": 2,
        "trainable": ["compressor.post_projector.*"],
    }  # fmt: skip
    tree = {
        "stage": "stage2",
        "model": tiny.config("langdc", segment_marker=True).model_dump(mode="json"),
        "output": str(tmp_path / "x"),
        "phases": [caption, answer],
        "log_steps": 2,
        "verify_save": False,
        "watch": {"data": str(data / "test.jsonl"), "every": 3, "captions": 2, "density": 3, "batch_size": 2},
    }
    return check(StageConfig, {**tree, **changes}, "test")


def test_a_line_of_the_log_has_all_figures_and_captions_of_videos_kept_aside_have_their_own_file(data, watched):
    first, second, post = read_log(watched / "log.jsonl")
    for line in (first, second, post):
        assert line["samples_per_second"] > 0 and 0 <= line["data_wait"] <= 1 and line["mfu"] > 0
        assert line["tokens_per_second"] == pytest.approx(
            line["samples_per_second"] * line["tokens_per_sample"], rel=1e-3
        )
        assert line["peak_bytes"] > 10_000_000
    # one accumulation step a batch: the part of the only loss is the mean over all targets, the loss one over batches
    assert first["loss_caption"] == pytest.approx(first["loss"], rel=0.1) and "loss_answer" not in first
    assert "loss_answer" in post and "held_out_soft_tokens" not in first
    looks = jsonl.read(watched / "captions.jsonl")
    assert [look["step"] for look in looks] == [3, 4], "every third step, and the last"
    assert second["held_out_soft_tokens"] == looks[-1]["soft_tokens_per_segment"]
    records = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    shown = looks[-1]["captions"]
    assert [each["id"] for each in shown] == [record["id"] for record in records[:2]]
    assert [each["target"] for each in shown] == [[s["caption"] for s in r["segments"]] for r in records[:2]]
    assert all(len(each["written"]) == 4 for each in shown)


def test_looking_changes_nothing_that_is_learned(data, watched, tmp_path):
    alone = stages.run_stage(stage(data, tmp_path, watch=None))
    assert not (alone / "captions.jsonl").exists()
    pairs = zip(read_log(watched / "log.jsonl"), read_log(alone / "log.jsonl"), strict=True)
    assert all(one["loss"] == other["loss"] for one, other in pairs)


def test_the_correlation_is_that_of_the_captions_written(data, tmp_path):
    config = stage(data, tmp_path)
    config = config.model_copy(update={"watch": config.watch.model_copy(update={"captions": 3})})
    directory = stages.run_stage(config)
    look = jsonl.read(directory / "captions.jsonl")[-1]
    encode = tiny.model().captioner.captioner.encode
    records = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    wanted = [segment["density"] for record in records for segment in record["segments"]]
    written = [len(encode(text)) for each in look["captions"] for text in each["written"]]
    expected = density_correlation(wanted, written)
    assert look["density_correlation"] == (None if math.isnan(expected) else pytest.approx(expected, abs=1e-3))


def test_wandb_offline_leaves_files_of_both_phases(data, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "x"))
    directory = stages.run_stage(stage(data, tmp_path, trackers=["wandb"]))
    kept = list((directory / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == 2, "a run per phase"
    assert any(
        b"density_correlation" in file.read_bytes() or b"held_out_soft_tokens" in file.read_bytes() for file in kept
    )


def test_tensorboard_leaves_events_of_every_phase_in_the_run(data, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    directory = stages.run_stage(stage(data, tmp_path, trackers=["tensorboard"]))
    seen = accumulator.EventAccumulator(str(directory / "tensorboard" / "density"))
    seen.Reload()
    losses = [event.value for event in seen.Scalars("train/loss")]
    expected = [line["loss"] for line in read_log(directory / "log.jsonl", "density")]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected))
    assert "train/data_wait" in seen.Tags()["scalars"]
    assert (directory / "tensorboard" / "post").is_dir()
