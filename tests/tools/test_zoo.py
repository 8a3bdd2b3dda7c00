"""The list of compressors says what is true of them."""

import inspect

from langdc.cli import main
from langdc.compressors import compressors
from langdc.frameselectors import frameselectors
from langdc.kvcompressors import kvcompressors
from langdc.layercompressors import layercompressors
from langdc.tools.zoo import _entries as entries

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
