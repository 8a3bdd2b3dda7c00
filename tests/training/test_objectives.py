"""What a training step is said to take."""

import torch

from langdc.hosts.chat import conversation
from langdc.training.objectives import AnswerModule
from langdc.types import VideoFeatures
from tests import tiny


def _step(module: AnswerModule, raw: VideoFeatures) -> float:
    messages = [*conversation("what is it ?"), {"role": "assistant", "content": "red"}]
    prompt = module.model.host.prompt(messages, learn=True)
    module([prompt], torch.zeros(1), {name: [grid.values] for name, grid in raw.raw.items()})
    return module.flops


def test_a_compressor_that_is_trained_is_counted_three_times(monkeypatch):
    model = tiny.model("ldpv2", sides=[2, 2])
    module, video = AnswerModule(model), tiny.features()
    own = model.compressor.flops(video)
    found = _step(module, video)
    frozen = model.compressor.requires_grad_(False)
    assert found - _step(module, video) == own > 0  # backward to its inputs is counted all the same
    monkeypatch.setattr(frozen, "flops", lambda video: 0.0)
    assert found - _step(module, video) == 3 * own
