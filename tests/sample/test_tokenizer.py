"""The sample tokenizer: one token per word, nothing unknown, ChatML."""

import random
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from examples.sample_world.tokenizer import SPECIAL, build_tokenizer, vocabulary
from langdc.sample import weights
from langdc.sample.questions import ask_all
from langdc.sample.scenes import caption, sample_video


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_word_of_the_grammar_is_one_token_alone_and_in_a_sentence(tokenizer: PreTrainedTokenizerFast):
    words = vocabulary()
    ids = [ids_of(tokenizer, word) for word in words]
    assert [word for word, own in zip(words, ids, strict=True) if len(own) != 1] == []
    assert len({own[0] for own in ids}) == len(set(words))
    assert ids_of(tokenizer, " ".join(words)) == [own[0] for own in ids]


def test_generated_text_has_as_many_tokens_as_words_and_comes_back(tokenizer: PreTrainedTokenizerFast):
    rng = np.random.default_rng(3)
    for _ in range(20):
        video = sample_video(rng)
        asked = ask_all(rng, video)
        for text in [*(caption(scene) for scene in video), *(q.text for q in asked), *(q.answer for q in asked)]:
            ids = ids_of(tokenizer, text)
            if "(" not in text:
                assert len(ids) == len(text.split())
            assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_it_is_the_packaged_one(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    files = [Path(name) for name in tokenizer.save_pretrained(tmp_path)]
    assert {file.name: file.read_text() for file in files} == {
        file.name: (weights("language_model") / file.name).read_text() for file in files
    }


@pytest.mark.parametrize("text", ["héllo 世界 🎉", "naïve café", "tab\tinside", "{'a' = <b>}", "İstanbul ß"])
def test_any_text_survives_a_round_trip(tokenizer: PreTrainedTokenizerFast, text: str):
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_random_unicode_survives_a_round_trip_up_to_spaces(tokenizer: PreTrainedTokenizerFast):
    """Spaces are the tokenizer's own business: it puts one between words and marks."""
    rng = random.Random(5)
    points = [p for p in range(0x20, 0x20000) if not 0xD800 <= p < 0xE000 and p != 0x2581]
    for _ in range(200):
        text = "".join(chr(rng.choice(points)) for _ in range(rng.randint(1, 12)))
        assert tokenizer.decode(ids_of(tokenizer, text)).replace(" ", "") == text.replace(" ", "")


def test_runs_of_spaces_do_not_change_the_tokens(tokenizer: PreTrainedTokenizerFast):
    assert ids_of(tokenizer, "red   square left") == ids_of(tokenizer, "red square left")


def test_chat_template_is_chatml_and_its_marks_are_single_tokens(tokenizer: PreTrainedTokenizerFast):
    messages = [{"role": "user", "content": "what shape ?"}, {"role": "assistant", "content": "ring"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\nwhat shape ?<|im_end|>\n<|im_start|>assistant\nring<|im_end|>\n"
    opened = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert opened == "<|im_start|>user\nwhat shape ?<|im_end|>\n<|im_start|>assistant\n"
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids = ids_of(tokenizer, text)
    assert [token for token in ids if token in (start, end)] == [start, end] * 2
    assert ids[: len(ids_of(tokenizer, opened))] == ids_of(tokenizer, opened), "a prompt is a prefix of what follows"


def test_special_tokens_have_their_roles(tokenizer: PreTrainedTokenizerFast):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.decode(ids_of(tokenizer, "ring<|im_end|>"), skip_special_tokens=True) == "ring"


def test_saved_tokenizer_loads_as_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\nred square left ; héllo<|im_end|>"
    assert again.is_fast and again.chat_template == tokenizer.chat_template
    assert ids_of(again, text) == ids_of(tokenizer, text)
