"""`langdc compressors`: a table of all compressors with what they need and where they were published."""

import argparse
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from rich.table import Table

from langdc.compressors import compressors
from langdc.kvcompressors import kvcompressors
from langdc.kvcompressors.scorers import scorers
from langdc.log import screen

_NEEDS = {"question": "question", "saliency": "encoder attention"}
"""Words of the table for members of `TokenCompressor.needs`; the others go without saying."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    argparse.ArgumentParser(prog="langdc compressors", description=__doc__).parse_args(argv)
    table = Table("name", "site", "needs", "variants", "paper", box=None, pad_edge=False)
    table.columns[0].no_wrap = True  # names are copied from here
    found = _entries()
    for entry in found:
        table.add_row(entry.name, entry.site, entry.needs, " ".join(entry.variants) or "-", entry.paper)
    console = screen(soft_wrap=False)
    console.print(table)
    console.print(
        f"{len(found)} compressors. Try one: langdc ask VIDEO QUESTION --model DIR --compressor NAME --keep 0.25"
    )
    return 0


@dataclass(frozen=True)
class _Entry:
    """One compressor: `site` is where it works, `needs` what it needs besides features."""

    name: str
    site: str
    needs: str
    paper: str
    variants: tuple[str, ...]
    summary: str


def _entries() -> list[_Entry]:
    """All compressors: before the language model, learned, in its cache; each group by name."""
    before = [_token_entry(name) for name in compressors.names()]
    cache = [_kv_entry(name) for name in kvcompressors.names()]
    return sorted(before, key=lambda entry: entry.site) + cache


def _token_entry(name: str) -> _Entry:
    kind: Any = compressors.get(name)
    learned = "width" in inspect.signature(kind).parameters  # it has weights of the backbone's width
    needs = ["training"] if learned else []
    stated = kind.needs if isinstance(getattr(kind, "needs", None), frozenset) else frozenset()  # some know it later
    needs += [said for name, said in _NEEDS.items() if name in stated]
    return _entry(name, "learned" if learned else "before the LLM", ", ".join(needs) or "-", kind)


def _kv_entry(name: str) -> _Entry:
    kind: Any = kvcompressors.get(name)
    scorer = inspect.signature(kind).parameters.get("scorer")
    given = scorer.default if scorer is not None else None
    guided = isinstance(given, str) and scorers.of(given).question_window > 0
    return _entry(name, "KV cache", "question" if guided else "-", kind)


def _entry(name: str, site: str, needs: str, kind: Any) -> _Entry:
    variants = get_args(get_type_hints(kind.__init__).get("variant"))
    return _Entry(name, site, needs, kind.paper or "-", variants, (inspect.getdoc(kind) or "").partition("\n")[0])
