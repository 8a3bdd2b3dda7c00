"""Chat messages to token ids, with slots for videos and labels for the assistant's turns.

A reply is what the chat template adds when the assistant's message is appended; no text is searched for.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from langdc.data.records import MARKS, SHOWN_LETTERS
from langdc.language_models import TEXT_MARK, VIDEO_MARK, control_places, ids_of, templated
from langdc.types import Prompt, Slot

IGNORED = -100


Render = Callable[[list[dict], bool], str]
"""From messages, and whether a reply comes next, to the text that a template makes of them."""


def checked_parts(
    message: dict, kinds: Sequence[str], tokenizer: PreTrainedTokenizerBase, reserved: Sequence[str] = ()
) -> list[dict]:
    """The parts of a message, control tokens in its text marked as text, also those that begin in one part and end in
    the next; ValueError for what the model cannot take.
    """
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for part in parts:
        if part["type"] not in kinds:
            allowed = " and ".join(filter(None, [", ".join(map(repr, kinds[:-1])), repr(kinds[-1])]))
            raise ValueError(f"A message part has type {part['type']!r}; allowed are {allowed}.")
    whole, start, found = "".join(part.get("text", "") for part in parts), 0, []  # as a template may join it
    for mark in (VIDEO_MARK, TEXT_MARK, *reserved):
        if mark in whole:
            named, shown = repr(mark) if mark in reserved else f"U+{ord(mark):04X}", whole[:SHOWN_LETTERS]
            raise ValueError(f"The text {shown!r} holds {named}, which has a meaning of its own; remove it.")
    places = [match.start() for match in control_places(tokenizer).finditer(whole)]
    for part in parts:
        if "text" in part:
            stop = start + len(part["text"])
            cuts = [start, *(place for place in places if start < place <= stop), stop]
            part = {**part, "text": TEXT_MARK.join(whole[i:j] for i, j in pairwise(cuts))}
            start = stop
        found.append(part)
    return found


def _pieces(render: Render, messages: list[dict], learn: bool) -> list[tuple[str, bool]]:
    """The laid-out conversation as (text, is a reply to learn)."""
    if not learn:
        return [(render(messages, True), False)]
    pieces, done = [], ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = render(messages[:number], True), render(messages[: number + 1], False)
        if not (before.startswith(done) and after.startswith(before)):
            raise ValueError(
                "The chat template rewrites earlier turns when later ones are added, so replies cannot be told from "
                "prompts; train on single-turn conversations with this model."
            )
        pieces += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    return pieces


def _reply_labels(ids: Tensor, end: list[int]) -> Tensor:
    """Labels of a reply up to its end token; what the template writes after that is not learned."""
    ends = torch.isin(ids, torch.tensor(end)).nonzero()
    if len(ends) == 0:
        raise ValueError(f"A reply of {len(ids)} tokens has no end token ({end}); the model would never learn to stop.")
    return torch.where(torch.arange(len(ids)) <= ends[-1], ids, IGNORED)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict], end: list[int], learn: bool) -> Prompt:
    """Lay out messages by the tokenizer's chat template; see `langdc.interfaces.Backbone.prompt`."""
    texts = []
    for message in messages:
        parts = checked_parts(message, ("text", "video"), tokenizer)
        pieces = [VIDEO_MARK if part["type"] == "video" else part["text"] for part in parts]
        texts.append({"role": message["role"], "content": "".join(pieces)})
    return marked_prompt(tokenizer, partial(templated, tokenizer), texts, end, learn)


def marked_prompt(
    tokenizer: PreTrainedTokenizerBase,
    render: Render,
    messages: list[dict],
    end: list[int],
    learn: bool,
    slots: Sequence[Slot] | None = None,
) -> Prompt:
    """A prompt of messages whose text has U+E000 for each of `slots` (positions are filled in); None: one per video."""
    ids: list[Tensor] = []
    labels: list[Tensor] = []
    places: list[int] = []
    for text, is_reply in _pieces(render, messages, learn):
        for number, part in enumerate(text.split(VIDEO_MARK)):
            if number:
                places.append(sum(map(len, ids)))
            found = ids_of(tokenizer, part, laid_out=True)
            ids.append(found)
            labels.append(_reply_labels(found, end) if is_reply else torch.full_like(found, IGNORED))
    known = [Slot(0, number) for number in range(len(places))] if slots is None else slots
    if len(known) != len(places):
        raise ValueError(f"The chat template made {len(places)} places for videos of the {len(known)} that are there.")
    slotted = tuple(replace(slot, position=place) for slot, place in zip(known, places, strict=True))
    return Prompt(torch.cat(ids), torch.cat(labels) if learn else None, slotted)


def conversation(question: str, answer: str | None = None, videos: int = 1) -> list[dict]:
    """Chat messages that ask about videos and, if given, answer; as in `turns`."""
    return turns([("user", question)] + ([] if answer is None else [("assistant", answer)]), videos)


def turns(said: Sequence[tuple[str, str]], videos: int) -> list[dict]:
    """Chat messages from roles and texts: `videos` (or images) stand where the user's texts mark them, by <video> or
    <image>; without any mark before the first one, which then begins on a line of its own.
    """
    messages = []
    unplaced = 0 if any(MARKS.search(text) for role, text in said if role == "user") else videos
    for role, text in said:
        if role == "user" and unplaced:
            text, unplaced = "<video>" * unplaced + "\n" + text, 0
        content = text if role != "user" else _parts(text)
        messages.append({"role": role, "content": content})
    return messages


def _parts(text: str) -> list[dict]:
    parts: list[dict] = []
    for number, piece in enumerate(MARKS.split(text)):
        parts += [{"type": "video"}] * (number > 0) + [{"type": "text", "text": piece}] * bool(piece)
    return parts


def question_of(messages: list[dict]) -> str:
    """The text of the last user turn, without what the chat template puts around it."""
    content = next(message["content"] for message in reversed(messages) if message["role"] == "user")
    texts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return "".join(texts).strip()


def share_video(prompts: list[Prompt]) -> Prompt:
    """Pack single questions about the same videos into one prompt in which the videos stand once.

    Every question gets a sequence id of its own: it attends to what stands before it up to the last video, and to
    itself, but to no other question; a batch made of it has the losses of the separate prompts. ValueError unless the
    prompts agree up to their last slot.
    """
    position = prompts[0].slots[-1].position if prompts[0].slots else -1
    for prompt in prompts:
        if not prompt.slots or prompt.slots != prompts[0].slots:
            raise ValueError("Only prompts with the same videos, at the same places, can share them.")
        if not torch.equal(prompt.ids[:position], prompts[0].ids[:position]):
            raise ValueError("Prompts that share a video must have the same text before it.")
    tails = [prompt.ids[position:] for prompt in prompts]
    labels = [prompt.labels[position:] for prompt in prompts if prompt.labels is not None]
    numbers = [torch.full_like(tail, number) for number, tail in enumerate(tails, 1)]
    head = prompts[0].ids[:position]
    return Prompt(
        ids=torch.cat([head, *tails]),
        labels=torch.cat([torch.full_like(head, IGNORED), *labels]) if labels else None,
        slots=prompts[0].slots,
        sequence_id=torch.cat([torch.zeros_like(head), *numbers]),
    )
