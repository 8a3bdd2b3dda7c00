"""What lmms-eval asks for, in our terms: model arguments, messages, generation settings."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from langdc.backbones.chat import conversation
from langdc.tools.compare import resolved

MARK = re.compile(r"<image>|<video>")
"""Where some tasks say that a visual belongs."""
DEFAULT_NEW_TOKENS = 1024  # what most models of lmms-eval allow where a task says nothing
PASSED_ON = ("num_beams", "repetition_penalty")
SAMPLING = ("temperature", "top_p", "top_k")


def chosen(
    compressor: str | None, kv: str | None, backbone: str | None, settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Keywords of `VideoLM.from_pretrained` for model arguments.

    `settings` are the others: plain names set the compressor, `kv.NAME` what thins out the cache, `backbone.NAME` the
    backbone of a stock model. Lists and the like are written as YAML or JSON. ValueError for a setting of nothing.
    """
    read = {name: yaml.safe_load(v) if isinstance(v, str) else v for name, v in settings.items()}
    plain = {name: value for name, value in read.items() if "." not in name}
    of: dict[str, dict[str, Any]] = {"kv": {}, "backbone": {}}
    for name in read.keys() - plain.keys():
        owner, _, rest = name.partition(".")
        if owner not in of:
            raise ValueError(
                f"There is no model argument {name!r}; settings are called NAME, kv.NAME or backbone.NAME."
            )
        of[owner][rest] = read[name]
    if plain and compressor is None:
        raise ValueError(f"The model arguments {', '.join(plain)} set a compressor, and none is named: compressor=NAME")
    if of["kv"] and kv is None:
        raise ValueError(f"The model arguments kv.{', kv.'.join(of['kv'])} need to know of what: add kv=NAME")
    found = {} if compressor is None else resolved(compressor, plain)
    if kv is not None:
        if "kv" in found:
            raise ValueError(f"compressor={compressor} works in the cache already; leave out kv={kv}.")
        found["kv"] = {"name": kv, **of["kv"]}
    if backbone is not None or of["backbone"]:
        found["backbone"] = {**({} if backbone is None else {"name": backbone}), **of["backbone"]}
    return found


def messages(text: str, visuals: int) -> list[dict]:
    """A question about visuals: where the text marks one place for each, there; else before it, on a line of their own.

    With one video or none these are the messages of `VideoLM.ask`, so a task puts its questions as our own loop does.
    """
    pieces = MARK.split(text)
    if visuals and len(pieces) == visuals + 1:
        content = [{"type": "text", "text": pieces[0]}]
        for piece in pieces[1:]:
            content += [{"type": "video"}, {"type": "text", "text": piece}]
        return [{"role": "user", "content": [part for part in content if part.get("text") != ""]}]
    asked = conversation("".join(pieces), video=visuals > 0)
    asked[0]["content"] = [{"type": "video"}] * (visuals - 1) + asked[0]["content"]
    return asked


def generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options of transformers' `generate` for a task's generation settings; those for other models are left out.

    Sampled where a temperature above 0 is given, or sampling without any temperature; greedy otherwise.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    new = given.get("max_new_tokens", given.get("max_gen_toks", DEFAULT_NEW_TOKENS))
    sample = given["temperature"] > 0 if "temperature" in given else bool(given.get("do_sample", False))
    passed = [*PASSED_ON, *(SAMPLING if sample else ())]
    return {"max_new_tokens": new, "do_sample": sample, **{name: given[name] for name in passed if name in given}}


def cut(text: str, until: str | list[str] | None) -> str:
    """A reply up to the first of the strings that end one.

    Cut from the finished text and not while writing: many tasks end replies at a blank line, and a model that begins
    with one would have said nothing.
    """
    for end in [until] if isinstance(until, str) else until or []:
        if end:
            text = text.partition(end)[0]
    return text.strip()
