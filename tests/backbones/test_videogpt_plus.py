"""The backbone encodes, projects and splices; padded and shared batches have the losses of single prompts."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from langdc.backbones import backbones
from langdc.backbones.chat import IGNORED, conversation, share_video
from langdc.backbones.inputs import text_inputs
from langdc.backbones.videogpt_plus import VideoGPTPlus
from langdc.types import Frames, Prompt, Slot, TextInputs, VideoTokens
from tests import tiny
from tests.reference.answers import slow_losses

ASKED = [
    [("what shape is the red object ?", "square"), ("how does the blue ring move ?", "left"), ("how many ?", "3")],
    [("which segment has the most objects ?", "2")],
    [("what colour ?", "red ; blue"), ("what shape is the green object ?", "cross")],
]


def build(seed: int = 0, **settings) -> VideoGPTPlus:
    torch.manual_seed(seed)
    return backbones.build("videogpt_plus", **tiny.backbone_settings(**settings)).eval()


@pytest.fixture(scope="module")
def backbone() -> VideoGPTPlus:
    return build()


def losses(backbone: VideoGPTPlus, batch: TextInputs) -> Tensor:
    """Nats of every label [B,M-1], 0 where there is none."""
    with torch.no_grad():
        found = backbone.text_model(**batch.arguments)
        logits = backbone.lm_head(found.last_hidden_state[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), batch.labels[:, 1:], reduction="none", ignore_index=IGNORED)


def real(values: Tensor, batch: TextInputs, row: int) -> list[float]:
    return values[row][batch.labels[row, 1:] != IGNORED].tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("left", [False, True])
def test_questions_that_share_a_video_have_the_losses_of_separate_prompts(attention: str, left: bool) -> None:
    backbone = build(attention=attention)
    videos = [tiny.video_tokens(count, number) for number, count in enumerate((5, 0, 9))]
    single = [[backbone.prompt(conversation(q, a), learn=True) for q, a in asked] for asked in ASKED]
    batch = text_inputs(backbone, [share_video(prompts) for prompts in single], [[v] for v in videos], left)
    found = losses(backbone, batch)
    for row, (prompts, video) in enumerate(zip(single, videos, strict=True)):
        expected = [value for prompt in prompts for value in slow_losses(backbone, prompt, [video.values])]
        assert len(expected) >= 2 * len(prompts)
        assert real(found, batch, row) == pytest.approx(expected, abs=1e-5)


def test_text_and_shared_videos_in_one_batch(backbone: VideoGPTPlus) -> None:
    video = tiny.video_tokens(4)
    shared = [backbone.prompt(conversation(q, a), learn=True) for q, a in ASKED[0]]
    alone = backbone.prompt(conversation("what is red ?", "red", videos=0), learn=True)
    batch = text_inputs(backbone, [alone, share_video(shared)], [[], [video]])
    found = losses(backbone, batch)
    assert real(found, batch, 0) == pytest.approx(slow_losses(backbone, alone, []), abs=1e-5)
    assert real(found, batch, 1) == pytest.approx(
        [value for prompt in shared for value in slow_losses(backbone, prompt, [video.values])], abs=1e-5
    )


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_no_loss(backbone: VideoGPTPlus, left: bool) -> None:
    prompts = [backbone.prompt(conversation(*asked[0]), learn=True) for asked in ASKED]
    videos = [tiny.video_tokens(count, count) for count in (7, 2, 0)]
    batch = text_inputs(backbone, prompts, [[video] for video in videos], left)
    lengths = [len(prompt.ids) + len(video) for prompt, video in zip(prompts, videos, strict=True)]
    assert batch.embeds.shape[1] == max(lengths)
    assert batch.mask.sum(1).tolist() == lengths
    for row, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
        where = slice(-lengths[row], None) if left else slice(lengths[row])
        assert batch.positions[0][row][where].tolist() == list(range(lengths[row]))
        assert real(losses(backbone, batch), batch, row) == pytest.approx(
            slow_losses(backbone, prompt, [video.values]), abs=1e-5
        )


@pytest.mark.parametrize("count", [0, 1, 2])
def test_splice_equals_a_concatenation_by_hand(backbone: VideoGPTPlus, count: int) -> None:
    ids = torch.arange(20, 31)
    labels = torch.where(ids > 27, ids, IGNORED)
    videos = [tiny.video_tokens(3, 1), tiny.video_tokens(5, 2)][:count]
    slots = (Slot(2, 1), Slot(7, 0)) if count == 2 else (Slot(4, 0),)[:count]
    (found,) = backbone.splice([Prompt(ids, labels, slots)], [videos])
    words = backbone.text_model.get_input_embeddings()(ids)
    parts = {
        0: [words],
        1: [words[:4], tiny.video_tokens(3, 1).values, words[4:]],
        2: [words[:2], tiny.video_tokens(5, 2).values, words[2:7], tiny.video_tokens(3, 1).values, words[7:]],
    }[count]
    assert torch.equal(found.embeds, torch.cat(parts))
    is_video = torch.cat([torch.full((len(part),), bool(number % 2)) for number, part in enumerate(parts)])
    assert torch.equal(found.video, is_video)
    assert torch.equal(found.labels[~is_video], labels)
    assert (found.labels[is_video] == IGNORED).all()
    assert found.sequence_id is None


def test_splice_of_a_batch_equals_its_prompts_alone(backbone: VideoGPTPlus) -> None:
    prompts = [backbone.prompt(conversation("what ?", videos=v)) for v in (True, False, True)]
    videos = [[tiny.video_tokens(3, 1)], [], [tiny.video_tokens(2, 2)]]
    for together, prompt, video in zip(backbone.splice(prompts, videos), prompts, videos, strict=True):
        assert torch.equal(together.embeds, backbone.splice([prompt], [video])[0].embeds)
        assert together.labels is None


def test_a_prompt_and_its_videos_must_fit(backbone: VideoGPTPlus) -> None:
    with pytest.raises(ValueError, match="places for 1 videos, 2 were given"):
        backbone.splice([backbone.prompt(conversation("what ?"))], [[tiny.video_tokens(1), tiny.video_tokens(1)]])


def test_without_compression_the_language_model_is_the_stock_one(backbone: VideoGPTPlus) -> None:
    """All projected patches as tokens, through the backbone's batch, and by hand into the stock model."""
    (features,) = backbone.features_of([tiny.frames(0, count=4)])
    everything = torch.cat([grid.values.flatten(0, 2) for grid in features.projected])
    tokens = VideoTokens(everything, torch.zeros(len(everything), dtype=torch.long))
    prompt = backbone.prompt(conversation("what shape ?"))
    batch = text_inputs(backbone, [prompt], [[tokens]])
    found = backbone.text_model(**batch.arguments)
    words = backbone.language_model.get_input_embeddings()(prompt.ids)
    at = prompt.slots[0].position
    stock = backbone.language_model(inputs_embeds=torch.cat([words[:at], everything, words[at:]])[None])
    torch.testing.assert_close(backbone.lm_head(found.last_hidden_state), stock.logits, atol=1e-5, rtol=1e-5)


def test_encode_projects_both_streams_and_trains_only_the_projectors() -> None:
    backbone = build()
    videos = [tiny.frames(0), tiny.frames(1, count=1)]
    encoded = backbone.features_of(videos)
    for video, features in zip(videos, encoded, strict=True):
        assert [tuple(g.values.shape) for g in features.projected] == [(len(video), 6, 6, 48), (len(video), 4, 4, 48)]
        for name, grid in zip(("image", "video"), features.projected, strict=True):
            torch.testing.assert_close(grid.values, backbone.projectors[name](features.encoder[name].values))
        assert torch.equal(features.seconds, video.seconds)
    sum(grid.values.sum() for features in encoded for grid in features.projected).backward()
    assert all(p.grad is not None for p in backbone.projectors.parameters())
    assert all(p.grad is None and not p.requires_grad for p in backbone.encoders.parameters())
    assert backbone.features_of(videos, frozenset({"encoder"}))[0].projected == ()


def test_a_system_message_comes_first(backbone: VideoGPTPlus) -> None:
    spoken = build(system="you are helpful .").prompt(conversation("what ?"))
    plain = backbone.prompt(conversation("what ?"))
    assert torch.equal(spoken.ids[-len(plain.ids) :], plain.ids)
    assert "helpful" in tiny.tokenizer().decode(spoken.ids)
    assert spoken.slots[0].position == plain.slots[0].position + len(spoken.ids) - len(plain.ids)


def test_an_architecture_needs_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="needs the setting 'tokenizer'"):
        build(tokenizer=None)


def test_places_say_when_and_where_a_token_was_seen() -> None:
    backbone, plain = build(places=True), build()
    assert not [name for name, _ in plain.named_parameters() if "places" in name]
    backbone.load_state_dict(plain.state_dict(), strict=False)
    steps, videos = len(backbone.places["image"].step), []
    for count in (steps, steps // 2, 1):
        videos.append(Frames(torch.zeros(count, 3, 32, 32, dtype=torch.uint8), torch.arange(count).float()))
    encoded, seconds = plain.encode(videos), [video.seconds for video in videos]
    need = frozenset({"projected"})
    with torch.no_grad():
        found, expected = backbone.project(encoded, seconds, need), plain.project(encoded, seconds, need)
        for video, bare in zip(found, expected, strict=True):
            for name, grid, without in zip(("image", "video"), video.projected, bare.projected, strict=True):
                tables = [getattr(backbone.places[name], axis).weight for axis in ("step", "row", "column")]
                count, height, width = grid.values.shape[:3]
                for t in range(count):
                    for h in range(height):
                        for w in range(width):
                            place = tables[0][t * steps // count] + tables[1][h] + tables[2][w]
                            torch.testing.assert_close(grid.values[t, h, w] - without.values[t, h, w], place)
