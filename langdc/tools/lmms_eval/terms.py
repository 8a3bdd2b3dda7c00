"""From lmms-eval's model arguments, questions and generation settings to those of this package."""

from collections.abc import Mapping
from typing import Any

import yaml

from langdc.backbones.chat import conversation
from langdc.data.records import MARKS
from langdc.tools.zoo import member_of

_DEFAULT_NEW_TOKENS = 1024  # what most models of lmms-eval allow where a task says nothing
_PASSED_ON = ("num_beams", "repetition_penalty")
_SAMPLING = ("temperature", "top_p", "top_k")


def chosen(
    compressor: str | None, kv: str | None, backbone: str | None, settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Keywords of `VideoLM.from_pretrained` for model arguments.

    `settings`: all other arguments. Plain names are settings of the compressor, `kv.NAME` of the KV compressor,
    `backbone.NAME` of a stock model's backbone; lists are written as YAML or JSON. ValueError for a setting of a member
    that is not named.
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
    found = {} if compressor is None else member_of(compressor, plain)
    if kv is not None:
        if "kv" in found:
            raise ValueError(f"compressor={compressor} works in the cache already; leave out kv={kv}.")
        found["kv"] = {"name": kv, **of["kv"]}
    if backbone is not None or of["backbone"]:
        found["backbone"] = {**({} if backbone is None else {"name": backbone}), **of["backbone"]}
    return found


def messages(text: str, visuals: int) -> list[dict]:
    """The messages of a question: visuals at the marks in its text if there is one for each, else before the text.

    With one video or none these are the messages of `VideoLM.ask`.
    """
    marked = visuals and len(MARKS.findall(text)) == visuals
    return conversation(text if marked else MARKS.sub("", text), videos=visuals)


def generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options of transformers' `generate` for a task's generation settings; those of other models are left out.

    Replies are sampled if the temperature is above 0, or if sampling is asked for without a temperature; else greedy.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    new = given.get("max_new_tokens", given.get("max_gen_toks", _DEFAULT_NEW_TOKENS))
    sample = given["temperature"] > 0 if "temperature" in given else bool(given.get("do_sample", False))
    passed = [*_PASSED_ON, *(_SAMPLING if sample else ())]
    return {"max_new_tokens": new, "do_sample": sample, **{name: given[name] for name in passed if name in given}}


def cut(text: str, until: str | list[str] | None) -> str:
    """A reply up to the first of the `until` strings.

    The finished text is cut, generation does not stop there: many tasks end replies at a blank line, and a reply that
    begins with one would be empty.
    """
    for end in [until] if isinstance(until, str) else until or []:
        if end:
            text = text.partition(end)[0]
    return text.strip()
