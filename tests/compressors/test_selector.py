"""The learned selector: what it keeps, what it learns from, and how its budget shrinks."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from langdc.compressors import build
from langdc.conformance.candidates import WIDTH, noise
from langdc.types import Context, VideoFeatures
from tests import tiny
from tests.compressors.grids import alone, grid_of
from tests.compressors.grids import noise as values_of
from tests.reference.vectors import best, dot

BOTH = frozenset({"tokens", "budget"})


def make(width: int = WIDTH, **settings):
    torch.manual_seed(0)
    settings = {"keep": 0.25, **settings}
    return build("selector", width=width, **settings, frames_per_segment=4).eval()


def at(progress: float, seed: int = 1, wanted: frozenset[str] = BOTH) -> Context:
    return Context(True, progress, torch.Generator().manual_seed(seed), wanted=wanted)


def slow_scores(compressor, values: Tensor, question: Tensor | None = None) -> list[float]:
    """Token by token, in float64."""
    slow = {name: part.double() for name, part in compressor.double().named_children()}
    tokens = [slow["norm"](token) for token in values.double().flatten(0, 2)]
    query = sum(slow["query"](token) for token in tokens) / len(tokens)
    if question is not None:
        words = [slow["question"](slow["norm"](word)) for word in question.double()]
        query = query + sum(words) / len(words)
    scale = len(query) ** 0.5
    scores = [float(slow["level"](t)) + dot(slow["key"](t).tolist(), query.tolist()) / scale for t in tokens]
    compressor.float()
    return scores


@pytest.mark.parametrize("question", [False, True])
@torch.no_grad()
def test_the_best_tokens_stay_as_they_are(question: bool) -> None:
    compressor, video = make(question=question), noise(frames=5, size=(3, 4))
    grid = video.projected[0]
    scores = slow_scores(compressor, grid.values, video.question if question else None)
    expected = best(dict(enumerate(scores)), 15)
    found = alone(compressor, video)
    assert found.source.tolist() == expected
    assert torch.equal(found.values, grid.values.flatten(0, 2)[expected])
    assert torch.equal(found.extra[0], grid.extra[0].flatten(0, 2)[expected])
    assert found.segment.tolist() == [s // 12 // 4 for s in expected]


def test_each_stream_has_its_share() -> None:
    video = tiny.features()
    found = alone(make(tokens=52, keep=None), video)
    before = video.projected[0].tokens
    assert len(found) == 52
    assert int((found.source < before).sum()) == 36  # of 576 and 256 tokens


def test_the_question_decides() -> None:
    compressor, one, other = make(question=True), noise(0), noise(0)
    compressor.question.weight.data *= 100
    other = VideoFeatures(one.projected, one.encoder, one.seconds, -one.question)
    assert compressor.needs == {"projected", "question"}
    assert alone(compressor, one).source.tolist() != alone(compressor, other).source.tolist()
    with pytest.raises(ValueError, match="needs the question of every video"):
        compressor([one, VideoFeatures(one.projected, one.encoder, one.seconds)])


@pytest.mark.parametrize(("progress", "kept"), [(0.0, 64), (0.25, 40), (0.5, 16), (1.0, 16)])
def test_the_budget_shrinks_over_the_first_half_of_the_run(progress: float, kept: int) -> None:
    grid = grid_of(values_of(4, 4, 4, 8))
    video = VideoFeatures((grid,), {}, torch.arange(4))
    assert len(make(8).train()([video], at(progress)).tokens[0]) == kept
    assert len(make(8, anneal=0).train()([video], at(progress)).tokens[0]) == 16
    assert len(make(8)([video], Context(progress=progress)).tokens[0]) == 16


def test_noise_is_drawn_from_the_generator_and_fades() -> None:
    compressor, video = make(anneal=0).train(), noise()

    def kept(progress: float, seed: int) -> list[int]:
        return compressor([video], at(progress, seed)).tokens[0].source.tolist()

    assert kept(0.0, 1) == kept(0.0, 1) != kept(0.0, 2)
    assert kept(1.0, 1) == kept(1.0, 2) == alone(compressor, video).source.tolist()
    still = make(anneal=0, noise=0.0).train()
    assert still([video], at(0.0)).tokens[0].source.tolist() == alone(still, video).source.tolist()


def test_tokens_pass_unchanged_with_the_gradient_of_their_gates() -> None:
    """By hand: the gradient of the sum of kept tokens to a gate is the token's sum."""
    compressor, video = make(anneal=0, noise=0.0).train(), noise(frames=3, size=(2, 2))
    tokens = compressor([video], at(1.0)).tokens[0]
    torch.testing.assert_close(tokens.values, video.projected[0].values.flatten(0, 2)[tokens.source])
    tokens.values.sum().backward()
    (scores,) = compressor._scores([video])[0]
    gate = scores.detach().sigmoid()[tokens.source]
    expected = (gate * (1 - gate) * tokens.values.detach().sum(1)).sum()
    torch.testing.assert_close(compressor.level.bias.grad[0], expected, atol=1e-4, rtol=1e-4)


def test_the_budget_loss_pulls_the_mean_gate_to_the_share() -> None:
    compressor, video = make(noise=0.0), noise()
    optimizer = torch.optim.Adam(compressor.parameters(), lr=0.02)
    for _ in range(60):
        loss, count = compressor([video], Context(wanted=frozenset({"budget"}))).losses["budget"]
        assert count == 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (scores,) = compressor._scores([video])[0]
    assert abs(float(scores.detach().sigmoid().mean()) - 0.25) < 0.02


def test_it_learns_which_tokens_a_loss_wants() -> None:
    """Tokens whose first channel is high help a made-up reader; after training they are the ones that stay."""
    compressor = make(tokens=8, keep=None, anneal=0.6)
    optimizer = torch.optim.Adam(compressor.parameters(), lr=0.01)
    for step in range(150):
        result = compressor.train()([noise(step, 4, size=(4, 4))], at(step / 149, step))
        budget, count = result.losses["budget"]
        optimizer.zero_grad()
        (budget / count - result.tokens[0].values[:, 0].mean()).backward()
        optimizer.step()
    video = noise(999, 4, size=(4, 4))
    kept, every = alone(compressor.eval(), video).values[:, 0].mean(), video.projected[0].values[..., 0]
    best_possible = every.flatten().topk(8).values.mean()
    assert kept > 0.7 * best_possible > every.mean()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anneal": 1.5}, "anneal=1.5 must be in"),
        ({"noise": -1}, "noise=-1 not negative"),
        ({"inner": 0}, "inner=0 at least 1"),
        ({"keep": None}, "neither was given"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_the_budget_loss_is_one_number_for_a_video_of_several_streams() -> None:
    """As `loss_counts` announces: a step's mean is over videos."""
    video = tiny.features()
    assert len(video.projected) == 2
    compressor = build("selector", width=video.projected[0].values.shape[-1], keep=0.25)
    wanted = Context(wanted=frozenset({"budget"}))
    alone = [compressor([replace(video, projected=(grid,))], wanted).losses["budget"][0] for grid in video.projected]
    loss, count = compressor([video, video], wanted).losses["budget"]
    assert count == 2 and loss.item() == pytest.approx((alone[0] + alone[1]).item())
