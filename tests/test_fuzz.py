"""Mutated configs, records, replies and model folders, 500 each, always the same: read as they are, or refused."""

import copy
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from safetensors.torch import load, load_file, save_file

from langdc import jsonl
from langdc.config import RunConfig, check
from langdc.configfiles import SHIPPED, read_tree
from langdc.data.records import LETTERS, Record
from langdc.evaluate import answers
from langdc.evaluate.choices import choice
from langdc.evaluate.settings import EvalConfig
from langdc.language_models import load_language_model, load_tokenizer

pytestmark = pytest.mark.slow
FUZZ = settings(
    max_examples=500, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, -1, 2**70, 0.5, math.nan, math.inf, -math.inf, 1e308, [], {}])
    | st.sampled_from(["", " ", "0", "yes", "null", "../x", "a" * 300, "\0", "\u202eabc", "<video>", "A", "AB"])
    | st.integers(-3, 100)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def at(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@st.composite
def mutated(draw: st.DrawFn, trees: list[dict]) -> dict:
    """One of the trees after one to three changes: a value replaced or taken away, a key renamed or added."""
    tree = copy.deepcopy(draw(st.sampled_from(trees)))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(tree))
        if not found:
            break
        path = draw(st.sampled_from(found))
        node, key = at(tree, path[:-1]), path[-1]
        change = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"]))
        if change == "replace":
            node[key] = draw(VALUES)
        elif change == "remove":
            del node[key]
        elif isinstance(node, dict):
            name = draw(st.sampled_from([f"{key}s", str(key).upper(), "zz", ""]))
            node[name] = draw(VALUES) if change == "add" else node.pop(key)
        else:
            node.insert(key, draw(VALUES))
    return tree


def assert_kept(found: Any, given: Any) -> None:
    """Whatever was given is what was read: no value is another, none is lost."""
    found = str(found) if isinstance(found, Path) else found
    if isinstance(found, dict) and isinstance(given, dict):
        for name in given:
            assert_kept(found[name], given[name])
    elif isinstance(found, list) and isinstance(given, list):
        assert len(found) == len(given)
        for pair in zip(found, given, strict=True):
            assert_kept(*pair)
    elif isinstance(found, dict) and isinstance(given, str):  # a member, or a file of records, by its name alone
        inner = [value for part in found.values() if isinstance(part, dict) for value in part.values()]
        assert given.removeprefix("kv:") in map(str, [*found.values(), *inner])
    elif found is given:  # also NaN, in settings that are checked where a member is built
        return
    elif isinstance(found, int | float) and not isinstance(found, bool):
        assert math.isfinite(found) and float(given) == found and not isinstance(given, bool), (found, given)
    else:
        assert type(found) is type(given) and found == given, (found, given)


def reads(kind: type[BaseModel], tree: dict) -> dict | None:
    """What a tree is read as; None where it is refused, in short lines."""
    try:
        return check(kind, tree, "the tree").model_dump()
    except ValueError as error:
        assert str(error).startswith("the tree has ") and max(map(len, str(error).splitlines())) < 4000
        return None


def shipped(*folders: str) -> list[dict]:
    files = [path for folder in folders for path in sorted((SHIPPED / folder).rglob("*.yaml"))]
    return [tree for path in files if path.name not in ("chain.yaml",) for tree in [read_tree(path)] if tree]


TRAINING = [tree for tree in shipped("sample", "tiny", "langdc_3b") if "objective" in tree]
EVALUATION = [tree for tree in shipped("eval", "sample") if "models" in tree or "entries" in tree]


RECORDS: list[dict] = [
    {"id": "v7", "video": "v/7.mp4", "start": 0.5, "end": 4, "segments": [
        {"caption": "red square left", "density": 1, "subjects": ["square"], "actions": ["left"]},
        {"caption": ""}]},
    {"id": "q", "video": "q.mp4", "questions": [
        {"kind": "shape", "question": "what shape is it ?", "answer": "square", "labels": {"duration": "short"}},
        {"kind": "pick", "question": "<video> which ?", "options": ["dog", "cat", "horse"], "answer": "B"}]},
    {"id": "c1", "media": [{"video": "a.mp4", "end": 4.5}, {"image": "b.jpg"}, {"video": "frames", "fps": 2}],
     "messages": [{"role": "system", "content": "be brief"},
                  {"role": "user", "content": "<video> <image> <video> is it there ?"},
                  {"role": "assistant", "content": "yes"}, {"role": "user", "content": "sure ?"},
                  {"role": "assistant", "content": "yes"}]},
    {"id": "t", "questions": [{"kind": "k", "question": "one and one ?", "answer": "2"}]},
]  # fmt: skip


def agrees(kind: type[BaseModel], tree: dict, found: dict | None) -> None:
    """What is read is what was given, and the published schema allows it."""
    if found is None:
        return
    assert_kept(found, tree)
    wrong = jsonschema.Draft202012Validator(kind.model_json_schema()).iter_errors(tree)
    said = [error.message for error in wrong if not quoted_number(error)]
    assert not said, said


def quoted_number(error: jsonschema.ValidationError) -> bool:
    """YAML's own readers take 2e-4, without a dot, for text; so a config may give numbers as text."""
    return isinstance(error.instance, str) and error.instance.strip("+-0123456789._eE ") == ""


@FUZZ
@given(tree=mutated(TRAINING))
def test_training_configs(tree: dict) -> None:
    agrees(RunConfig, tree, reads(RunConfig, tree))


@FUZZ
@given(tree=mutated(EVALUATION))
def test_evaluation_configs(tree: dict) -> None:
    agrees(EvalConfig, tree, reads(EvalConfig, tree))


@FUZZ
@given(tree=mutated(RECORDS))
def test_records(tree: dict) -> None:
    found = reads(Record, tree)
    agrees(Record, tree, found)
    if found is not None:
        rules(Record.model_validate(found))


def rules(record: Record) -> None:
    """What the format promises, said a second time."""
    media = record.media or [record] * (record.video is not None or record.image is not None)
    for medium in media:
        assert (medium.video is None) != (medium.image is None)
        assert medium.start is None or medium.end is None or 0 <= medium.start < medium.end
    for question in record.questions:
        assert question.question.strip() and question.kind
        if question.options and question.answer:
            assert len(question.answer) == 1 and ord(question.answer) - ord("A") in range(len(question.options))
    texts = ["\n".join([q.context, q.question, *q.options]) for q in record.questions]
    texts += ["".join(turn.content for turn in record.messages)] * bool(record.messages)
    for text in texts:
        assert text.count("<video>") in (0, sum(medium.video is not None for medium in media)) or "<image>" in text
    turns = [turn.role for turn in record.messages if turn.role != "system"]
    assert turns[::2] == ["user"] * len(turns[::2]) and turns[1::2] == ["assistant"] * len(turns[::2])


@FUZZ
@given(data=st.data())
def test_lines(data: st.DataObject) -> None:
    line = bytearray(json.dumps(data.draw(st.sampled_from(RECORDS))).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(line) - 1))
        change = data.draw(st.sampled_from(["byte", "cut", "double", "insert"]))
        if change == "byte":
            line[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            line = line[: place + 1]
        elif change == "double":
            line[place:place] = line[place : place + data.draw(st.integers(1, 40))]
        else:
            line[place:place] = data.draw(
                st.sampled_from([b"[", b'"', b"{", b"\\", b"NaN", b"\xff", b"\n", b'"id": "x", '])
            )
    try:
        tree = jsonl.parse(bytes(line))
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert tree == json.loads(line.decode("utf-8-sig")) or "NaN" in str(line)
    agrees(Record, tree, reads(Record, tree))


STATED = (
    "{0}", "{0}.", "({0})", "**{0}**", "{0}. {1}", "{0}) {1}", "Answer: {0}", "The answer is {0}.",
    "the correct answer is ({0}).",
    "The answer is option {0}", "Answer: Option {0}", "\\boxed{{{0}}}", "$\\boxed{{\\text{{{0}}}}}$",
    "<answer>{0}</answer>",
    "Final answer: **{0}**", "So the correct option is {0}: {1}.", "I would choose {0}.", "答案：{0}", "{1}",
    "The answer is {1}.",
    'Answer:\n\n{0}', "### Answer\n{0}", "The best answer is:\n({0}) {1}",
    "Therefore, {0} is correct.", '{{"answer": "{0}"}}',
)  # fmt: skip
BEFORE = (
    "", "\n", "<think>\nIt could be {other}. The answer is {other}? No.\n</think>\n\n",
    "Let us look at the frames.\n\n",
    "Option {other} is wrong because nothing falls.\n", "The man walks to the table at first. ",
    "The answer is not {other}. ",
    "◁think▷ maybe {other} ◁/think▷",
)  # fmt: skip
AFTER = ("", "\n", " ", "<|im_end|>", "</s>", "\n\n")
OPTIONS = (
    ["a red car", "a blue car", "a dog runs", "a man sits"],
    ["Yes", "No"],
    ["3", "5", "12", "30"],
    ["He opens the door", "He opens the window", "He does not open anything"],
)


@FUZZ
@given(data=st.data())
def test_replies_that_state_an_answer(data: st.DataObject) -> None:
    options = data.draw(st.sampled_from(OPTIONS))
    right, other = data.draw(st.permutations(range(len(options))))[:2]
    stated = data.draw(st.sampled_from(STATED)).format(LETTERS[right], options[right])
    before = data.draw(st.sampled_from(BEFORE)).format(other=LETTERS[other])
    reply = before + stated + data.draw(st.sampled_from(AFTER))
    assert choice(reply, options) == LETTERS[right], reply


@FUZZ
@given(
    reply=st.lists(
        st.sampled_from(
            ["A", "B", "(C)", "Z", "answer", "is", "not", "or", "**", "\\boxed{", "<think>", "</think>", "{"]
        )
        | st.sampled_from(
            ["1:30", "-5", "3.5", "1/2", "1e999", "1/0", "九", "twenty", "hundred " * 40, "%", "\n", "," * 50]
        )
        | st.text(max_size=6),
        max_size=30,
    ).map(" ".join)
)
def test_any_reply_is_read_or_unread(reply: str) -> None:
    assert choice(reply, OPTIONS[0]) in {None, "A", "B", "C", "D"}
    assert choice(f"  {reply}\n", OPTIONS[0]) == choice(reply, OPTIONS[0])
    found = answers.number(reply)
    assert found is None or math.isfinite(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 2 layers, with a tokenizer."""
    model = load_language_model("sample:language_model")
    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    load_tokenizer("sample:language_model").save_pretrained(place)
    return place


def disturb(data: st.DataObject, folder: Path) -> None:
    """Change a file of a model folder: its bytes, what its JSON says, or which tensors it holds."""
    file = folder / data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    content = file.read_bytes()
    kinds = ["gone", "empty", "cut", "bytes", "pointer"]
    kinds += ["json"] * 4 * (file.suffix == ".json") + ["tensors"] * 6 * (file.suffix == ".safetensors")
    kind = data.draw(st.sampled_from(kinds))
    file.unlink()  # it is linked to the original
    if kind == "tensors":
        tensors = load(content)
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensor = tensors.pop(name)
        change = data.draw(st.sampled_from(["gone", "shorter", "deeper", "half"]))
        if change != "gone":
            tensors[name] = {"shorter": tensor[:-1].clone(), "deeper": tensor[None], "half": tensor.half()}[change]
        if data.draw(st.booleans()):
            tensors[f"{name}s"] = tensor.clone()
        save_file(tensors, file, {"format": "pt"})
    elif kind == "json":
        file.write_text(json.dumps(data.draw(mutated([json.loads(content)]))))
    elif kind == "bytes":
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(1, 8))):
            changed[data.draw(st.integers(0, min(len(changed), 4096) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(changed)
    elif kind != "gone":
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        file.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "pointer": pointer}[kind])


@FUZZ
@given(data=st.data())
def test_model_folders(folder: Path, data: st.DataObject) -> None:
    """A folder is refused in a sentence, or read with every tensor as its file has it."""
    with tempfile.TemporaryDirectory() as place:
        mine = Path(place, "model")
        shutil.copytree(folder, mine, copy_function=os.link)
        disturb(data, mine)
        try:
            model = load_language_model(str(mine))
            load_tokenizer(str(mine))
        except (ValueError, OSError) as error:
            assert "\n" not in str(error).strip() or len(str(error)) < 2000
            return
        stored = load_file(mine / "model.safetensors")
        for name, tensor in model.state_dict().items():
            if name in stored:
                assert torch.equal(tensor, stored[name].to(tensor.dtype)) or not stored[name].isfinite().all(), name
            else:  # tied
                assert name == "lm_head.weight" and model.config.tie_word_embeddings, name
