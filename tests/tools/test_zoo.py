"""The list of compressors says what is true of them."""

import inspect
from typing import Any

import pytest

from langdc.backbones import backbones
from langdc.cli import main
from langdc.compressors import compressors
from langdc.frameselectors import frameselectors
from langdc.kvcompressors import kvcompressors
from langdc.layercompressors import layercompressors
from langdc.tools.zoo import _entries as entries
from langdc.tools.zoo import member_of
from langdc.walk import KNOWN
from tests import stock

ZOOS = (frameselectors, compressors, layercompressors, kvcompressors)


def test_every_member_is_listed_once() -> None:
    assert sorted(entry.name for entry in entries()) == sorted(name for zoo in ZOOS for name in zoo.names())


def test_entries_tell_sites_needs_variants_and_papers() -> None:
    found = {(entry.name, entry.site): entry for entry in entries()}
    assert found["vidcom2", "before the LLM"].variants == ("fixed", "released", "paper", "vllm")
    assert (
        found["flexreduc", "KV cache"].needs == "question"
        and "released-2026" in found["flexreduc", "KV cache"].variants
    )
    assert found["pivotkv", "KV cache"].needs == "-"
    assert found["dycoke_decoding", "KV cache, replies"].variants == ("fixed", "released")
    assert found["visionzip", "before the LLM"].needs == "encoder attention"
    assert found["langdc", "learned"].needs == found["resampler", "learned"].needs == "training"
    assert found["ma_lmm", "before the LLM"].needs == "-"
    assert found["aks", "before encoding"].needs == "question, image-text model"
    assert found["aks", "before encoding"].variants == ("fixed", "released")
    assert found["uniform", "before encoding"].needs == "-"
    members = [zoo.get(name) for zoo in ZOOS for name in zoo.names()]
    assert all((inspect.getdoc(member) or "").partition("\n")[0].endswith((".", ",", ";", ":")) for member in members)
    published = {entry.name for entry in entries() if entry.paper != "-"}
    assert {"identity", "random", "uniform", "chain"}.isdisjoint(published) and len(published) >= 15


def test_the_command_prints_the_table(capsys) -> None:
    assert main(["compressors"]) == 0
    said = capsys.readouterr().out
    assert "vidcom2" in said and "holitom_outer" in said and "langdc ask VIDEO QUESTION" in said
    assert "all but" in said and "videogpt_plus" in said and "of internvl, llava_onevision, llava_video;" in said


@pytest.mark.parametrize("name", stock.NAMES)
def test_the_backbones_that_refuse_a_site_are_those_that_are_named(name: str) -> None:
    backbone = backbones.build(name, source=stock.folder(name))
    config: Any = backbone.text_model.config
    walks, kinds = config.model_type in KNOWN, set(getattr(config, "layer_types", None) or ["full_attention"])
    for site, possible in (("LLM layers", walks), ("KV cache", kinds == {"full_attention"})):
        assert {entry.but != name for entry in entries() if entry.site == site} == {possible}
    assert backbone.frames_per_segment == backbone.frames_per_step  # so that frames can be chosen


@pytest.mark.parametrize(
    ("name", "part"), [("fastv", "layers"), ("snapkv", "kv"), ("random", "compressor"), ("module:Class", "compressor")]
)
def test_a_name_is_found_in_the_zoo_that_has_it(name: str, part: str) -> None:
    assert member_of(name, {"keep": 0.5}) == {part: {"name": name, "keep": 0.5}}
    assert member_of(f"kv:{name}", {}) == {"kv": {"name": name}}


def test_a_name_of_no_zoo_is_told_the_nearest_of_all() -> None:
    with pytest.raises(ValueError, match=r"Unknown compressor 'fastw'\. Did you mean 'fastv'.*snapkv"):
        member_of("fastw", {})
