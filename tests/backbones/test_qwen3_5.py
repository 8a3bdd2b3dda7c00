"""Qwen3.5: layers that carry a state have no keys to evict and no mask between questions; they count in FLOPs."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from langdc import replies
from langdc.backbones import backbones
from langdc.backbones.chat import conversation, share_video
from langdc.backbones.inputs import read_prompt, text_inputs
from langdc.backbones.stock import StockBackbone
from langdc.config import RunConfig, check
from langdc.flops import language_model_flops
from langdc.generate import Continuation
from langdc.kvcache import token_bytes
from langdc.kvcompressors import kvcompressors
from langdc.pipeline import VideoLM
from langdc.train.objectives import objectives
from langdc.train.setup import _set_kernels
from tests import stock
from tests.backbones.test_stock import build, read, tokens_of
from tests.contract import grid
from tests.test_flops import counting

NAME = "qwen3_5"
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": [], "pad_token_id": 0}
QUESTIONS = ["what is in the video ?", "how many ?", "where is the red ring in the video ?"]


@pytest.fixture(scope="module")
def backbone() -> StockBackbone:
    return build(NAME)


def test_the_tiny_model_has_layers_of_both_kinds(backbone: StockBackbone) -> None:
    kinds = ["linear_attention", "linear_attention", "full_attention"]
    assert backbone.text_model.config.layer_types == kinds
    reading = read(backbone, [stock.clip()])
    assert [hasattr(layer, "recurrent_states") for layer in reading.cache.layers] == [True, True, False]
    assert len(reading.keys_per_layer) == 1
    per_token = token_bytes(backbone.text_model.config, torch.float32)
    assert reading.cache.held_bytes == reading.keys_per_layer[0] * per_token


def test_questions_about_one_video_are_answered_as_each_alone(backbone: StockBackbone) -> None:
    videos, tokens = tokens_of(backbone, [stock.clip(1)])
    prompts = [backbone.prompt(conversation(question), media=videos) for question in QUESTIONS]
    found = replies.reply(backbone, prompts, [tokens] * 3, [[8]] * 3, None, OPTIONS)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = Continuation(read_prompt(backbone, prompt, tokens, None, [8])).generate(**OPTIONS)[0]
        text = str(backbone.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        assert (answer.text, answer.reply_tokens) == (text, 6)
    assert len({answer.text for answer in found}) > 1


def test_several_replies_of_one_reading(backbone: StockBackbone) -> None:
    """The states of all rows are copied, as their keys are."""
    media, options = [stock.clip(2)], {**OPTIONS, "num_beams": 3, "num_return_sequences": 3, "eos_token_id": 299}
    inputs = stock.stock_inputs(build(NAME, positions="transformers"), NAME, media)
    expected = backbone.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    again = read(build(NAME, positions="transformers"), media)
    assert torch.equal(Continuation(again).generate(**options), expected)


@pytest.mark.parametrize("method", ["pivotkv", "snapkv", "random"])
def test_a_kv_compressor_is_refused(backbone: StockBackbone, method: str) -> None:
    with pytest.raises(ValueError, match=r"kind full_attention, linear_attention; keys .* Leave out the KV compressor"):
        read(backbone, [stock.clip()], kv=kvcompressors.build(method, keep=0.5, chunk_frames=4))


def test_questions_that_share_a_sequence_are_refused(backbone: StockBackbone) -> None:
    videos, tokens = tokens_of(backbone, [stock.clip(1)])
    prompts = [backbone.prompt(conversation(q, "a dog"), learn=True, media=videos) for q in QUESTIONS]
    with pytest.raises(ValueError, match=r"Ask one question a sequence: train.questions_per_video: 1"):
        text_inputs(backbone, [share_video(prompts)], [tokens])
    with pytest.raises(ValueError, match="Ask one question a sequence"):
        text_inputs(backbone, prompts, [tokens] * 3, packed=True)


@pytest.mark.parametrize(("setting", "said"), [({"packing": True}, "packing"), ({"questions_per_video": 2}, "quest")])
def test_what_would_share_a_sequence_is_refused_before_a_run(setting: dict, said: str) -> None:
    model, _ = grid.build(NAME, "identity")
    train = {"data": ["x.jsonl"], "steps": 1, **setting}
    settings = {"model": model.config.model_dump(), "output": "run", "objective": {"name": "answer"}, "train": train}
    config = check(RunConfig, settings, "a run")
    with pytest.raises(ValueError, match=rf"train\.{said}.* has layers of linear_attention, which cannot keep apart"):
        _set_kernels(model, config, objectives.build("answer"))


@torch.no_grad()
def test_flops_of_a_step_are_the_counted_ones_and_those_of_the_recurrence(backbone: StockBackbone) -> None:
    """The recurrence of one token is element-wise: three products of a head's state. Its convolution is counted."""
    config, model = backbone.text_model.config, backbone.text_model
    output = model(torch.arange(9)[None], use_cache=True)
    with counting() as counted:
        model(torch.arange(1)[None], past_key_values=output.past_key_values, use_cache=True)
    recurrence = 2 * 2 * 3 * config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim
    channels = 2 * config.linear_num_key_heads * config.linear_key_head_dim + 4 * config.linear_value_head_dim
    again = 2 * 2 * config.linear_conv_kernel_dim * channels  # the reference convolves one place more than is kept
    expected = language_model_flops(config, 1, 9, predictions=0) - recurrence
    assert counted() == expected + again


def test_a_short_training_lowers_the_loss_with_gradients_in_both_kinds_of_layers() -> None:
    model, trained = grid.build(NAME, "identity")
    assert any("linear_attn" in name for name in trained) and any("self_attn" in name for name in trained)
    batch = grid.batch_of(model, grid.clips(NAME))
    found = model(batch)
    F.cross_entropy(found.logits, found.labels).backward()
    assert all(model.get_parameter(name).grad is not None for name in trained)
    history = grid.train(model, batch, 20, 1e-2)
    assert history[-1] < 0.8 * history[0]


def test_a_folder_names_its_backbone(tmp_path) -> None:
    lm = VideoLM.from_pretrained(stock.folder(NAME), backbone={"frames": 4})
    assert type(lm.model.backbone) is backbones.get(NAME)
    path = stock.mp4(tmp_path, 8, 4)
    assert str(lm.ask(path, "what is it ?", max_new_tokens=3)) == str(lm.ask(path, "what is it ?", max_new_tokens=3))
