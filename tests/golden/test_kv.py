"""KV compressors on recorded queries, keys and values, against caches that the authors' code made of them.

What is stored, README.md here says. `rows` are the prompt rows behind the authors' keys, found by matching them.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding, Qwen2_5_VLTextConfig

from langdc.kvcompressors import build
from langdc.kvcompressors.allocators import allocators
from langdc.kvcompressors.flexreduc import FlexReduc
from langdc.kvcompressors.temporal import means_of_frames, project, shares_by_distance
from langdc.prefill import PrefillOutput, prefill
from langdc.rope import yarn
from tests.golden.recorded import RecordedModel, embeds

FOLDER = Path(__file__).parent
RECORD = json.loads((FOLDER / "kv.json").read_text())
ALLOCATORS = {"emprical": "empirical", "adakv": "adaptive"}  # upstream's names


@cache
def stored() -> dict[str, Tensor]:
    return load_file(FOLDER / "kv.safetensors")


def each(name: str) -> list:
    return [pytest.param(case, id=case["id"]) for case in RECORD[name]]


def rotary(inputs: str) -> nn.Module:
    """The rotary embedding that the inputs were recorded under."""
    how = RECORD["inputs"][inputs]
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": how.get("max_pos", 512)}
    kind = {"rope_type": "default", "rope_theta": 1e4}
    if how["mrope_section"] is None:
        made = Qwen2RotaryEmbedding(Qwen2Config(**sizes, rope_parameters=kind))
    else:
        kind["mrope_section"] = how["mrope_section"]
        config = Qwen2_5_VLTextConfig(**sizes, rope_parameters=kind)
        if how.get("yarn"):
            yarn(config, how["yarn"])
        made = Qwen2_5_VLRotaryEmbedding(config)
    torch.testing.assert_close(made.inv_freq, stored()[f"{inputs}.inv_freq"], atol=1e-7, rtol=0)
    return made


def read(case: dict, compressor) -> tuple[PrefillOutput, RecordedModel]:
    """Prefill the recorded prompt of a case, chunked as recorded."""
    inputs = case["inputs"]
    segments = RECORD["inputs"][inputs]["segments"][:-1]  # the last one is a token written after the prompt
    query, key, value, positions = (stored()[f"{inputs}.{part}"] for part in ("q", "k", "v", "positions"))
    video = torch.tensor([kind == "video" for kind, length in segments for _ in range(length)])
    anchor = torch.zeros_like(video)
    if f"{case['id']}.anchor" in stored():
        anchor[video] = stored()[f"{case['id']}.anchor"]
    first = segments[0][1] if case["video_first"] else 0
    model = RecordedModel(query[:, :, first:], key[:, :, first:], value[:, :, first:], rotary(inputs))
    chunk = RECORD["inputs"][inputs]["chunks"][0]
    reading = prefill(
        model, nn.Identity(), embeds(len(video) - first), positions.long()[..., first:], video[first:], compressor,
        chunk_tokens=chunk, anchor=anchor[first:] if anchor.any() else None,
    )  # fmt: skip
    return reading, model


class GivenShares(FlexReduc):
    """FlexReduc with the chunks' shares given, as they were where the caches were recorded."""

    def __init__(self, shares: list[float], **settings) -> None:
        super().__init__(**settings)
        self.given = shares

    def _shares_in_time(self, plan, chunks) -> list[float]:
        return self.given


def released(case: dict):
    """The authors' compressor of a case."""
    how = case["settings"]
    method, share, compact_positions = (
        how["compression_method"],
        how["compression_ratio"],
        how.get("pos_embed_reforge", False),
    )
    allocator = {"name": ALLOCATORS.get(name := how.get("budget_allocation_method", "even"), name)}
    if name == "pyramid":
        allocator["beta"] = how["pyramid_beta"]
    if method == "pivotkv":
        return build("pivotkv", keep=share, variant="released", compact_positions=compact_positions)
    if method == "vidlkv":
        scorer = {"name": "question", "relevant": how.get("prompt_compression", False)}
        return build(
            "pivotkv",
            keep=share,
            variant="released",
            compact_positions=compact_positions,
            scorer=scorer,
            allocator=allocator,
        )
    temporal = how.get("enable_temporal_adaptation", False)
    settings = {"keep": share, "allocator": allocator, "compact_positions": compact_positions, "temporal": temporal}
    stale = ["text_scores"] if case["as_is"] else []
    if case["chunk_shares"] is not None:
        return GivenShares(
            case["chunk_shares"], variant="released-2026", defects=[*stale, "saturated_question"], **settings
        )
    return build(
        "flexreduc", variant="released", defects=stale, boost=how.get("temporal_adaptation_ratio", 10), **settings
    )


@pytest.mark.parametrize("case", each("cases"))
def test_a_cache_equals_the_authors(case: dict) -> None:
    reading, model = read(case, released(case))
    assert reading.keys_per_layer == case["lengths"]
    seen = [keys for piece in model.attended for keys in piece]
    assert case["id"] == "k20" or seen == [
        keys for piece, _, keys in case["attended"] if piece < case["attended"][-1][0]
    ]
    compare(case, reading)


def compare(case: dict, reading: PrefillOutput) -> None:
    """Which rows were kept, exactly; where they stand, up to the layer's offset; keys within 1e-5."""
    name, layers = case["id"], reading.cache.layers
    rows = stored()[f"{name}.rows"].long().split(case["lengths"])
    positions = stored().get(f"{name}.positions")
    value = stored()[f"{case['inputs']}.v"]
    for number, layer in enumerate(layers):
        assert torch.equal(layer.values[0], value[number][:, rows[number]])
    if positions is not None:
        for layer, stands in zip(layers, positions.long().split(case["lengths"], -1), strict=True):
            ahead = layer.positions[:, 0] - stands
            assert (ahead[0] == ahead[0, -1]).all() and not ahead[1:].any()
    last = layers[-1]
    offset = torch.zeros(len(last.positions), 1, 1, dtype=torch.long)
    if positions is not None:
        offset[0] = last.positions[0, 0, -1] - positions[0, -1]
    keys = reading.cache.rope.rerotate(last.keys, -offset)[0]
    torch.testing.assert_close(keys, stored()[f"{name}.key"], atol=1e-5, rtol=0)


FIXED = ["k0", "k1", "k2", "k3", "k4", "k7", "k8", "k9", "k10", "k11", "k12", "k13", "b0", "b1", "b2", "b8", "b10"]


@pytest.mark.parametrize("case", [p for p in each("cases") if p.id in FIXED])
def test_the_fixed_variant_is_the_same_where_no_defect_bites(case: dict) -> None:
    compressor = released(case)
    compressor.variant = "fixed"
    if isinstance(compressor, FlexReduc):
        compressor.defects = frozenset()
    reading, _ = read(case, compressor)
    compare(case, reading)


@pytest.mark.parametrize("name", [name for name in RECORD["tables"] if name != "f"])
def test_shares_of_layers(name: str) -> None:
    table = RECORD["tables"][name]
    method = {"name": ALLOCATORS.get(table["method"], table["method"])}
    if table["pyramid_beta"] is not None:
        method["beta"] = table["pyramid_beta"]
    found = allocators.of(method)(table["ratio"], torch.zeros(table["layers"], 1))
    assert found.tolist() == pytest.approx(table["result"], abs=1e-12)


def test_three_layers_do_not_divide_by_zero() -> None:
    """Table f, where upstream does: the last layer gets the end of the curve."""
    curve = [0.3, 0.2, 0.2]
    found = allocators.of("empirical")(0.3, torch.zeros(3, 1))
    assert found.tolist() == pytest.approx([0.3 / (0.55 / 3) * value for value in curve])


@pytest.mark.parametrize("case", RECORD["projection"])
def test_projection_on_a_sum(case: dict) -> None:
    total = case["target_sum"] or sum(case["w"])
    assert project(case["w"], total, case["w_max"], case["tol"]) == pytest.approx(case["result"], abs=1e-12)


@pytest.mark.parametrize("which", ["half", "whole"])
@pytest.mark.parametrize("case", each("shares"))
def test_shares_of_chunks(case: dict, which: str) -> None:
    """`half`: as released, where half of every frame's tokens make a frame; `whole`: what is meant."""
    video, size = stored()[f"{case['id']}.video"], case["frame_tokens"]
    if which == "half":
        video, size = video[: case["frames"] * (size // 2)], size // 2
    chunks = len(case[which])
    means = means_of_frames(video, size, chunks)
    found = [case["share"]] * chunks if means is None else shares_by_distance(case["share"], means)
    # a7 does not change at all: which chunk differs more is rounding noise
    assert found == pytest.approx(case[which], abs=1e-5 if case["id"] == "a7" else 1e-9)
