"""What a frozen part makes of videos is computed once, for any compressor that has one."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from langdc.data.records import read_records, write_records
from langdc.interfaces import TokenCompressor
from langdc.train import states
from langdc.train.trainable import unfreeze
from langdc.types import Compressed, Context, VideoFeatures, VideoTokens
from tests import tiny
from tests.train import small


def frozen_langdc(*trained: str, **settings):
    model = small.langdc(**settings)
    unfreeze(model, trained or ["compressor.post_projector.*"])
    return model


def test_stored_states_give_the_tokens_of_a_step_that_computes_them():
    model = frozen_langdc(base={"name": "pool", "sides": [3, 2]})
    stored, computed = (
        small.data_of(model, small.run_config(model, "train", "images", feature_memory=memory)) for memory in (16, 0)
    )
    assert stored.states is not None and computed.states is None
    first, second = (small.batch_of(data)["batch"] for data in (stored, computed))
    assert first.raw and second.frames
    outputs = [
        model.compressor(model.features(batch), Context(training=True, targets=batch.targets)).tokens
        for batch in (first, second)
    ]
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one.values, other.values)
        assert torch.equal(one.segment, other.segment)


def test_grids_that_nothing_reads_are_not_in_the_batch():
    model = frozen_langdc()
    data = small.data_of(model, small.run_config(model, "train", "images"))
    batch = small.batch_of(data)["batch"]
    kept = [data.features.get(sample.specs[0])[0] for sample in data.samples]
    for grids, whole in zip(batch.raw, kept, strict=True):
        assert {n: g.values.shape for n, g in grids.items()} == {n: (*g.values.shape[:3], 0) for n, g in whole.items()}
    teacher = small.data_of(model, small.run_config(model, objective="distill"))
    assert small.batch_of(teacher)["batch"].raw[0]["image"].values.shape[3] > 0


def test_they_are_kept_in_a_folder_until_something_they_depend_on_changes(tmp_path: Path):
    shutil.copytree(small.folder(), tmp_path / "data")
    file = tmp_path / "data" / "train.jsonl"
    calls: list[int] = []

    def computed(model, **changes) -> int:
        compressor = type(model.compressor)
        forward = compressor.forward
        compressor.forward = lambda self, videos, *more: calls.append(len(videos)) or forward(self, videos, *more)
        try:
            calls.clear()
            config = small.run_config(model, str(file), features=tmp_path / "features", **changes)
            assert small.data_of(model, config).states is not None
        finally:
            compressor.forward = forward
        return sum(calls)

    model = frozen_langdc()
    assert computed(model) == 6
    assert computed(frozen_langdc()) == 0, "by another process"
    assert computed(model, targets="none") == 6
    records = read_records(file)
    segments = [records[0].segments[0].model_copy(update={"caption": "red"}), *records[0].segments[1:]]
    write_records(file, [records[0].model_copy(update={"segments": segments}), *records[1:]])
    assert computed(model) == 1
    with torch.no_grad():
        next(model.compressor.captioner.parameters()).add_(0.1)
    assert computed(model) == 6


def test_videos_of_one_length_are_computed_together(monkeypatch: pytest.MonkeyPatch):
    model, calls = frozen_langdc(), []
    config = small.run_config(model, "train", "images", "train", targets="none")
    whole = small.data_of(model, config).states
    forward = type(model.compressor).forward

    def counted(self, videos: list[VideoFeatures], *more: Any) -> Compressed:
        calls.append([len(video.seconds) for video in videos])
        return forward(self, videos, *more)

    monkeypatch.setattr(type(model.compressor), "forward", counted)
    monkeypatch.setattr(states, "FRAMES", 64)
    parts = small.data_of(model, config).states
    assert calls == [[1] * 3, [16] * 4, [16] * 2]
    assert whole is not None and parts is not None
    for sample, _ in whole.videos:
        for one, other in zip(parts[sample], whole[sample], strict=True):
            torch.testing.assert_close(one, other)


def test_what_is_trained_is_not_stored():
    model = frozen_langdc("compressor.projectors.*")
    assert small.data_of(model, small.run_config(model, objective="compress")).states is None
    assert small.data_of(tiny.model("pool"), small.run_config(tiny.model("pool"))).states is None


class Frozen(TokenCompressor):
    """A compressor of somebody else's: a frozen table and a map that is trained."""

    needs_with_states = frozenset()

    def __init__(self, width: int = tiny.BACKBONE_WIDTH) -> None:
        super().__init__()
        self.table, self.map = nn.Linear(width, 5).requires_grad_(False), nn.Linear(5, width)

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        states: Any = context.targets.get("states")
        if states is None:
            states = [[self.table(video.projected[0].values.mean((1, 2))), torch.arange(2)] for video in videos]
        states = [state or [torch.zeros(1, 5), torch.arange(2)] for state in states]
        tokens = [self._tokens(state[0]) for state in states] if "tokens" in context.wanted else []
        return Compressed(tokens, states=states)

    def _tokens(self, state: Tensor) -> VideoTokens:
        return VideoTokens(self.map(state), torch.zeros(len(state), dtype=torch.long))

    def targets(self, record: Any) -> Mapping[str, Any]:
        return {"size": torch.tensor([len(record.id)])}

    def frozen_identity(self, context: Context) -> str | None:
        return "table"


@pytest.mark.parametrize("files", [["train"], ["train", "text"]])
def test_any_compressor_may_use_it(files: list[str]):
    model = tiny.model("pool")
    model.compressor = Frozen()
    data = small.data_of(model, small.run_config(model, *files))
    batch = small.batch_of(data)
    assert set(batch["batch"].targets) == {"states", "size"}
    first, second = batch["batch"].targets["states"][0]
    assert first.shape == (16, 5) and torch.equal(second, torch.arange(2))
    small.learner_of(data)(**batch)["loss"].backward()
    text = small.batch_of(data, len(data) - 1)["batch"]
    assert text.blank == (len(files) == 2) and (not text.blank or text.targets["states"] == [None])
