"""`langdc compressors`: a table of compressors and frame selectors, what they need and where they were published."""

import argparse
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_type_hints

from rich.table import Table

from langdc.backbones import backbones
from langdc.compressors import compressors
from langdc.frameselectors import frameselectors
from langdc.kvcompressors import kvcompressors
from langdc.kvcompressors.scorers import scorers
from langdc.layercompressors import layercompressors
from langdc.log import screen
from langdc.registry import nearest

_NEEDS = {"question": "question", "saliency": "encoder attention"}
"""Words of the table for members of `TokenCompressor.needs`; the others go without saying."""
INSIDE: Mapping[str, Any] = {"layers": layercompressors, "kv": kvcompressors}
"""What works inside the language model, by the keyword of `VideoLM`."""
_REFUSED = {"LLM layers": "qwen3_5", "KV cache": "qwen3_5", "before encoding": "videogpt_plus"}
"""By site the backbone that refuses it: one keeps a state in place of keys, the other encodes clips."""


def member_of(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"compressor": ...}, {"layers": ...} or {"kv": ...} for a name of a zoo; ValueError if there is none.

    A name of several is a token compressor; "kv:random" is the other.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind in INSIDE:
        return {kind: {"name": rest, **settings}}
    if colon or name in compressors.names():
        return {"compressor": {"name": name, **settings}}
    found = [kind for kind, zoo in INSIDE.items() if name in zoo.names()]
    if not found:
        known = {name for zoo in (compressors, *INSIDE.values()) for name in zoo.names()}
        raise ValueError(f"Unknown compressor {name!r}.{nearest(name, known)}")
    return {found[0]: {"name": name, **settings}}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and the backbones whose encoder's attention can be had."""
    argparse.ArgumentParser(prog="langdc compressors", description=__doc__).parse_args(argv)
    table = Table("name", "site", "needs", "backbones", "variants", "paper", box=None, pad_edge=False)
    table.columns[0].no_wrap = True  # names are copied from here
    table.columns[3].min_width = max(map(len, _REFUSED.values()))
    found = _entries()
    for name, site, needs, but, variants, paper in found:
        table.add_row(name, site, needs, f"all but {but}" if but else "all", " ".join(variants) or "-", paper)
    console = screen(soft_wrap=False)
    console.print(table)
    ask = "langdc ask VIDEO QUESTION --model DIR --compressor NAME --keep 0.25"
    attended = ", ".join(name for name in backbones.names() if getattr(backbones.get(name), "has_saliency", False))
    console.print(f"Encoder attention: of {attended}; with others, the length of tokens stands in for it.")
    console.print(f"{len(found)} methods. Try a compressor: {ask}")
    return 0


class _Entry(NamedTuple):
    """One compressor: `site` is where it works, `needs` what it needs besides features, `but` the backbone that refuses
    it.
    """

    name: str
    site: str
    needs: str
    but: str
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
    if kind.blind:
        return _Entry(name, "before encoding", "-", "", *_published(kind))
    return _entry(name, "before encoding", "question, image-text model", kind)


def _token_entry(name: str, kind: Any) -> _Entry:
    learned = "width" in inspect.signature(kind).parameters  # it has weights of the backbone's width
    stated = kind.needs if isinstance(getattr(kind, "needs", None), frozenset) else frozenset()  # some know it later
    needs = ["training"] * learned + [text for need, text in _NEEDS.items() if need in stated]
    return _entry(name, "learned" if learned else "before the LLM", ", ".join(needs) or "-", kind)


def _layer_entry(name: str, kind: Any) -> _Entry:
    needs = ["question"] * ("question" in kind.needs) + ["attention"] * bool(kind.needs & {"last", "question"})
    return _entry(name, "LLM layers", ", ".join(needs) or "-", kind)


def _kv_entry(name: str, kind: Any) -> _Entry:
    scorer = inspect.signature(kind).parameters.get("scorer")
    guided = scorer is not None and isinstance(scorer.default, str) and scorers.of(scorer.default).question_window > 0
    site = "KV cache, replies" if kind.decoding else "KV cache"
    return _entry(name, site, "question" if guided else "-", kind)


def _entry(name: str, site: str, needs: str, kind: Any) -> _Entry:
    return _Entry(name, site, needs, _REFUSED.get(site.partition(",")[0], ""), *_published(kind))


def _published(kind: Any) -> tuple[tuple[str, ...], str]:
    return get_args(get_type_hints(kind.__init__).get("variant")), kind.paper or "-"
