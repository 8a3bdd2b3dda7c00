"""The training benchmark compares like with like: the plain loop learns what ours learns, from the same records."""

from pathlib import Path

import pytest
import torch

from benchmarks import training as benchmark
from langdc import config as settings
from langdc.attention import causal_rows
from langdc.config import ModelConfig, RunConfig
from langdc.flops import encoder_flops, language_model_flops, work_flops
from langdc.model import VideoModel
from langdc.sample.dataset import make_dataset
from langdc.train.batches import TrainingData
from langdc.train.learner import Learner
from langdc.types import FeatureGrid
from tests import tiny

TRAINABLE = {
    "compress": ["compressor.projectors.*", "compressor.captioner.*"],
    "answer": ["compressor.post_projector.*", "backbone.projectors.*"],
}


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sample"
    make_dataset(folder, {"train": 4, "test": 0}, images=0, workers=1)
    return folder / "train.jsonl"


def run(records: Path, objective: str) -> RunConfig:
    base = {"name": "pool", "sides": [3, 2]}
    train = {"data": [str(records)], "epochs": 1, "batch_size": 2, "trainable": TRAINABLE[objective]}
    model = tiny.config("langdc", segment_marker=True, max_soft_tokens=16, base=base).model_dump(mode="json")
    tree = {"stage": "a test", "objective": objective, "model": model, "train": train, "log_steps": 1}
    return settings.check(RunConfig, {**tree, "features_dtype": "float32"}, "test")


def loss_of_ours(data: TrainingData) -> torch.Tensor:
    return Learner(data.model, data.objective).train()(**data.collate(data.samples[:2]))["loss"]


def test_the_plain_loop_has_the_loss_of_ours_on_the_same_captions(records):
    config = run(records, "compress")
    data = benchmark.data_of(*benchmark.build(config), config, None)
    expected = loss_of_ours(data)
    torch.testing.assert_close(benchmark.Plain(data, 2).loss(data.samples[:2]), expected, rtol=1e-4, atol=1e-5)


def test_the_plain_loop_has_the_loss_of_ours_on_replies_where_captions_are_equally_long(records, monkeypatch):
    monkeypatch.setattr("langdc.captioner.Captioner.encode", lambda self, text: torch.tensor([5, 6, 7]))
    config = run(records, "answer")
    data = benchmark.data_of(*benchmark.build(config), config, None)
    expected, loop = loss_of_ours(data), benchmark.Plain(data, 2)
    learned = sum(int((prompt.labels[1:] != -100).sum()) for prompt in loop.prompts(data.samples[:2]))
    assert learned > 2
    torch.testing.assert_close(loop.loss(data.samples[:2]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ["compress", "answer"])
def test_every_way_has_a_line(records, tmp_path, objective: str):
    found = benchmark.rows(run(records, objective), tmp_path)
    lines = [dict(zip(benchmark.COLUMNS, row, strict=True)) for row in found]
    extra = "plain loop, encoders once" if objective == "compress" else "ours, stored features and states"
    assert {line["how"] for line in lines} == {"plain loop", "ours, from pixels", "ours, stored features", extra}
    assert lines[0]["faster"] == "1.00x" and all(float(line["samples/s"]) > 0 for line in lines)
    assert all(int(line["step MiB"]) >= 0 for line in lines)


def test_the_biggest_costs_are_named_with_their_share(records):
    found = benchmark.profile(run(records, "compress"))
    shares = [int(share.rstrip(" %")) for _, _, share in found]
    assert len(found) == 5 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 102


@pytest.mark.parametrize("objective", ["compress", "answer"])
def test_the_plain_loop_has_all_its_tensors_on_the_device_of_the_model(records, objective: str):
    """The meta device stands in for a card: no value can be read from it, and nothing of the CPU is mixed in."""
    data = benchmark.data_of(*benchmark.build(run(records, objective)), run(records, objective), None)
    data.model.to("meta")
    with causal_rows(data.model.backbone.text_model.config, 1):  # transformers would read the padding mask
        loss = benchmark.Plain(data, 2).loss(data.samples[:2])
    loss.backward()
    assert loss.is_meta


@pytest.mark.parametrize("objective", ["compress", "answer"])
def test_micro_batches_have_a_speed_and_a_share_of_the_peak(records, objective: str):
    found = list(benchmark.micro_batches(run(records, objective), [1, 3]))
    lines = [dict(zip(benchmark.MICRO_COLUMNS, row, strict=True)) for row in found]
    assert [line["micro-batch"] for line in lines] == ["1", "3"]
    for line in lines:
        assert float(line["samples/s"]) > 0 and 0 < float(line["MFU"].rstrip(" %")) < 100
        assert line["biggest costs"].count(";") == 4


@pytest.mark.parametrize("shape", ["sample", "recipe", "full"])
def test_the_cases_are_runs_of_the_sample(records, shape: str):
    captions, replies = benchmark.cases(records, 4, shape)
    assert captions.objective.name == "compress" and replies.objective.name == "answer"
    assert captions.model.compressor.settings.get("base") is None
    base = replies.model.compressor.settings["base"]["name"]
    assert base == ("chain" if shape == "sample" else "pool") and replies.train.lora is not None
    assert {case.train.batch_size for case in (captions, replies)} == {4}


def shares(model: VideoModel) -> list[float]:
    """Of encoding a video, reading captions of 59 tokens, and reading 1,000 tokens, of all three."""
    backbone, compressor = model.backbone, model.compressor
    encoded = {
        name: FeatureGrid(torch.zeros(16, encoder.side, encoder.side, encoder.width))
        for name, encoder in backbone.encoders.items()
    }
    visual = torch.empty(compressor.frames_per_segment * sum(side**2 for side in compressor.pool.values()), 0)
    found = [
        encoder_flops(backbone, encoded),
        work_flops([compressor.captioner.work(visual, 59, "scored")] * 4),
        language_model_flops(backbone.language_model.config, 1000),
    ]
    return [each / sum(found) for each in found]


def test_the_narrow_model_has_the_shares_of_the_full_one():
    tree = settings.read_tree("langdc_3b/model")["model"]
    with torch.device("meta"):
        full = VideoModel(settings.check(ModelConfig, tree, "the recipe's model"))
    assert shares(VideoModel(benchmark.recipe(dual=True))) == pytest.approx(shares(full), abs=0.1)
