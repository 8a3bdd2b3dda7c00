"""Tiny sources: complete checkpoints, the same for the same seed, that transformers itself loads and that can learn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from langdc import tiny
from langdc.language_models import load_tokenizer
from langdc.sources import resolve
from tests import stock

ALL = ("qwen2", *stock.NAMES)


@pytest.mark.parametrize("name", ALL)
def test_a_source_is_a_checkpoint_that_transformers_loads(name: str) -> None:
    found = resolve(f"tiny:{name}")
    assert isinstance(found, Path)
    kind = AutoModelForCausalLM if name == "qwen2" else AutoModelForImageTextToText
    model = kind.from_pretrained(found)
    text = model.config.get_text_config()
    tokenizer = load_tokenizer(found)
    assert model.dtype == torch.float32 and sum(p.numel() for p in model.parameters()) < 400_000
    assert len(tokenizer) <= text.vocab_size == model.get_input_embeddings().num_embeddings
    assert (text.eos_token_id, text.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    if name != "qwen2":
        assert AutoProcessor.from_pretrained(found).tokenizer.chat_template == tokenizer.chat_template


def test_any_text_is_read_and_words_of_the_list_are_one_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny:qwen2"))
    text = "what is in the video?\n12 caf\u00e9s <|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and len(ids) < 20
    assert tokenizer.convert_ids_to_tokens(ids[:2]) == ["what", "\u0120is"]


@pytest.mark.parametrize(
    ("name", "video", "system"),
    [
        ("qwen2_5_vl", "<|vision_start|><|video_pad|><|vision_end|>", True),
        ("qwen3_vl", "<|vision_start|><|video_pad|><|vision_end|>", False),
        ("llava_onevision", "<video>", False),
    ],
)
def test_the_template_lays_out_turns_as_the_family_does(name: str, video: str, system: bool) -> None:
    tokenizer = load_tokenizer(tiny.folder(name))
    asked = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what?"}]}
    turns = [asked, {"role": "assistant", "content": "a dog"}]
    start = "<|im_start|>system\nyou are helpful<|im_end|>\n" if system else ""
    lay_out: Any = tokenizer.apply_chat_template
    expected = f"{start}<|im_start|>user\n{video}what?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>\n"
    assert lay_out(turns, tokenize=False) == expected
    open_turn = lay_out([asked], tokenize=False, add_generation_prompt=True)
    assert expected.startswith(open_turn) and open_turn.endswith("<|im_start|>assistant\n")
    own = [{"role": "system", "content": "count"}, asked]
    assert lay_out(own, tokenize=False).startswith("<|im_start|>system\ncount<|im_end|>\n")


def test_a_seed_decides_the_weights_and_nothing_else_is_drawn(tmp_path: Path, monkeypatch) -> None:
    here = load_file(tiny.folder("qwen2_5_vl") / "model.safetensors")
    other = load_file(tiny.folder("qwen2_5_vl:1") / "model.safetensors")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = torch.get_rng_state()
    again = load_file(tiny.folder("qwen2_5_vl:0") / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert here.keys() == again.keys() == other.keys()
    assert all(torch.equal(here[key], again[key]) for key in here)
    assert not torch.equal(here["lm_head.weight"], other["lm_head.weight"])


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(tiny, "_config", _interrupted)
        tiny.folder("qwen2")
    assert list((tmp_path / "langdc" / "tiny").iterdir()) == []
    with monkeypatch.context() as raced:
        write = tiny._write

        def slow(*arguments) -> None:
            raced.undo()
            first.append(tiny.folder("qwen2"))  # as another process does meanwhile
            write(*arguments)

        first: list[Path] = []
        raced.setattr(tiny, "_write", slow)
        assert tiny.folder("qwen2") == first[0]
    assert list((tmp_path / "langdc" / "tiny").iterdir()) == first
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # no directory can be made there
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    assert tiny.folder("qwen2").is_relative_to(tmp_path / "tmp")


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["tiny:qwen9", "tiny:qwen2:x", "tiny:"])
def test_an_unknown_name_is_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(ValueError, match=f"no model '{name}'.*the names are qwen2, qwen2_vl"):
        resolve(name)


def test_a_tiny_model_learns_a_reply_in_twenty_steps() -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.folder("qwen2"))
    ids = torch.tensor(
        [AutoTokenizer.from_pretrained(tiny.folder("qwen2"))("the red square is at the left")["input_ids"]]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
