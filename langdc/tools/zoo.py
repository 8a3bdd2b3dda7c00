"""The zoo as a table: what each compressor is, what it needs, where it was published."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from langdc.backbones import backbones
from langdc.compressors import compressors
from langdc.interfaces import LearnedCompressor
from langdc.kvcompressors import kvcompressors
from langdc.kvcompressors.scorers import build_scorer

NEEDS = {"question": "question", "saliency": "encoder attention"}
"""What the table says for each of `TokenCompressor.needs` that is worth saying."""


@dataclass(frozen=True)
class Entry:
    """One compressor: `site` is where it works, `needs` what it needs besides features, `backbones` which models."""

    name: str
    site: str
    needs: str
    paper: str
    variants: tuple[str, ...]
    backbones: str
    summary: str


def entries() -> list[Entry]:
    """All compressors: before the language model, learned, in its cache; each group by name."""
    before = [_token_entry(name) for name in compressors.names()]
    cache = [_kv_entry(name) for name in kvcompressors.names()]
    return sorted(before, key=lambda entry: entry.site) + cache


def _token_entry(name: str) -> Entry:
    kind: Any = compressors.get(name)
    learned = issubclass(kind, LearnedCompressor)
    needs = ["training"] if learned else []
    stated = kind.needs if isinstance(getattr(kind, "needs", None), frozenset) else frozenset()  # some know it later
    needs += [said for name, said in NEEDS.items() if name in stated]
    return Entry(
        name,
        "learned" if learned else "before the LLM",
        ", ".join(needs) or "-",
        kind.paper or "-",
        _variants(kind),
        _served(kind, learned),
        _summary(kind),
    )


def _kv_entry(name: str) -> Entry:
    kind: Any = kvcompressors.get(name)
    scorer = inspect.signature(kind).parameters.get("scorer")
    given = scorer.default if scorer is not None else None
    guided = isinstance(given, str) and build_scorer(given).question_window > 0
    return Entry(
        name, "KV cache", "question" if guided else "-", kind.paper or "-", _variants(kind), "all", _summary(kind)
    )


def _variants(kind: Callable) -> tuple[str, ...]:
    """The values that the keyword `variant` may have."""
    return get_args(get_type_hints(kind.__init__).get("variant"))  # pyright: ignore[reportFunctionMemberAccess]


def _served(kind: Any, learned: bool) -> str:
    if learned:
        return "videogpt_plus"
    lacking = [name for name in backbones.names() if getattr(backbones.get(name), "needs_places", False)]
    return "all" if kind.keeps_places or not lacking else f"all but {', '.join(lacking)}"


def _summary(kind: Any) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]
