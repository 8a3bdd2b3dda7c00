"""Replies to prompts of different lengths, written together in steps of constant shapes, are those of each alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from langdc import compressors, replies
from langdc.backbones import backbones
from langdc.backbones.chat import conversation
from langdc.backbones.inputs import read_prompt, read_together
from langdc.generate import Continuation
from langdc.interfaces import Backbone
from langdc.kvcompressors import kvcompressors
from langdc.layercompressors import layercompressors
from tests import stock, tiny

NEW = 6
CLIPS = [stock.clip(1), stock.clip(2, height=32, width=24), stock.clip(3, count=4), stock.clip(4, count=1)]
QUESTIONS = ["what is in the video ?", "how does the blue object move ?", "where ?", "what is it ?", "how many ?"]
GIVEN = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": [], "pad_token_id": 0}
Asked = tuple[list, list, list]


@pytest.fixture(scope="module", params=[*stock.KEYED, "videogpt_plus"])
def backbone(request) -> Backbone:
    if request.param == "videogpt_plus":
        return tiny.model("pool").backbone
    return backbones.build(request.param, source=stock.folder(request.param))


def asked(backbone: Backbone) -> Asked:
    """Prompts about videos of four sizes, of which some tokens were dropped; one video is asked about twice."""
    media: list = []
    tokens = [tiny.video_tokens(9 + 5 * number, number) for number in range(4)]
    if len(backbone.stream_widths) == 1:
        squeeze = compressors.build("vidcom2", keep=0.5, frames_per_segment=1)
        media = backbone.features_of(CLIPS)
        tokens = [backbone.append_newline_tokens(squeeze.one(video), video) for video in media]
    order = [0, 1, 2, 3, 0]
    prompts = [
        backbone.prompt(conversation(question), media=[media[video]] if media else [])
        for question, video in zip(QUESTIONS, order, strict=True)
    ]
    return prompts, [[tokens[video]] for video in order], [[len(CLIPS[video])] for video in order]


def generated(backbone: Backbone, given: Asked, kv=None, layers=None, **more: Any) -> list[tuple[str, int]]:
    """What transformers' `generate` writes after each prompt alone, and in how many tokens."""
    found = []
    for prompt, shown, frames in zip(*given, strict=True):
        read = read_prompt(backbone, prompt, shown, kv, frames, layers=layers)
        ids = Continuation(read, backbone.generation_config).generate(**{**GIVEN, **more})[0]
        found.append((str(backbone.tokenizer.decode(ids, skip_special_tokens=True)).strip(), len(ids)))
    return found


def replied(backbone: Backbone, given: Asked, kv=None, layers=None, **more: Any) -> list[tuple[str, int]]:
    answers = replies.reply(backbone, *given, kv, {**GIVEN, **more}, layers)
    return [(answer.text, answer.reply_tokens) for answer in answers]


@pytest.fixture
def unused(monkeypatch):
    """`generate` is not called."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("generate was called")

    def forbid() -> None:
        monkeypatch.setattr(replies, "Continuation", fail)

    return forbid


def test_ragged_prompts_are_answered_as_each_alone(backbone: Backbone, unused) -> None:
    given = asked(backbone)
    expected = generated(backbone, given)
    unused()
    assert replied(backbone, given) == expected
    assert len(set(expected)) > 2
    prompts, tokens, frames = given
    (alone,) = replied(backbone, (prompts[:1], tokens[:1], frames[:1]))
    assert alone == expected[0]


@pytest.mark.parametrize("name", ["pivotkv", "flexreduc", "snapkv"])
def test_after_eviction(backbone: Backbone, name: str, unused) -> None:
    """Every layer, and every prompt, holds another number of keys."""
    given = asked(backbone)
    kv = kvcompressors.of({"name": name, "keep": 0.5, "chunk_frames": 4})
    expected = generated(backbone, given, kv)
    unused()
    assert replied(backbone, given, kv) == expected


@pytest.mark.parametrize(("name", "kv"), [("fastv", None), ("pyramiddrop", "snapkv"), ("sparsevlm", None)])
def test_after_layers_that_read_fewer_rows(backbone: Backbone, name: str, kv: str | None, unused) -> None:
    """Every layer, and every prompt, holds another number of keys, here too; also beside a compressor of the cache."""
    given = asked(backbone)
    cache = kv and kvcompressors.of({"name": kv, "keep": 0.5, "chunk_frames": 4})
    layers = layercompressors.of({"name": name, "keep": 0.6})
    expected = generated(backbone, given, cache, layers)
    unused()
    assert replied(backbone, given, cache, layers) == expected


def test_a_compressor_that_chooses_what_each_token_reads(backbone: Backbone, unused) -> None:
    """Several prompts are read before the first reply is written; each is continued with its own choice."""
    given = asked(backbone)
    kv = kvcompressors.build("dycoke_decoding", keep=0.75)
    assert replied(backbone, given, kv) == generated(backbone, given, kv)
    (answer,) = replies.reply(backbone, *(part[:1] for part in given), kv, GIVEN)
    (plain,) = replies.reply(backbone, *(part[:1] for part in given), None, GIVEN)
    assert answer.kv_bytes == plain.kv_bytes
    assert len(answer.keys_per_layer) == backbone.text_model.config.num_hidden_layers
    with pytest.raises(ValueError, match=r"2 rows are written at once, and DyCokeDecoding .* Set num_beams"):
        replies.reply(backbone, *(part[:1] for part in given), kv, {**GIVEN, "num_beams": 2, "eos_token_id": [0]})
    expected = replied(backbone, given)
    unused()
    assert replied(backbone, given, kvcompressors.build("dycoke_decoding", keep=1.0)) == expected


@pytest.mark.parametrize("numbering", ["trained", "transformers"])
def test_replies_stand_after_all_of_a_prompt(numbering: str) -> None:
    """With the numbers of transformers a video of many steps ends after its question, also where several share it."""
    backbone = backbones.build("qwen2_5_vl", source=stock.folder("qwen2_5_vl"), positions=numbering)
    (video,) = backbone.features_of([stock.clip(1, count=64)])
    tokens = [[compressors.build("identity").one(video)]] * 2
    prompts = [backbone.prompt(conversation(question), media=[video]) for question in QUESTIONS[:2]]
    with torch.no_grad():
        together = read_together(backbone, prompts, tokens)
    alone = [read_prompt(backbone, prompt, shown, None, [64]) for prompt, shown in zip(prompts, tokens, strict=True)]
    assert torch.equal(together.positions, torch.cat([each.next_position for each in alone], 1))
    torch.testing.assert_close(together.logits, torch.cat([each.logits for each in alone]), atol=1e-4, rtol=0)


def test_tokens_that_stand_elsewhere_in_each_layer(backbone: Backbone) -> None:
    """The released code of ReTaKe for one model offsets every axis of written tokens."""
    given = asked(backbone)
    kv = kvcompressors.of({"name": "pivotkv", "keep": 0.5, "chunk_frames": 4, "variant": "released"})
    assert replied(backbone, given, kv) == generated(backbone, given, kv)


def test_ends_and_a_repetition_penalty(backbone: Backbone, unused) -> None:
    given = asked(backbone)
    plain = generated(backbone, given)
    read = read_prompt(backbone, given[0][0], given[1][0], None, given[2][0])
    end = int(Continuation(read).generate(**GIVEN)[0, 2])
    changes = {"eos_token_id": [end], "max_new_tokens": 12}, {"repetition_penalty": 1.7}
    expected = [generated(backbone, given, **more) for more in changes]
    unused()
    assert [replied(backbone, given, **more) for more in changes] == expected
    assert min(count for _, count in expected[0]) < 12 and expected[1] != plain


OTHERS = {
    "drawn": {"do_sample": True, "top_k": 3},
    "beams": {"num_beams": 2, "eos_token_id": [1]},
    "no repeats": {"no_repeat_ngram_size": 1},
    "no cache": {"use_cache": False},
    "no time": {"max_time": 0},
}


@pytest.mark.parametrize("more", OTHERS.values(), ids=OTHERS)
def test_other_options_are_those_of_generate(more: dict) -> None:
    backbone = tiny.model("pool").backbone
    given = asked(backbone)
    torch.manual_seed(3)
    expected = generated(backbone, given, **more)
    torch.manual_seed(3)
    assert replied(backbone, given, **more) == expected
    assert "max_time" not in more or {count for _, count in expected} == {1}


def test_unknown_options_are_refused() -> None:
    backbone = tiny.model("pool").backbone
    with pytest.raises(ValueError, match="max_new_token"):
        replied(backbone, asked(backbone), max_new_token=3)


def test_layers_that_see_only_the_last_tokens(unused) -> None:
    language_model = tiny.qwen2(tiny.BACKBONE_WIDTH, model_type="mistral", sliding_window=7)
    backbone = tiny.model("pool", backbone=tiny.backbone_settings(language_model=language_model)).backbone
    prompts, tokens, frames = asked(backbone)
    expected = []
    for prompt, shown in zip(prompts, tokens, strict=True):
        embeds = backbone.splice([prompt], [shown])[0].embeds[None]
        generate: Any = backbone.language_model.generate
        ids = generate(inputs_embeds=embeds, **GIVEN)[0]
        expected.append((str(backbone.tokenizer.decode(ids, skip_special_tokens=True)).strip(), len(ids)))
    assert replied(backbone, (prompts, tokens, frames)) == expected
    assert [replied(backbone, ([p], [t], [f]))[0] for p, t, f in zip(prompts, tokens, frames, strict=True)] == expected


def test_scores_that_are_no_numbers_are_found() -> None:
    backbone = tiny.model("pool").backbone
    given = asked(backbone)
    given[1][1] = [replace(given[1][1][0], values=given[1][1][0].values * float("nan"))]
    with pytest.raises(ValueError, match="video tokens hold NaN"):
        replied(backbone, given)


def test_the_models_own_settings_count() -> None:
    backbone = tiny.model("pool").backbone
    given = asked(backbone)
    backbone.language_model.generation_config = GenerationConfig(repetition_penalty=1.9)
    assert replied(backbone, given) == generated(backbone, given)
    assert replied(backbone, given) != generated(backbone, given, repetition_penalty=1.0)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_costs_of_a_batch_are_those_of_asking_alone(name: str) -> None:
    """Qwen3-VL has a place for tokens in front of each step's time: several places, and one video."""
    backbone = backbones.build(name, source=stock.folder(name))
    prompts, tokens, frames = asked(backbone)
    together = replies.reply(backbone, prompts, tokens, frames, None, GIVEN)
    for answer, prompt, shown, counts in zip(together, prompts, tokens, frames, strict=True):
        (alone,) = replies.reply(backbone, [prompt], [shown], [counts], None, GIVEN)
        assert (answer.kv_bytes, answer.kv_text_bytes) == (alone.kv_bytes, alone.kv_text_bytes)
        assert answer.flops == pytest.approx(alone.flops)


def test_options_at_the_edge() -> None:
    backbone = tiny.model("pool").backbone
    given = asked(backbone)
    expected = replied(backbone, given)
    assert replied(backbone, ([], [], [])) == []
    assert replied(backbone, given, return_dict_in_generate=True) == expected
    read = read_prompt(backbone, given[0][0], given[1][0], None, given[2][0])
    second = Continuation(read).generate(**GIVEN)[0, 1:2]
    assert replied(backbone, given, eos_token_id=second) == replied(backbone, given, eos_token_id=int(second))
    assert replied(backbone, given, eos_token_id=second)[0][1] <= 2
    for wrong in ({"num_return_sequences": 2, "do_sample": True}, {"repetition_penalty": 0.0}):
        with pytest.raises(ValueError, match=r"num_return_sequences|penalty"):
            replied(backbone, given, **wrong)


def test_no_room_is_made_for_the_longest_replies(monkeypatch) -> None:
    backbone = tiny.model("pool").backbone
    given = asked(backbone)
    end = int(Continuation(read_prompt(backbone, given[0][0], given[1][0], None, given[2][0])).generate(**GIVEN)[0, 2])
    prompts, tokens, frames = ([each[0]] for each in given)
    expected = replied(backbone, (prompts, tokens, frames), eos_token_id=end)
    monkeypatch.setattr(replies, "write", None)
    assert replied(backbone, (prompts, tokens, frames), eos_token_id=end, max_new_tokens=1 << 20) == expected
