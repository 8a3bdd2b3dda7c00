"""What every KV compressor of the zoo promises, whoever wrote it, and what they say to bad settings."""

import pytest

from langdc.conformance.candidates import Candidate
from langdc.conformance.prompts import FRAME, FRAMES, QUESTION, TEXT, prompt, read
from langdc.conformance.test_kvcompressor import *  # noqa: F403 - the same tests for our own members
from langdc.kvcompressors import build, kvcompressors

TOKENS = FRAMES * FRAME
VARIANTS: dict[str, dict] = {
    "random": {},
    "random, adaptive": {"allocator": "adaptive"},
    "streaming": {},
    "snapkv": {"window": 4},
    "snapkv, question": {"scorer": "question", "allocator": "adaptive"},
    "pivotkv": {},
    "pivotkv, paper": {"variant": "paper"},
    "pivotkv, question": {"scorer": "question", "allocator": {"name": "pyramid", "beta": 4}},
    "flexreduc": {},
    "flexreduc, paper": {"variant": "paper"},
    "flexreduc, even": {"allocator": "even", "temporal": False},
    "flexreduc, own scores": {"scorer": "self", "compact_positions": False},
}


DECODING: dict[str, dict] = {"dycoke_decoding": {}, "dycoke_decoding, first": {"layer": 1}}
"""Of those that choose what replies read; their own tests have other variants."""


def candidates(variants: dict[str, dict]) -> list[Candidate]:
    return [Candidate(name, kvcompressors.get(name.split(",")[0]), given) for name, given in variants.items()]


CANDIDATES, CHOOSING = candidates(VARIANTS), candidates(DECODING)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kv_candidate" in metafunc.fixturenames:
        chooses = metafunc.cls is TestDecodingKVCompressor  # noqa: F405
        metafunc.parametrize("kv_candidate", CHOOSING if chooses else CANDIDATES, ids=str)


def make(variant: str, **changes):
    return next(one for one in CANDIDATES if one.name == variant).make(**changes)


def test_every_member_is_held_to_the_contract() -> None:
    found = {variant.split(",")[0]: False for variant in VARIANTS} | {name.split(",")[0]: True for name in DECODING}
    assert found == {name: kvcompressors.get(name).decoding for name in kvcompressors.names()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_are_a_fraction_of_the_whole_prompt(variant: str) -> None:
    if "paper" in variant:
        pytest.skip("the printed formula takes the text off first; see its own test")
    tokens = 30
    found = read("one axis", make(variant, tokens=tokens)).keys_per_layer
    other = read("one axis", make(variant, keep=tokens / (TEXT + TOKENS + QUESTION))).keys_per_layer
    assert found == other


@pytest.mark.parametrize("name", [variant for variant in VARIANTS if "," not in variant])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep": 0}, r"not in \(0, 1\]"),
        ({"keep": 1.5}, r"not in \(0, 1\]"),
        ({"tokens": 0}, "at least 1"),
        ({}, "neither"),
        ({"keep": 0.5, "tokens": 5}, "both"),
        ({"keep": 0.5, "chunk_frames": 0}, "chunk_frames=0"),
        ({"keep": 0.5, "chunkframes": 3}, "Did you mean 'chunk_frames'"),
    ],
)
def test_bad_settings(name: str, settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(name, **settings)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="Did you mean 'pivotkv'"):
        build("pivot", keep=0.5)
    with pytest.raises(ValueError, match="Did you mean 'adaptive'"):
        build("pivotkv", keep=0.5, allocator="adaptiv")
    with pytest.raises(ValueError, match="Did you mean 'question'"):
        build("flexreduc", keep=0.5, scorer={"name": "questions"})


@pytest.mark.parametrize("variant", ["flexreduc", "snapkv, question", "pivotkv, question"])
def test_a_question_is_needed_to_be_guided_by_one(variant: str) -> None:
    with pytest.raises(ValueError, match="ends with a video"):
        read("one axis", make(variant), prompt("one axis", question=0))
