"""Reading prompts of a backbone with a KV compressor, from frames to an answer."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from langdc.backbones.chat import conversation
from langdc.backbones.inputs import read_prompt, text_inputs
from langdc.generate import Continuation
from langdc.kvcompressors import build
from langdc.layercompressors import layercompressors
from langdc.types import Prompt, Slot, VideoTokens
from tests import tiny

FRAMES, PLACES = 16, 13


@pytest.fixture(scope="module")
def backbone():
    return tiny.model("pool").backbone


def asked(backbone, videos: int = 1) -> Prompt:
    prompt = backbone.prompt(conversation("what shape is the red object ?", videos=1))
    slots = tuple(Slot(prompt.slots[0].position + number, number) for number in range(videos))
    return Prompt(prompt.ids, slots=slots)


def tokens(seed: int = 0, anchor: Tensor | None = None) -> VideoTokens:
    made = tiny.video_tokens(FRAMES * PLACES, seed)
    return VideoTokens(made.values, made.segment, anchor=anchor)


@torch.no_grad()
def stock(backbone, prompt: Prompt, videos: list[VideoTokens], **options) -> list[list[int]]:
    embeds = backbone.splice([prompt], [videos])[0].embeds[None]
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    return backbone.language_model.generate(
        inputs_embeds=embeds, attention_mask=mask, pad_token_id=0, **options
    ).tolist()


def test_a_budget_that_covers_the_video_answers_as_the_stock_model(backbone) -> None:
    prompt, videos = asked(backbone, 2), [tokens(0), tokens(1)]
    for compressor in (build("flexreduc", tokens=10_000), build("streaming", keep=1.0, chunk_frames=3)):
        reading = read_prompt(backbone, prompt, videos, compressor, [FRAMES, FRAMES])
        written = Continuation(reading).generate(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=[])
        assert written.tolist() == stock(backbone, prompt, videos, max_new_tokens=6, do_sample=False, eos_token_id=[])


@pytest.mark.parametrize("name", ["flexreduc", "pivotkv", "snapkv", "random", "streaming"])
def test_every_video_is_thinned(backbone, name: str) -> None:
    prompt, videos = asked(backbone, 2), [tokens(0), tokens(1)]
    reading = read_prompt(backbone, prompt, videos, build(name, keep=0.25, chunk_frames=4), [FRAMES, FRAMES])
    text, whole = len(prompt.ids), 2 * FRAMES * PLACES
    for keys in reading.keys_per_layer:
        assert text + 0.1 * whole < keys < text + 0.4 * whole
    assert sum(reading.keys_per_layer) / len(reading.keys_per_layer) <= text + 0.25 * whole


def test_an_image_is_read_like_text(backbone) -> None:
    prompt, videos = asked(backbone, 2), [tiny.video_tokens(PLACES), tokens(1)]
    reading = read_prompt(backbone, prompt, videos, build("random", keep=0.25, chunk_frames=4), [1, FRAMES])
    assert set(reading.keys_per_layer) == {len(prompt.ids) + PLACES + FRAMES * PLACES // 4}


@pytest.mark.parametrize("name", layercompressors.names())
def test_layer_compressors_leave_an_image_alone(backbone, name: str) -> None:
    """It is text; what goes on of the videos has one budget together."""
    prompt, layers = asked(backbone, 3), layercompressors.build(name, keep=0.75)
    videos = [tokens(0), tiny.video_tokens(PLACES), tokens(1)]
    videos = [replace(each, frame=PLACES) for each in videos]
    rows = read_prompt(backbone, prompt, videos, None, [FRAMES, 1, FRAMES], layers=layers).kept_rows
    image = range(prompt.slots[0].position + FRAMES * PLACES, prompt.slots[0].position + (FRAMES + 1) * PLACES)
    assert all(set(image) <= set(of.tolist()) for of in rows)
    kept = sum(map(len, rows)) / len(rows) - len(prompt.ids) - PLACES
    assert 0.7 * 2 * FRAMES * PLACES < kept <= 0.75 * 2 * FRAMES * PLACES
    alone = read_prompt(backbone, asked(backbone), [tiny.video_tokens(PLACES)], None, [1], layers=layers)
    assert set(alone.keys_per_layer) == {len(prompt.ids) + PLACES} and len(alone.calls) == 1


def test_anchors_of_the_tokens_reach_the_compressor(backbone) -> None:
    anchor = torch.zeros(FRAMES * PLACES, dtype=torch.bool)
    anchor[::40] = True
    prompt = asked(backbone)
    compressor = build("pivotkv", keep=0.1, chunk_frames=8, compact_positions=False)
    cache = read_prompt(backbone, prompt, [tokens(0, anchor)], compressor, [FRAMES]).cache
    first = prompt.slots[0].position
    for layer in cache.layers:
        assert set((first + anchor.nonzero()[:, 0]).tolist()) <= set(layer.positions.flatten().tolist())


@pytest.mark.parametrize(("variant", "pieces"), [("fixed", [104, 104]), ("released", [104, 104])])
def test_chunks_are_cut_by_frames(backbone, variant: str, pieces: list[int]) -> None:
    compressor, seen = build("pivotkv", keep=0.5, variant=variant, chunk_frames=8), []
    inner = compressor.kept
    compressor.kept = lambda chunk: seen.append(len(chunk)) or inner(chunk)
    read_prompt(backbone, asked(backbone), [tokens()], compressor, [FRAMES])
    assert seen == pieces


@pytest.mark.parametrize(("variant", "pieces"), [("fixed", [208]), ("released", [104, 104])])
def test_the_released_chunks_of_a_short_video_are_its_halves(backbone, variant: str, pieces: list[int]) -> None:
    """Where a model joins frames in pairs, the released code counts the pairs as frames."""
    compressor, seen = build("pivotkv", keep=0.5, variant=variant), []
    inner = compressor.kept
    compressor.kept = lambda chunk: seen.append(len(chunk)) or inner(chunk)
    read_prompt(backbone, asked(backbone), [tokens()], compressor, [FRAMES], steps=[FRAMES // 2])
    assert seen == pieces


@pytest.mark.parametrize(("variant", "pieces"), [("fixed", [209]), ("released", [208, 1])])
def test_the_released_chunks_do_not_count_the_newline_after_a_video(backbone, variant: str, pieces: list[int]) -> None:
    compressor, seen = build("pivotkv", keep=0.5, variant=variant), []
    inner = compressor.kept
    compressor.kept = lambda chunk: seen.append(len(chunk)) or inner(chunk)
    read_prompt(backbone, asked(backbone), [tiny.video_tokens(FRAMES * PLACES + 1)], compressor, [FRAMES])
    assert seen == pieces


def test_padding_is_hidden_from_the_prompt_and_seen_by_the_reply(backbone) -> None:
    """As the stock model with a mask that is lifted after the prompt."""
    made = tiny.video_tokens(FRAMES)
    padding = torch.arange(FRAMES) % 3 == 2
    prompt, videos = asked(backbone), [VideoTokens(made.values, made.segment, padding=padding)]
    given = text_inputs(backbone, [prompt], [videos])
    first = prompt.slots[0].position
    assert torch.equal(given.mask[0, first : first + FRAMES].bool(), ~padding) and given.mask.sum() == (
        len(prompt.ids) + int((~padding).sum())
    )
    assert given.positions[0, 0].tolist() == list(range(given.embeds.shape[1]))
    cache = DynamicCache(config=backbone.language_model.config)
    with torch.no_grad():
        states = backbone.text_model(**given.arguments, past_key_values=cache, use_cache=True).last_hidden_state
        expected = [backbone.lm_head(states[:, -1])]
        for step in range(3):
            word = backbone.language_model.get_input_embeddings()(expected[-1].argmax(-1))[:, None]
            place = torch.tensor([[given.embeds.shape[1] + step]])
            states = backbone.text_model(
                inputs_embeds=word, position_ids=place, past_key_values=cache
            ).last_hidden_state
            expected.append(backbone.lm_head(states[:, -1]))
    reading = read_prompt(backbone, prompt, videos, None, [FRAMES])
    options = {"eos_token_id": [], "pad_token_id": 0, "output_logits": True, "return_dict_in_generate": True}
    written = Continuation(reading).generate(max_new_tokens=4, **options)
    torch.testing.assert_close(torch.cat(written.logits), torch.cat(expected), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="cannot be read with a KV or layer compressor"):
        read_prompt(backbone, prompt, videos, build("random", keep=0.5), [FRAMES])


def test_videos_that_touch_are_still_two(backbone) -> None:
    prompt, compressor = asked(backbone, 2), build("random", keep=0.5)
    touching = Prompt(prompt.ids, slots=(prompt.slots[0], Slot(prompt.slots[0].position, 1)))
    read_prompt(backbone, touching, [tokens(), tokens(1)], compressor, [FRAMES, FRAMES])
    assert [chunk.video_id for chunk in compressor.plan.chunks] == [0, 1]


def test_a_prompt_without_places_for_its_tokens(backbone) -> None:
    with pytest.raises(ValueError, match="places for 1 videos, 2 were given"):
        read_prompt(backbone, asked(backbone), [tokens(), tokens(1)], build("random", keep=0.5), [FRAMES, FRAMES])


def test_videos_in_another_order_than_their_numbers(backbone) -> None:
    prompt = asked(backbone, 2)
    turned = Prompt(prompt.ids, slots=(Slot(prompt.slots[0].position, 1), Slot(prompt.slots[1].position, 0)))
    short = tiny.video_tokens(4 * PLACES, 1)
    compressor = build("random", keep=0.5, chunk_frames=4)
    reading = read_prompt(backbone, turned, [tokens(), short], compressor, [FRAMES, 4])
    assert set(reading.keys_per_layer) == {len(prompt.ids) + (FRAMES + 4) * PLACES // 2}
    assert [len(chunk) for chunk in compressor.plan.chunks] == [4 * PLACES] * 5
    assert [chunk.video_id for chunk in compressor.plan.chunks] == [1, 0, 0, 0, 0]
