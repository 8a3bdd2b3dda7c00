"""The training benchmark compares like with like: the plain loop learns what ours learns, in the same order."""

from pathlib import Path

import pytest
import torch
from langdc.training.stages import OBJECTIVES

from benchmarks import training as benchmark
from langdc import checkpoint
from langdc import config as settings
from langdc.config import StageConfig, check
from langdc.features import FeatureStore
from langdc.flops import caption_flops, language_model_flops
from langdc.model import VideoModel
from langdc.sample.dataset import make_dataset
from langdc.types import FeatureGrid
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "sample"
    make_dataset(folder, {"train": 4, "test": 0}, images=0, workers=1)
    return folder / "train.jsonl"


def case(data: Path, objective: str) -> benchmark.Case:
    caption = {"trainable": ["compressor.projectors.*", "compressor.captioner.*"]}
    answer = {"trainable": ["compressor.post_projector.*"], "questions_per_video": 1}
    phase = {
        "name": "x", "objective": objective, "data": [str(data)], "epochs": 1, "batch_size": 2, "learning_rate": 1e-3,
        **(caption if objective == "caption" else answer),
    }  # fmt: skip
    dual = {"base": {"name": "pool", "sides": [3, 2]}}
    model = tiny.config("langdc", segment_marker=True, max_soft_tokens=16, **dual).model_dump(mode="json")
    tree = {"stage": "stage2", "model": model, "phases": [phase], "log_steps": 1}
    config = check(StageConfig, tree, "test")
    return benchmark.Case("2, test", config, config.phases[0])


def test_the_plain_loop_has_the_loss_of_ours_on_the_same_captions(data):
    chosen = case(data, "caption")
    model = benchmark.build(chosen)
    store = FeatureStore.of(model.backbone, None, "float32")
    objective = OBJECTIVES[chosen.phase.objective](model, chosen.phase, chosen.config, store)
    few = [objective[number] for number in range(2)]
    model.train()
    expected = objective.module(**objective.collate(few))["loss"]
    torch.testing.assert_close(benchmark.Plain(objective, 2).loss(few), expected, rtol=1e-4, atol=1e-5)


def test_the_plain_loop_has_the_loss_of_ours_on_replies_where_captions_are_equally_long(data, monkeypatch):
    chosen = case(data, "answer")
    monkeypatch.setattr("langdc.captioner.Captioner.encode", lambda self, text: torch.tensor([5, 6, 7]))
    model = benchmark.build(chosen)
    store = FeatureStore.of(model.backbone, None, "float32")
    objective = OBJECTIVES[chosen.phase.objective](model, chosen.phase, chosen.config, store)
    few = [objective[number] for number in range(2)]
    expected = objective.module(**objective.collate(few))["loss"]
    loop = benchmark.Plain(objective, 2)
    loss = loop.loss(few)
    learned = sum(int((objective.prompt(sample).labels[1:] != -100).sum()) for sample in few)
    assert learned > 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ["caption", "answer"])
def test_every_way_has_a_line(data, tmp_path, objective: str):
    lines = [dict(zip(benchmark.COLUMNS, row, strict=True)) for row in benchmark.rows(case(data, objective), tmp_path)]
    extra = "plain loop, one look" if objective == "caption" else "ours, stored features and states"
    assert {line["how"] for line in lines} == {"plain loop", "ours, from pixels", "ours, stored features", extra}
    assert lines[0]["faster"] == "1.00x" and all(float(line["samples/s"]) > 0 for line in lines)
    assert all(int(line["step MiB"]) >= 0 for line in lines)


def test_the_biggest_costs_are_named_with_their_share(data):
    found = benchmark.profile(case(data, "caption"))
    shares = [int(share.rstrip(" %")) for _, _, share in found]
    assert len(found) == 5 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 102


def shares(model: VideoModel) -> list[float]:
    """Of encoding a video, reading captions of 59 tokens, and reading 1,000 tokens, of all three."""
    sides, widths = model.backbone.stream_sides, model.backbone.stream_widths
    encoded = {name: FeatureGrid(torch.zeros(16, side, side, widths[name])) for name, side in sides.items()}
    found = [
        model.backbone.encoder_flops(encoded),
        caption_flops(model.captioner, encoded, [59] * 4, given="scored"),
        language_model_flops(model.backbone.language_model.config, 1000),
    ]
    return [each / sum(found) for each in found]


def test_the_narrow_model_has_the_shares_of_the_full_one():
    path = benchmark.ROOT / "configs" / "langdc_3b" / "model.yaml"
    with torch.device("meta"):
        full = checkpoint.start(settings.load(benchmark.Model, path).model, None)[0]
    narrow = checkpoint.start(benchmark.narrow(dual=True), None)[0]
    assert shares(narrow) == pytest.approx(shares(full), abs=0.1)
