"""Several prompts at once: questions about one video share its reading, and nothing else."""

import pytest
import torch

from langdc.backbones.chat import conversation
from langdc.backbones.inputs import read_together
from tests import tiny

QUESTIONS = ["what shape is the red object ?", "how many ?", "how does the blue object move ?"]


@pytest.fixture(scope="module")
def backbone():
    return tiny.model("pool").backbone


def written(backbone, prompts, tokens) -> list[list[int]]:
    inputs = read_together(backbone, prompts, tokens)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": [], "pad_token_id": 0}
    return backbone.language_model.generate(**inputs, **options).tolist()


@torch.no_grad()
def test_questions_about_one_video_are_answered_as_if_alone(backbone) -> None:
    videos = [tiny.video_tokens(12), tiny.video_tokens(5, 1)]
    asked = [(QUESTIONS[0], 0), (QUESTIONS[1], 1), (QUESTIONS[2], 0), (QUESTIONS[1], 0)]
    prompts = [backbone.prompt(conversation(question)) for question, _ in asked]
    tokens = [[videos[number]] for _, number in asked]
    alone = [written(backbone, [prompt], [own])[0] for prompt, own in zip(prompts, tokens, strict=True)]
    assert written(backbone, prompts, tokens) == alone
    assert len({tuple(reply) for reply in alone}) > 1


@torch.no_grad()
def test_what_begins_with_a_video_is_read_once(backbone) -> None:
    tokens = [[tiny.video_tokens(12)]] * 3
    prompts = [backbone.prompt(conversation(question)) for question in QUESTIONS]
    cut = prompts[0].slots[0].position
    inputs = read_together(backbone, prompts, tokens)
    assert inputs["past_key_values"].get_seq_length() == cut + 12
    assert not inputs["inputs_embeds"][:, : cut + 12].any()


@torch.no_grad()
def test_text_alone_and_single_questions_share_nothing(backbone) -> None:
    text = [backbone.prompt(conversation(question, video=False)) for question in QUESTIONS]
    assert "past_key_values" not in read_together(backbone, text, [[]] * 3)
    videos = [[tiny.video_tokens(4, number)] for number in range(3)]
    prompts = [backbone.prompt(conversation(question)) for question in QUESTIONS]
    assert "past_key_values" not in read_together(backbone, prompts, videos)
