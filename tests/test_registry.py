"""Registries: what is built, and errors that say what exists."""

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

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
