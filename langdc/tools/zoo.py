"""`langdc compressors`: a table of compressors and frame selectors, what they need and where they were published."""

import argparse
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args, get_type_hints

from rich.table import Table

from langdc.compressors import compressors
from langdc.frameselectors import frameselectors
from langdc.kvcompressors import kvcompressors
from langdc.kvcompressors.scorers import scorers
from langdc.layercompressors import layercompressors
from langdc.log import screen

_NEEDS = {"question": "question", "saliency": "encoder attention"}
"""Words of the table for members of `TokenCompressor.needs`; the others go without saying."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    argparse.ArgumentParser(prog="langdc compressors", description=__doc__).parse_args(argv)
    table = Table("name", "site", "needs", "variants", "paper", box=None, pad_edge=False)
    table.columns[0].no_wrap = True  # names are copied from here
    found = _entries()
    for name, site, needs, variants, paper in found:
        table.add_row(name, site, needs, " ".join(variants) or "-", paper)
    console = screen(soft_wrap=False)
    console.print(table)
    ask = "langdc ask VIDEO QUESTION --model DIR --compressor NAME --keep 0.25"
    console.print(f"{len(found)} methods. Try a compressor: {ask}")
    return 0


class _Entry(NamedTuple):
    """One compressor: `site` is where it works, `needs` what it needs besides features."""

    name: str
    site: str
    needs: str
    variants: tuple[str, ...]
    paper: str


def _entries() -> list[_Entry]:
    """All frame selectors, then compressors: before the language model, learned, between its layers, in its cache; each
    group by name.
    """
    frames = [_frame_entry(name, frameselectors.get(name)) for name in frameselectors.names()]
    before = [_token_entry(name, compressors.get(name)) for name in compressors.names()]
    layers = [_layer_entry(name, layercompressors.get(name)) for name in layercompressors.names()]
    cache = [_kv_entry(name, kvcompressors.get(name)) for name in kvcompressors.names()]
    return frames + sorted(before, key=lambda entry: entry.site) + layers + cache


def _frame_entry(name: str, kind: Any) -> _Entry:
    return _Entry(name, "before encoding", "-" if kind.blind else "question, image-text model", *_published(kind))


def _token_entry(name: str, kind: Any) -> _Entry:
    learned = "width" in inspect.signature(kind).parameters  # it has weights of the backbone's width
    stated = kind.needs if isinstance(getattr(kind, "needs", None), frozenset) else frozenset()  # some know it later
    needs = ["training"] * learned + [text for need, text in _NEEDS.items() if need in stated]
    return _Entry(name, "learned" if learned else "before the LLM", ", ".join(needs) or "-", *_published(kind))


def _layer_entry(name: str, kind: Any) -> _Entry:
    needs = ["question"] * ("question" in kind.needs) + ["attention"] * bool(kind.needs & {"last", "question"})
    return _Entry(name, "LLM layers", ", ".join(needs) or "-", *_published(kind))


def _kv_entry(name: str, kind: Any) -> _Entry:
    scorer = inspect.signature(kind).parameters.get("scorer")
    guided = scorer is not None and isinstance(scorer.default, str) and scorers.of(scorer.default).question_window > 0
    site = "KV cache, replies" if kind.decoding else "KV cache"
    return _Entry(name, site, "question" if guided else "-", *_published(kind))


def _published(kind: Any) -> tuple[tuple[str, ...], str]:
    return get_args(get_type_hints(kind.__init__).get("variant")), kind.paper or "-"
