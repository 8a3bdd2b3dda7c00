"""What a training step is said to take."""

import pytest
import torch

from langdc.backbones.chat import conversation
from langdc.training.answers import AnswerModule
from langdc.types import VideoFeatures
from tests import tiny


def _step(module: AnswerModule, encoded: VideoFeatures) -> float:
    messages = [*conversation("what is it ?"), {"role": "assistant", "content": "red"}]
    prompt = module.model.backbone.prompt(messages, learn=True)
    module([prompt], torch.zeros(1), {name: [grid.values] for name, grid in encoded.encoder.items()})
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


DUAL = {"base": {"name": "pool", "sides": [3, 2]}}


@pytest.mark.parametrize(("compressor", "settings"), [("langdc", DUAL), ("langdc", {}), ("ldpv2", {"sides": [2, 2]})])
def test_batches_with_few_videos_make_the_calls_of_full_ones(compressor: str, settings: dict):
    """Of every module, also those without weights: under ZeRO-3 ranks that differ in them wait for each other."""
    model = tiny.model(compressor, **settings)
    text, seen = (
        model.backbone.prompt(conversation("what is red ?", "red", video=video), learn=True) for video in (False, True)
    )
    video, called = tiny.features(), []
    for name, part in model.named_modules():
        part.register_forward_pre_hook(lambda *_, name=name: called.append(name))

    def step(least: int, videos: int) -> tuple[float, list[str]]:
        called.clear()
        prompts = [seen] * videos + [text] * (2 - videos)
        said = [[torch.randn(3, tiny.CAPTIONER_WIDTH, generator=torch.Generator().manual_seed(1))]] * videos
        found = AnswerModule(model, least)(
            prompts,
            torch.zeros(1),
            {name: [grid.values] * videos for name, grid in video.encoder.items()} if videos else {},
            said if compressor == "langdc" else None,
        )
        found["loss"].backward()
        return found["loss"].item(), list(called)

    full, one, none = (step(2, videos) for videos in (2, 1, 0))
    assert full[1] == one[1] == none[1]
    assert one[0] == pytest.approx(step(1, 1)[0], rel=1e-5)
