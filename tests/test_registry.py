"""Registries: what is built, and errors that say what exists."""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from langdc import registry
from langdc.registry import Registry, check_choice, check_keywords, nearest


@dataclass
class Pool:
    sides: list[int]
    keep: float = 1.0


def zoo() -> Registry:
    members: Registry = Registry("compressor")
    members.register("pool")(Pool)
    members.register("langdc")(lambda layer=16: ("langdc", layer))
    return members


def test_builds_a_member_from_keyword_arguments():
    assert zoo().build("pool", sides=[2], keep=0.25) == Pool([2], 0.25)
    assert zoo().names() == ["langdc", "pool"]


def test_unknown_name_proposes_the_nearest_and_lists_all():
    with pytest.raises(ValueError, match=r"Unknown compressor 'pol'\. Did you mean 'pool'\? There is: langdc, pool\."):
        zoo().get("pol")


def test_unknown_setting_proposes_the_nearest():
    with pytest.raises(ValueError, match=r"'pool' has no setting 'keeep'\. Did you mean 'keep'\? There is: keep,"):
        zoo().build("pool", sides=[2], keeep=0.5)


def test_missing_setting_is_named():
    with pytest.raises(ValueError, match=r"'pool' needs the setting sides\."):
        zoo().build("pool")


def test_members_own_errors_pass_through():
    with pytest.raises(TypeError):
        zoo().register("broken")(lambda: 1 + "1")()


def test_a_taken_name_is_refused_and_the_first_member_stays():
    members = zoo()
    with pytest.raises(ValueError, match="name 'pool' is taken"):
        members.register("pool")(dict)
    assert members.get("pool") is Pool
    assert members.register("pool")(Pool) is Pool, "the same member again, as when a module is reloaded, is fine"


def test_registries_do_not_share_members():
    zoo()
    assert Registry("compressor").names() == []


def test_third_parties_join_through_entry_points(monkeypatch: pytest.MonkeyPatch):
    entry = importlib.metadata.EntryPoint("ordered", "collections:OrderedDict", "langdc.compressors")
    asked = []

    def installed(group: str) -> list[importlib.metadata.EntryPoint]:
        asked.append(group)
        return [entry]

    monkeypatch.setattr(registry, "entry_points", installed)
    members = zoo()
    assert members.names() == ["langdc", "ordered", "pool"]
    members.get("ordered")
    assert asked == ["langdc.compressors"], "looked up once"


def test_nearest_without_a_close_name_lists_what_there_is():
    assert nearest("zzz", ["b", "a"]) == " There is: a, b."
    assert nearest("zzz", []) == " There is: nothing."


def test_check_keywords_ignores_catch_all_parameters():
    def function(a: int, *rest: int, b: int = 0, **others: int) -> None: ...

    check_keywords("function", function, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="no setting 'others'"):
        check_keywords("function", function, {"a": 1, "others": 2})


def test_check_choice_says_what_is_allowed():
    choice = Literal["fixed", "released"]
    check_choice("variant", "fixed", choice)
    for wrong in ("Fixed", None, ["fixed"]):
        with pytest.raises(ValueError, match=r"variant=.*; allowed are 'fixed', 'released'\.$"):
            check_choice("variant", wrong, choice)


class Whole:
    """A member from outside, whose class states its types as text."""

    def __init__(
        self,
        sides: "list[int]" = [],  # noqa: B006
        keep: "float | None" = None,
        soft: "bool" = False,
        by: "Literal['frames', 'patches']" = "frames",
        member: "str | dict | Pool | None" = None,
        folder: "Path" = Path(),
        steps: "Mapping[str, Sequence[int]]" = {},  # noqa: B006
        pair: "tuple[int, str]" = (1, "a"),
        other: "zoo" = None,  # type: ignore
        anything: "Any" = None,
    ) -> None: ...


@pytest.mark.parametrize(
    ("name", "good", "wrong", "allowed"),
    [
        (
            "sides",
            ([2, 3], (2,), []),
            (2, "2", [2.0], ["2"], [True], [2**32], {1: 1}, None),
            "lists of integers below 2**32",
        ),
        ("keep", (0.5, 1, None), ("0.5", [0.5], True, float("nan"), float("inf"), 10**400), "finite numbers or null"),
        ("soft", (True,), (1, "true", None), "true and false"),
        ("by", ("frames",), ("Frames", None, ["frames"]), "'frames', 'patches'"),
        ("member", ("x", {"a": 1}, Pool([1]), None), (3, ["x"], True), "text or mappings or Pool or null"),
        ("folder", ("x", Path("x")), (3, None), "paths"),
        ("steps", ({"a": [1]}, {}), ([1], {"a": 1}, {1: [1]}, {"a": "1"}), "mappings of lists of integers below 2**32"),
        ("pair", ([1, "a"],), ([1], [1, 2], "1a"), "lists of text"),
        ("other", (3, "x"), (), ""),
        ("anything", (3, "x", None), (), ""),
    ],
)
def test_settings_are_of_the_types_that_the_class_states(name: str, good: tuple, wrong: tuple, allowed: str):
    for value in good:
        check_keywords("compressor 'whole'", Whole, {name: value})
    for value in wrong:
        message = re.escape(f"The compressor 'whole' has {name}={value!r}; allowed are {allowed}.")
        with pytest.raises(ValueError, match=f"^{message}$"):
            check_keywords("compressor 'whole'", Whole, {name: value})


def test_types_that_cannot_be_read_are_not_checked():
    def function(a: "Nowhere", b: "int") -> None: ...  # type: ignore # noqa: F821

    check_keywords("function", function, {"a": 1, "b": "x"})


@pytest.mark.parametrize("given", [{"sides": [2]}, {"name": 3}, {"name": ["pool"]}, {"name": "pool", 1: 2}])
def test_a_member_in_a_mapping_has_a_name_and_settings(given: dict):
    with pytest.raises(ValueError, match="compressor is"):
        zoo().of(given)
