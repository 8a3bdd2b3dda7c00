"""Conversations of several turns about several videos and images are learned as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch

from langdc.backbones.chat import IGNORED
from langdc.data.records import Record, read_records, write_records
from langdc.train.trainable import unfreeze
from tests import tiny
from tests.contract import grid
from tests.train import small

SAID = [
    ("system", "you are a dog ."),
    ("user", "<video> and <video> : how many of them are red ?"),
    ("assistant", "two"),
    ("user", "<image> and in the image ?"),
    ("assistant", "a red ring . a square"),
]
# what the tiny checkpoints' template says, with marks around what is learned
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)


def record(number: int = 0, said: list[tuple[str, str]] = SAID, **changes: object) -> Record:
    """A conversation about two clips of a video and an image of the sample."""
    folder = small.folder()
    video, image = (str(folder / str(read_records(folder / f"{name}.jsonl")[0].file)) for name in ("train", "images"))
    media = [{"video": video, "end": 1.0}, {"video": video, "start": 1.0}, {"image": image}]
    messages = [{"role": role, "content": text} for role, text in said]
    return Record.model_validate({"id": f"c{number}", "media": media, "messages": messages, **changes})


def data_of(model, tmp_path: Path, *records: Record, **changes: Any):
    write_records(tmp_path / "talks.jsonl", records)
    return small.data_of(model, small.run_config(model, str(tmp_path / "talks.jsonl"), **changes))


def runs(ids: torch.Tensor, learned: torch.Tensor) -> list[list[int]]:
    """The stretches of tokens that are learned."""
    cuts = learned.int().diff().nonzero()[:, 0] + 1
    parts = zip(ids.tensor_split(cuts), learned.tensor_split(cuts), strict=True)
    return [part.tolist() for part, flags in parts if flags[0]]


def test_all_turns_of_the_assistant_are_learned_as_transformers_marks_them(tmp_path: Path) -> None:
    model, _ = grid.build("qwen2_5_vl", "vidcom2")
    data = data_of(model, tmp_path, record())
    (prompt,) = small.batch_of(data)["batch"].prompts
    plain = [{"role": role, "content": text.replace("<video>", "").replace("<image>", "")} for role, text in SAID]
    found: Any = model.backbone.tokenizer.apply_chat_template(
        plain, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    expected = runs(found["input_ids"][0], found["assistant_masks"].bool().view(-1))
    assert len(expected) == 2 and runs(prompt.ids, prompt.labels != IGNORED) == expected
    text = model.backbone.tokenizer.decode(prompt.ids)
    assert text.index("you are a dog") < text.index("how many") < text.index("in the image")


@pytest.mark.parametrize("backbone", ["videogpt_plus", "qwen2_5_vl", "qwen3_vl"])
def test_every_medium_stands_at_its_mark(backbone: str, tmp_path: Path) -> None:
    model = tiny.model("pool") if backbone == "videogpt_plus" else grid.build(backbone, "identity")[0]
    lone = Record(id="t", messages=record(said=[("user", "what ?"), ("assistant", "red")]).messages)
    data = data_of(model, tmp_path, record(), lone, record(1))
    batch = small.batch_of(data)["batch"]
    assert batch.shows == [(0, 1, 2), (), (3, 4, 5)]
    assert [len(seconds) == 1 for seconds in batch.seconds] == [False, False, True] * 2
    assert not torch.equal(batch.seconds[0], batch.seconds[1])
    prompt, tokenizer = batch.prompts[0], model.backbone.tokenizer
    places = {slot.video: slot.position for slot in reversed(prompt.slots)}
    before = [tokenizer.decode(prompt.ids[: places[number]]) for number in range(3)]
    assert "and" not in before[0] and "and" in before[1] and "how many" not in before[1]
    assert "two" in before[2] and "in the image" not in before[2]
    assert all(not slots.slots for slots in batch.prompts[1:2])
    tokens = model.compress(model.features(batch)).tokens
    assert torch.isfinite(model.inputs(batch, tokens).embeds).all()


def test_media_without_marks_come_first(tmp_path: Path) -> None:
    model, _ = grid.build("qwen2_5_vl", "identity")
    bare = [(role, text.replace("<video>", "").replace("<image>", "")) for role, text in SAID]
    (prompt,) = small.batch_of(data_of(model, tmp_path, record(said=bare)))["batch"].prompts
    before = model.backbone.tokenizer.decode(prompt.ids[: prompt.slots[-1].position])
    assert "how many" not in before and {slot.video for slot in prompt.slots} == {0, 1, 2}


def test_training_on_conversations_lowers_the_loss(tmp_path: Path) -> None:
    model, _ = grid.build("qwen2_5_vl", "resampler")
    data = data_of(model, tmp_path, record(), record(1), steps=8, learning_rate=1e-2)
    losses = small.losses(small.train(data, tmp_path / "run"))
    assert losses[-1] < 0.8 * losses[0]


def test_captions_are_written_for_each_of_several_videos(tmp_path: Path) -> None:
    model = tiny.model("langdc")
    unfreeze(model, ["compressor.post_projector.*"])
    data = data_of(model, tmp_path, record(), targets="none")
    learner = small.learner_of(data)
    batch = small.batch_of(data)
    learner(**batch)["loss"].backward()
    assert learner.figures["samples"] == 1 and len(batch["batch"].seconds) == 3


def test_what_cannot_be_learned_is_named(tmp_path: Path) -> None:
    model, _ = grid.build("qwen2_5_vl", "identity")
    model.compressor.needs = frozenset({"projected", "question"})
    with pytest.raises(ValueError, match="is a conversation of several questions"):
        data_of(model, tmp_path, record())


def test_a_record_longer_than_the_positions_is_named_with_its_numbers(tmp_path: Path) -> None:
    model, _ = grid.build("qwen2_5_vl", "vidcom2")
    long = record(1, [("user", "red " * 9000), ("assistant", "a ring")])
    batch = small.batch_of(data_of(model, tmp_path, record(), long), 0, 1)["batch"]
    said = r"talks\.jsonl: line 2 \(id 'c1'\): a prompt of 9,\d+ tokens of text takes 9,\d+ positions .* has 8,192\."
    with pytest.raises(ValueError, match=said):
        model(batch)
