"""Named members of a zoo: build them from a name and keyword arguments, with errors that say what exists."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin

from langdc import compat


def nearest(given: str, allowed: Iterable[str]) -> str:
    """A hint for a name that does not exist: the closest one, then all of them."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} There is: {', '.join(allowed) or 'nothing'}."


Member = TypeVar("Member")
LIMIT = 2**32
"""What integers in settings are less than."""


class Registry(Generic[Member]):
    """Members by name; third parties add theirs through the entry point group `langdc.<kind>s`.

    A name "module:Class" takes a class from any module that Python finds, if it is a subclass of `base`.
    """

    def __init__(self, kind: str, base: type | None = None) -> None:
        self.kind = kind
        self.base = base
        self._members: dict[str, Callable[..., Member]] = {}
        self._loaded_entry_points = False

    def register(self, name: str) -> Callable:
        """Decorate a class or function to make it a member; a taken name raises ValueError."""

        def add(member: Callable[..., Member]) -> Callable[..., Member]:
            if self._members.get(name, member) is not member:
                raise ValueError(f"The {self.kind} name {name!r} is taken by {self._members[name]!r}; choose another.")
            self._members[name] = member
            return member

        return add

    def names(self) -> list[str]:
        """All member names, sorted."""
        self._load_entry_points()
        return sorted(self._members)

    def get(self, name: str) -> Callable[..., Member]:
        """The member of a name; ValueError with the nearest one if there is none."""
        if not isinstance(name, str):
            raise ValueError(f"The name of a {self.kind} is text, not {name!r}.")
        self._load_entry_points()
        if name in self._members:
            return self._members[name]
        if ":" in name and self.base is not None:
            return self._imported(name, self.base)
        raise ValueError(f"Unknown {self.kind} {name!r}.{nearest(name, self._members)}")

    def _imported(self, name: str, base: type) -> Callable[..., Member]:
        module, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"The {self.kind} {name!r} cannot be imported: {error}. Put the folder of {module}.py on PYTHONPATH "
                "or install its package."
            ) from error
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ValueError(f"The {self.kind} {name!r} is no subclass of {base.__module__}.{base.__name__}.")
        return found

    def of(self, given: str | Mapping[str, Any] | Member) -> Member:
        """A member from its name, from {"name": ..., settings}, or as it is."""
        if isinstance(given, str):
            return self.build(given)
        if not isinstance(given, Mapping):
            return given
        if "name" not in given or not all(isinstance(key, str) for key in given):
            raise ValueError(f"A {self.kind} is a name, or a mapping of a name and settings; given: {dict(given)!r}.")
        return self.build(**given)

    def build(self, name: str, **settings: Any) -> Member:
        """Make a member; unknown settings raise ValueError and name the allowed ones."""
        member = self.get(name)
        settings = compat.keywords(settings, inspect.signature(member).parameters)
        check_keywords(f"{self.kind} {name!r}", member, settings)
        return member(**settings)

    def _load_entry_points(self) -> None:
        if self._loaded_entry_points:
            return
        self._loaded_entry_points = True
        group = f"langdc.{self.kind}s"
        for each in filter(None, (group, compat.ENTRY_POINTS.get(group))):
            for entry in entry_points(group=each):
                if each != group:
                    compat.warn_once(f"entry points {each}", group)
                self.register(entry.name)(entry.load())


def check_keywords(what: str, function: Callable, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if `function` lacks one of the keyword arguments, or states another type for it.

    The same if one that it requires is not given.
    """
    try:
        stated = inspect.signature(function, eval_str=True).parameters.items()
    except (NameError, TypeError, AttributeError, SyntaxError):  # names that are imported for type checkers only
        stated = inspect.signature(function).parameters.items()
    parameters = {name: p for name, p in stated if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name in settings:
        if name not in parameters:
            raise ValueError(f"The {what} has no setting {name!r}.{nearest(name, parameters)}")
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in settings]
    if missing:
        raise ValueError(f"The {what} needs the setting{'s' * (len(missing) > 1)} {', '.join(missing)}.")
    for name, given in settings.items():
        if _fits(given, kind := parameters[name].annotation) is False:
            raise ValueError(f"The {what} has {name}={given!r}; allowed are {_in_words(kind)}.")


_LISTS, _MAPPINGS = (list, tuple, set, frozenset, Sequence, Collection), (dict, Mapping)
_WORDS = {int: "integers below 2**32", float: "finite numbers", str: "text", Path: "paths", bool: "true and false"}
_WORDS |= {NoneType: "null", **dict.fromkeys(_LISTS, "lists"), **dict.fromkeys(_MAPPINGS, "mappings")}


def _fits(given: Any, kind: Any) -> bool | None:
    """Whether a value is of a type as it is, lists and tuples being the same; None for types that are not in a file."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        found = [_fits(given, each) for each in inner]
        return True in found or (None in found and not isinstance(given, str | Real | list | dict | None))
    if origin is Literal:
        return any(type(given) is type(each) and given == each for each in inner)
    if origin in (int, float):
        number, limit = (Integral, LIMIT) if origin is int else (Real, 1e308)
        return isinstance(given, number) and not isinstance(given, bool) and -limit < cast(Any, given) < limit
    if origin in _MAPPINGS:
        pairs = zip(inner, (given, given.values()), strict=False) if isinstance(given, Mapping) else ()
        return isinstance(given, Mapping) and all(_fits(v, each) is not False for each, vs in pairs for v in vs)
    if origin in _LISTS:
        if isinstance(given, str | Mapping) or not isinstance(given, Collection):
            return False
        one_by_one = origin is tuple and inner[1:] != (...,) and inner
        kinds = inner if one_by_one else (inner or (Any,))[:1] * len(given)
        return len(kinds) == len(given) and all(_fits(*pair) is not False for pair in zip(given, kinds, strict=True))
    if origin in (str, Path, bool, NoneType):
        return isinstance(given, str | Path if origin in (str, Path) else origin)
    return _fits(given, inner[0]) if origin is Annotated else True if origin in (Any, object) else None


def _in_words(kind: Any) -> str:
    """What values of a type are, as one writes them in a file."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, inner))
    if origin is Literal:
        return ", ".join(map(repr, inner))
    of = f" of {_in_words(inner[-1])}" if inner and inner[-1] not in (..., Any) and origin in _WORDS else ""
    return _WORDS.get(origin, getattr(origin, "__name__", str(origin))) + of


def check_choice(setting: str, given: object, literal: Any) -> None:
    """Raise ValueError unless the value given for a setting is one of those of a `Literal` type."""
    allowed = get_args(literal)
    if given not in allowed:
        raise ValueError(f"{setting}={given!r}; allowed are {', '.join(map(repr, allowed))}.")
