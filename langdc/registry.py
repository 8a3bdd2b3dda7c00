"""Named members of a zoo: build them from a name and keyword arguments, with errors that say what exists."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, get_args

from langdc import compat


def nearest(given: str, allowed: Iterable[str]) -> str:
    """A hint for a name that does not exist: the closest one, then all of them."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} There is: {', '.join(allowed) or 'nothing'}."


Member = TypeVar("Member")


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
        return self.build(**given) if isinstance(given, Mapping) else given

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
    """Raise ValueError if `function` lacks one of the keyword arguments or one that it requires is not given."""
    stated = inspect.signature(function).parameters.items()
    parameters = {name: p for name, p in stated if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name in settings:
        if name not in parameters:
            raise ValueError(f"The {what} has no setting {name!r}.{nearest(name, parameters)}")
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in settings]
    if missing:
        raise ValueError(f"The {what} needs the setting{'s' * (len(missing) > 1)} {', '.join(missing)}.")


def check_choice(setting: str, given: object, literal: Any) -> None:
    """Raise ValueError unless the value given for a setting is one of those of a `Literal` type."""
    allowed = get_args(literal)
    if given not in allowed:
        raise ValueError(f"{setting}={given!r}; allowed are {', '.join(map(repr, allowed))}.")
