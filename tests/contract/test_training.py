"""Every compressor can be trained on every backbone, by the one forward that asking uses, too."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F

from langdc.backbones.chat import IGNORED, conversation, share_video
from langdc.backbones.inputs import read_prompt
from langdc.compressors import compressors
from langdc.types import Context
from tests import stock
from tests.contract import grid

FAST = [("qwen2_5_vl", member) for member in grid.MEMBERS] + [
    (name, "resampler") for name in grid.BACKBONES if name != "qwen2_5_vl"
]
SLOW = [pair for pair in grid.grid() if pair not in FAST]
PAIRS = [pytest.param(*pair, id="-".join(pair)) for pair in FAST] + [
    pytest.param(*pair, id="-".join(pair), marks=pytest.mark.slow) for pair in SLOW
]
RATE = 1e-2


def test_every_member_of_the_registry_is_tried() -> None:
    lacking = set(compressors.names()) - {*grid.MEMBERS, *grid.TRAINING_FREE}
    assert not lacking, f"Add one line for each of {sorted(lacking)} to MEMBERS of tests/contract/grid.py."


@pytest.mark.parametrize("member", [*grid.MEMBERS, *grid.TRAINING_FREE])
def test_every_member_gives_tokens(member: str) -> None:
    model, _ = grid.build("qwen2_5_vl", member)
    batch = grid.batch_of(model, grid.clips("qwen2_5_vl"))
    with torch.no_grad():
        found = model(batch)
    for video, tokens in zip(model.features(batch), found.compressed.tokens, strict=True):
        assert tokens.values.shape[1] == model.backbone.width and tokens.values.isfinite().all()
        assert len(tokens) > 0
        assert member == "langdc" or len(tokens) <= video.grid[0] * video.grid[1] * video.grid[2]
        assert (tokens.segment.diff() >= 0).all()
    assert found.logits.isfinite().all()


@pytest.mark.parametrize(("name", "member"), [pytest.param(*pair, id="-".join(pair)) for pair in FAST])
def test_five_steps_lower_the_loss(name: str, member: str) -> None:
    model, _ = grid.build(name, member)
    history = grid.train(model, grid.batch_of(model, grid.clips(name)), 5, RATE)
    assert history[-1] < history[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "member"), [pytest.param(*pair, id="-".join(pair)) for pair in FAST])
def test_twenty_steps_on_one_batch_lower_the_loss_below_four_fifths(name: str, member: str) -> None:
    model, _ = grid.build(name, member)
    history = grid.train(model, grid.batch_of(model, grid.clips(name)), 20, RATE)
    assert fmean(history[-3:]) < 0.8 * fmean(history[:3])


@pytest.mark.parametrize(("name", "member"), PAIRS)
def test_a_ragged_batch_has_the_losses_of_its_videos_one_by_one(name: str, member: str) -> None:
    model, _ = grid.build(name, member)
    batch = grid.batch_of(model, grid.clips(name))
    with torch.no_grad():
        total, count = grid.answer_loss(model, batch)
        alone = [grid.answer_loss(model, grid.single(batch, number)) for number in range(3)]
    assert count == sum(each for _, each in alone)
    assert float(total) == pytest.approx(sum(float(loss) for loss, _ in alone), rel=1e-5)


@pytest.mark.parametrize(("name", "member"), PAIRS)
def test_gradients_reach_what_is_trained_and_nothing_else(name: str, member: str) -> None:
    model, trained = grid.build(name, member)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if "lora_B" in weight_name:
                weight.normal_(std=0.02)  # zero at the start, so that lora_A would get none
    batch = grid.batch_of(model, grid.clips(name))
    wanted = frozenset({"tokens", *model.compressor.losses})
    found = model(batch, Context(True, 0.3, torch.Generator().manual_seed(0), wanted=wanted))
    own = sum(total for total, _ in found.compressed.losses.values())
    (found.logits.square().sum() + own).backward()
    reached = {key for key, weight in model.named_parameters() if weight.grad is not None}
    assert reached <= trained
    zero = {key for key, weight in model.named_parameters() if key in trained and not weight.grad.abs().sum() > 0}
    assert not {key for key in zero if not key.startswith("compressor.")}
    assert trained - reached == set() if member != "langdc" else True


@pytest.mark.parametrize(("name", "member"), PAIRS)
def test_asking_reads_what_training_reads(name: str, member: str) -> None:
    model, _ = grid.build(name, member)
    videos = grid.clips(name)
    batch = grid.batch_of(model, videos, learn=False)
    with torch.no_grad():
        found = model(batch)
        for number, video in enumerate(videos):
            one = grid.single(batch, number)
            features = model.features(one)
            tokens = model.compress(features, Context(targets=one.targets)).tokens
            steps = [-(-len(video) // model.backbone.frames_per_step)]
            reading = read_prompt(model.backbone, batch.prompts[number], tokens, None, [len(video)], steps)
            torch.testing.assert_close(reading.logits[0], found.logits[number], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", grid.SHARING)
@pytest.mark.parametrize("member", ["identity", "resampler"])
def test_questions_that_share_a_video_have_the_losses_of_separate_prompts(name: str, member: str) -> None:
    model, _ = grid.build(name, member)
    batch = grid.single(grid.batch_of(model, grid.clips(name)), 0)
    media, steps = model.features(batch), model.compressor.frames_per_segment
    prompts = [
        model.backbone.prompt(conversation(*pair), learn=True, media=media, segment_steps=steps)
        for pair in grid.QUESTIONS
    ]
    with torch.no_grad():
        shared, count = grid.answer_loss(model, replace(batch, prompts=[share_video(prompts)]))
        apart, expected = grid.answer_loss(model, replace(batch, prompts=prompts, shows=[(0,)] * 3))
    assert count == expected
    assert float(shared) == pytest.approx(float(apart), rel=1e-5)


@pytest.mark.parametrize("name", grid.SHARING)
@pytest.mark.parametrize("member", ["identity", "resampler", "langdc"])
def test_packed_samples_have_the_losses_of_separate_rows(name: str, member: str) -> None:
    """Different videos, questions that share one, and a text, none of which attends to another."""
    model, _ = grid.build(name, member)
    batch = grid.batch_of(model, grid.clips(name))
    media, steps = model.features(batch), model.compressor.frames_per_segment

    def prompt(question: str, answer: str, number: int):
        asked = conversation(question, answer)
        return model.backbone.prompt(asked, learn=True, media=[media[number]], segment_steps=steps)

    shared = share_video([prompt("what is it ? " + "red " * 9 * n, "a dog . " * 9, 1) for n in (1, 2, 3)])
    text = model.backbone.prompt(conversation("say ring", "ring", videos=0), learn=True)
    batch = replace(
        batch,
        prompts=[batch.prompts[0], text, batch.prompts[2], shared, batch.prompts[1]],
        shows=[(0,), (), (2,), (1,), (1,)],
    )
    with torch.no_grad():
        one, two = (model(replace(batch, packed=packed), Context(targets=batch.targets)) for packed in (False, True))
    assert (
        len(one.inputs.embeds) == 5
        and len(two.inputs.embeds) < 4
        and two.inputs.embeds.shape[1] == one.inputs.embeds.shape[1]
    )
    assert torch.equal(one.labels, two.labels)
    torch.testing.assert_close(two.logits, one.logits, atol=1e-5, rtol=1e-5)
    losses = [F.cross_entropy(each.logits, each.labels) for each in (one, two)]
    assert float(losses[1]) == pytest.approx(float(losses[0]), abs=1e-5)


@pytest.mark.parametrize("name", grid.STOCK_POSITIONS)
def test_without_compression_the_loss_is_transformers_own(name: str) -> None:
    model, _ = grid.build(name, "identity")
    videos = grid.clips(name)
    batch = grid.batch_of(model, videos)
    for number, (video, pair) in enumerate(zip(videos, grid.QUESTIONS, strict=True)):
        with torch.no_grad():
            found = model(grid.single(batch, number))
            total, count = grid.answer_loss(model, grid.single(batch, number))
        labels = found.inputs.labels
        inputs = stock.learning_inputs(model.backbone, name, video, conversation(*pair))
        ids = inputs["input_ids"]
        assert ids.shape == labels.shape
        assert torch.equal(ids[labels != IGNORED], labels[labels != IGNORED])
        with torch.no_grad():
            assert float(model.backbone.model(**inputs, labels=labels).loss) == pytest.approx(
                float(total) / count, abs=1e-5
            )
            given = found.inputs.positions if len(found.inputs.positions) > 1 else found.inputs.positions[0]
            again = model.backbone.model(**inputs, labels=labels, position_ids=given).loss
        assert float(again) == pytest.approx(float(total) / count, abs=1e-5)
