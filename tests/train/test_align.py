"""The start of the map from states to tokens: the best linear map onto words, and refusals where there is none."""

from pathlib import Path

import pytest
import torch

from langdc.train.trainable import unfreeze
from tests import tiny
from tests.train import small

MARKER = {"name": "align", "segment_text": "[{number}]"}


def made(objective: dict = MARKER, model=None, **changes):
    model = model or small.langdc(segment_marker=True)
    unfreeze(model, ["compressor.post_projector.*", "compressor.segment_marker.*"])
    return small.data_of(model, small.run_config(model, "train", "text", objective=objective, **changes))


def test_it_is_the_least_squares_map(tmp_path: Path):
    data = made(batch_size=4)
    model, objective = data.model, data.objective
    objective.prepare(model, data, tmp_path)
    loss, flops = objective.solve(model, data)
    embeddings = model.backbone.language_model.get_input_embeddings().weight.detach()
    targets = data.collate([data[i] for i in range(len(data))])["batch"].targets
    states, ids = (torch.cat([part for video in targets[n] for part in video]) for n in ("states", "captions"))
    words = embeddings[ids]
    padded = torch.nn.functional.pad(states, (0, 1), value=1.0).double()
    best = padded @ torch.linalg.lstsq(padded, words.double(), driver="gelsd").solution
    projected = model.compressor.post_projector(states).detach().double()
    least, reached = ((best - words) ** 2).sum(), ((projected - words) ** 2).sum()
    assert reached <= least * 1.01
    assert loss == pytest.approx(float(reached / words.double().square().sum()), rel=1e-3)
    assert len(data) == 6 and flops > 0


def test_markers_are_the_words_before_a_segment():
    data = made()
    data.objective.solve(data.model, data)
    backbone, markers = data.model.backbone, data.model.compressor.segment_marker.weight
    third = backbone.tokenizer("[3]", add_special_tokens=False)["input_ids"]
    assert torch.equal(markers[2:3], backbone.language_model.get_input_embeddings()(torch.tensor(third)))


@pytest.mark.parametrize(
    ("settings", "objective", "changes", "message"),
    [
        ({"segment_marker": True}, MARKER, {"targets": "none"}, r"set train\.targets: records"),
        ({"segment_marker": True}, MARKER, {"feature_memory": 0}, "keep features"),
        ({"segment_marker": True, "post_projector": "mlp2x_gelu"}, MARKER, {}, "post_projector: linear"),
        ({"segment_marker": True}, {"name": "align", "segment_text": "segment {number} :"}, {}, "puts 1 before"),
        ({"segment_marker": False}, MARKER, {}, "puts 0 before"),
    ],
)
def test_what_cannot_be_aligned_is_refused(
    settings: dict, objective: dict, changes: dict, message: str, tmp_path: Path
):
    model = small.langdc(**settings)
    patterns = ["compressor.post_projector.*"]
    unfreeze(model, patterns)
    data = small.data_of(model, small.run_config(model, objective=objective, **changes))
    with pytest.raises(ValueError, match=message):
        data.objective.prepare(model, data, tmp_path)


def test_a_compressor_without_states_is_refused(tmp_path: Path):
    model = tiny.model("pool")
    data = small.data_of(model, small.run_config(model, objective=MARKER))
    with pytest.raises(ValueError, match="Pool has no states that align could map to words"):
        data.objective.prepare(model, data, tmp_path)
