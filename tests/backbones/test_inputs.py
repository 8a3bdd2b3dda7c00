"""Several prompts at once: questions about one video share its reading, and nothing else."""

import pytest
import torch

from langdc.backbones.chat import conversation
from langdc.backbones.inputs import read_prompt, read_together
from langdc.decode import write
from langdc.kvcompressors import kvcompressors
from langdc.rope import position_limit, yarn
from tests import tiny

QUESTIONS = ["what shape is the red object ?", "how many ?", "how does the blue object move ?"]


@pytest.fixture(scope="module")
def backbone():
    return tiny.model("pool").backbone


def written(backbone, prompts, tokens) -> list[list[int]]:
    found = write(backbone.text_model, backbone.lm_head, [read_together(backbone, prompts, tokens)], [], 6)
    return found.ids.tolist()


def lengths_read(backbone, prompts, tokens) -> list[tuple[int, int]]:
    """Rows and lengths of the text model's calls."""
    seen = []
    hook = backbone.text_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    read_together(backbone, prompts, tokens)
    hook.remove()
    return seen


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
    longest = max(len(prompt.ids) for prompt in prompts)
    assert lengths_read(backbone, prompts, tokens) == [(1, cut + 12), (3, longest - cut)]


@torch.no_grad()
def test_text_alone_and_single_questions_share_nothing(backbone) -> None:
    text = [backbone.prompt(conversation(question, videos=0)) for question in QUESTIONS]
    assert lengths_read(backbone, text, [[]] * 3) == [(3, max(len(prompt.ids) for prompt in text))]
    videos = [[tiny.video_tokens(4, number)] for number in range(3)]
    prompts = [backbone.prompt(conversation(question)) for question in QUESTIONS]
    assert lengths_read(backbone, prompts, videos) == [(3, max(len(prompt.ids) for prompt in prompts) + 4)]


@torch.no_grad()
def test_a_prompt_longer_than_the_positions_is_not_read(backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 200
    monkeypatch.setattr(backbone.language_model.config, "max_position_embeddings", limit)
    long = backbone.prompt(conversation("red " * limit))
    fits, video = backbone.prompt(conversation("red")), tiny.video_tokens(12)
    said = (
        rf"prompt of {len(long.ids):,} tokens of text takes {len(long.ids) + 12:,} positions .* has {limit:,}\. Shorten"
    )
    for prompts in ([long], [fits, long]):
        with pytest.raises(ValueError, match=said):
            lengths_read(backbone, prompts, [[video]] * len(prompts))
    kv = kvcompressors.build("snapkv", keep=0.5)
    with pytest.raises(ValueError, match="Shorten"):
        read_prompt(backbone, long, [video], kv, [2])
    many = tiny.video_tokens(limit)
    with pytest.raises(ValueError, match="Shorten"):
        read_together(backbone, [fits], [[many]])
    assert read_prompt(backbone, fits, [many], kv, [2]).calls, "a cache that is thinned out may read more"


def test_stretched_positions_count() -> None:
    config = tiny.model("pool").backbone.language_model.config.__class__(max_position_embeddings=100)
    assert position_limit(config) == 100
    yarn(config, 4)
    assert position_limit(config) == 400
