"""Several prompts at once: questions about one video share its reading, and nothing else."""

import pytest
import torch

from langdc.hosts.batch import read_together
from langdc.hosts.chat import conversation
from tests import tiny

QUESTIONS = ["what shape is the red object ?", "how many ?", "how does the blue object move ?"]


@pytest.fixture(scope="module")
def host():
    return tiny.model("pool").host


def written(host, prompts, tokens) -> list[list[int]]:
    inputs = read_together(host, prompts, tokens)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": [], "pad_token_id": 0}
    return host.language_model.generate(**inputs, **options).tolist()


@torch.no_grad()
def test_questions_about_one_video_are_answered_as_if_alone(host) -> None:
    videos = [tiny.video_tokens(12), tiny.video_tokens(5, 1)]
    asked = [(QUESTIONS[0], 0), (QUESTIONS[1], 1), (QUESTIONS[2], 0), (QUESTIONS[1], 0)]
    prompts = [host.prompt(conversation(question)) for question, _ in asked]
    tokens = [[videos[number]] for _, number in asked]
    alone = [written(host, [prompt], [own])[0] for prompt, own in zip(prompts, tokens, strict=True)]
    assert written(host, prompts, tokens) == alone
    assert len({tuple(reply) for reply in alone}) > 1


@torch.no_grad()
def test_what_begins_with_a_video_is_read_once(host) -> None:
    tokens = [[tiny.video_tokens(12)]] * 3
    prompts = [host.prompt(conversation(question)) for question in QUESTIONS]
    cut = prompts[0].slots[0].position
    inputs = read_together(host, prompts, tokens)
    assert inputs["past_key_values"].get_seq_length() == cut + 12
    assert not inputs["inputs_embeds"][:, : cut + 12].any()


@torch.no_grad()
def test_text_alone_and_single_questions_share_nothing(host) -> None:
    text = [host.prompt(conversation(question, video=False)) for question in QUESTIONS]
    assert "past_key_values" not in read_together(host, text, [[]] * 3)
    videos = [[tiny.video_tokens(4, number)] for number in range(3)]
    prompts = [host.prompt(conversation(question)) for question in QUESTIONS]
    assert "past_key_values" not in read_together(host, prompts, videos)
