"""The start of the post-projector: the best linear map onto words, and refusals where there is none."""

import pytest
import torch
from langdc.training import stages
from langdc.training.alignment import Alignment

from langdc.config import PhaseConfig, StageConfig
from langdc.features import FeatureStore, module_hash
from langdc.sample.dataset import make_dataset
from tests import tiny

MARKER = "[{number}]"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "sample"
    make_dataset(folder, {"train": 6, "test": 0}, images=0, workers=1)
    return folder / "train.jsonl"


def phase(data, **changes) -> PhaseConfig:
    trainable = ["compressor.post_projector.*", "compressor.segment_marker"]
    settings = {"name": "align", "objective": "align", "data": [data], "trainable": trainable, "epochs": 1}
    return PhaseConfig(**{**settings, "batch_size": 4, "segment_text": MARKER, **changes})


def alignment(data, model=None, **changes) -> Alignment:
    model = model or tiny.model(segment_marker=True)
    features = FeatureStore(model.backbone.encode, module_hash(model.backbone.encoders), None)
    config = StageConfig(stage="stage2", model=model.config, output="unused", phases=[phase(data)])
    return Alignment(model, phase(data, **changes), config, features)


def test_it_is_the_least_squares_map(data):
    found = alignment(data)
    outcome = found.solve()
    embeddings = found.model.backbone.language_model.get_input_embeddings().weight.detach()
    batch = found.collate([found[i] for i in range(len(found))])
    words = embeddings[batch["labels"][batch["labels"] >= 0]]
    padded = torch.nn.functional.pad(batch["states"], (0, 1), value=1.0).double()
    best = padded @ torch.linalg.lstsq(padded, words.double(), driver="gelsd").solution
    projected = found.compressor.post_projector(batch["states"]).detach().double()
    least, reached = ((best - words) ** 2).sum(), ((projected - words) ** 2).sum()
    assert reached <= least * 1.01
    assert outcome.loss == pytest.approx(float(reached / words.double().square().sum()), rel=1e-3)
    assert (outcome.steps, outcome.samples) == (0, 6) and outcome.flops > 0


def test_markers_are_the_words_before_a_segment(data):
    found = alignment(data)
    found.solve()
    backbone, markers = found.model.backbone, found.compressor.segment_marker
    third = backbone.tokenizer("[3]", add_special_tokens=False)["input_ids"]
    assert torch.equal(markers[2:3], backbone.language_model.get_input_embeddings()(torch.tensor(third)))


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({"segment_marker": True}, {"captions": "captioner"}, "set captions: file"),
        ({"segment_marker": True, "post_projector": "mlp2x_gelu"}, {}, "post_projector: linear"),
        ({"segment_marker": True}, {"segment_text": "segment {number} :"}, "puts 1 before"),
        ({"segment_marker": False}, {}, "puts 0 before"),
    ],
)
def test_what_cannot_be_aligned_is_refused(data, model, changes, message):
    with pytest.raises(ValueError, match=message):
        alignment(data, tiny.model(**model), **changes)


def test_a_stage_takes_it_as_a_phase(data, tmp_path):
    answer = phase(data, name="post", objective="answer", epochs=None, steps=2, segment_text=None)
    model = tiny.config(segment_marker=True)
    config = StageConfig(stage="stage2", model=model, output=tmp_path / "x", phases=[phase(data), answer], log_steps=1)
    directory = stages.run_stage(config)
    figures = stages.json.loads((directory / "finished.json").read_text())
    assert figures["steps"] == 2 and figures["phases"]["align"]["steps"] == 0
    assert figures["samples"] == 6 + figures["phases"]["post"]["samples"]
