"""Chunked reading and writing on the authors' tiny checkpoints: kept indices, keys per layer, logits, greedy tokens.

Embeddings and positions come from the stock model and from the record, so that only the language model's side is
tested; backbones have tests of their own. In cases whose `gap` is 0 the authors' code decides by a tie of torch.topk;
so do the `released` variants, and a torch that breaks ties otherwise would fail them alone.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from langdc.compressors.dpselect import DPSelect
from langdc.generate import Continuation
from langdc.kvcompressors import build
from langdc.kvcompressors.pivotkv import PivotKV
from langdc.prefill import PrefillOutput, prefill
from langdc.rope import yarn
from langdc.types import Chunk, FeatureGrid

FOLDER = Path(__file__).parent
CASES = json.loads((FOLDER / "e2e_kv.json").read_text())["cases"]
CHUNK, FRAME = {"qwen2vl": 24, "qwen25vl": 24, "llava_ov": 20}, {"qwen2vl": 6, "qwen25vl": 6, "llava_ov": 4}
ALLOCATORS = {"adakv": "adaptive", "emprical": "empirical"}


@cache
def stored() -> dict[str, Tensor]:
    return load_file(FOLDER / "e2e_kv.safetensors")


class TextClockPivotKV(PivotKV):
    """PivotKV as the release of 2026 runs it: the question is placed by token numbers, gaps in time stay."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.continuous = False

    def question_positions(self, chunk: Chunk, positions: Tensor) -> Tensor:
        return positions[:, :, -chunk.question_window :] - (
            positions.shape[2] - chunk.question_window - chunk.rows.stop
        )


@cache
def loaded(name: str, factor: float | None = None):
    """A tiny checkpoint, its embedded prompt [M,D] and video mask [M]."""
    folder = FOLDER / f"e2e_{name}"
    config = AutoConfig.from_pretrained(folder)
    if factor is not None:
        config.get_text_config().max_position_embeddings = 64
        yarn(config.get_text_config(), factor)
    model = AutoModelForImageTextToText.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    ids, pixels = stored()[f"{name}.in.input_ids"][0].long(), stored()[f"{name}.in.pixel_values_videos"]
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        if name == "llava_ov":
            found = model.model.get_video_features(pixels).pooler_output[0]
        else:
            grid = stored()[f"{name}.in.video_grid_thw"].long()
            found = model.model.visual(pixels, grid_thw=grid).pooler_output
    video = ids == (291 if name != "llava_ov" else config.video_token_index)
    if name == "llava_ov" and len(found) < video.sum():  # transformers 5.17 adds the newline in forward
        found = torch.cat([found, model.model.image_newline[None]])
    embeds[video] = found
    return model, embeds, video


def positions(name: str, case: dict | None = None) -> Tensor:
    """Where the prompt's tokens stood in the authors' run [A,1,M]."""
    if name == "llava_ov":
        return torch.arange(stored()["llava_ov.in.input_ids"].shape[1])[None, None]
    found = stored()[f"{name}.positions"].long()
    if case is None or not case["id"].startswith("e57."):
        return found
    # the transformers that the release of 2026 pins cuts seconds per step to whole ones: 1.0 -> 1, 0.5 -> 0
    _, _, video = loaded(name)
    step, places = 2 * int(case["second_per_grid_ts"]), video.nonzero()[:, 0]
    found = found.clone()
    found[0, 0, video] = found[0, 0, places[0]] + step * (torch.arange(len(places)) // FRAME[name])
    text = torch.arange(found.shape[2] - int(places[-1]) - 1)
    found[:, 0, int(places[-1]) + 1 :] = found[:, 0, video].max() + 1 + text
    return found


def compressor(case: dict):
    """The authors' compressor of a case."""
    how, name = case["settings"], case["id"]
    if how is None:
        return None
    method, allocator = how["compression_method"], how.get("budget_allocation_method", "even")
    shared = {"tokens": how["max_input_length"], "compact_positions": how["pos_embed_reforge"]}
    if method == "pivotkv":
        return build("pivotkv", variant="released", **shared)
    if method == "vidlkv":
        choice = {"name": allocator, **({"beta": how["pyramid_beta"]} if allocator == "pyramid" else {})}
        scorer = {"name": "question", "relevant": how.get("prompt_compression", False)}
        kind = TextClockPivotKV if name.startswith("e57.") else PivotKV
        return kind(variant="released", scorer=scorer, allocator=choice, **shared)
    settings = {
        **shared,
        "scorer": {"name": "question", "most": how.get("max_guide_length")},
        "allocator": ALLOCATORS.get(allocator, allocator),
        "temporal": how["enable_temporal_adaptation"],
    }
    stale = ["text_scores"] if "asis" in name else []
    if not name.startswith("e5"):
        return build("flexreduc", variant="released", defects=stale, boost=how["temporal_adaptation_ratio"], **settings)
    defects = stale + ["half_video"] * ("allframes" not in name) + ["saturated_question"] * ("dropguide" not in name)
    defects += ["text_clock"] * name.startswith("e57.")
    return build("flexreduc", variant="released-2026", defects=defects, **settings)


def anchors(case: dict, embeds: Tensor, video: Tensor) -> Tensor | None:
    if case["dpselect"] is None:
        return None
    grid = FeatureGrid(embeds[video].unflatten(0, (-1, 2, 3)))
    select = DPSelect(keep=1.0, per="frame" if case["dpselect"]["patch_sync"] else "patch")
    anchor = torch.zeros_like(video)
    anchor[video] = select.compress(grid, select.allowed).anchor
    return anchor


def misaligned(case: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LLaVA-OneVision with DPSelect as the authors' code runs it.

    The newline is lost, the first token of text counts as video in its place, and the anchors of unpooled patches
    (16 a frame) are laid over the pooled ones (4 a frame) from the front.
    """
    model, embeds, video = loaded("llava_ov", case["yarn"])
    pixels = stored()["llava_ov.in.pixel_values_videos"][0]
    with torch.no_grad():
        patches = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    select = DPSelect(keep=1.0, per="frame" if case["dpselect"]["patch_sync"] else "patch")
    found = select.compress(FeatureGrid(patches[:, None]), select.allowed).anchor
    newline = int(video.nonzero()[-1])
    left = torch.arange(len(video)) != newline
    anchor = torch.zeros_like(video)
    anchor[video] = found[: int(video.sum())]
    anchor[newline + 1] = False
    return embeds[left], torch.arange(len(video) - 1)[None, None], video[:-1], anchor[left]


class Watched:
    """Notes what a compressor keeps of each chunk."""

    def __init__(self, compressor) -> None:
        self.kept: list[tuple[Chunk, list[Tensor]]] = []
        self._inner = compressor.kept
        compressor.kept = self

    def __call__(self, chunk: Chunk) -> list[Tensor]:
        rows = self._inner(chunk)
        self.kept.append((chunk, rows))
        return rows

    def equal(self, name: str, adaptive: bool) -> bool:
        """Whether the rows are those of the recorded top-k calls; a call over n tokens is about a layer's last n."""
        sizes, indices = stored()[f"{name}.sizes"].tolist(), stored()[f"{name}.indices"]
        calls = iter(list(zip(sizes, indices.split([k for _, k in sizes]), strict=True)))
        for chunk, rows in self.kept:
            if adaptive and not whole(chunk, rows):
                next(calls)  # over all layers at once
            for past, of_layer in zip(chunk.past, [] if adaptive and whole(chunk, rows) else rows, strict=False):
                (among, _), expected = next(calls)
                start = past + len(chunk) - among
                if not torch.equal(of_layer[of_layer >= start] - start, expected.long()):
                    return False
        return next(calls, None) is None


def whole(chunk: Chunk, rows: list[Tensor]) -> bool:
    """A chunk that is kept whole is not scored."""
    return all(len(of_layer) >= past + len(chunk) for past, of_layer in zip(chunk.past, rows, strict=True))


def settings_of(case: dict) -> dict:
    name = case["model"]
    # the authors' code for Qwen2-VL moves all axes of new tokens, since it edits positions in place
    return {
        "chunk_tokens": CHUNK[name],
        "frame_tokens": FRAME[name],
        "reply_axes": "all" if name == "qwen2vl" else "time",
    }


def read(case: dict, kv) -> PrefillOutput:
    name = case["model"]
    model, embeds, video = loaded(name, case["yarn"])
    stands, anchor = positions(name, case), None
    if name == "llava_ov" and case["dpselect"] is not None:
        kv.keep, kv.tokens = kv.tokens / len(embeds), None  # of the prompt's length before the newline is lost
        embeds, stands, video, anchor = misaligned(case)
    elif case["dpselect"] is not None:
        anchor = anchors(case, embeds, video)
    return prefill(
        model.model.language_model, model.lm_head, embeds, stands, video, kv, anchor=anchor, **settings_of(case)
    )


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{c['model']}-{c['id']}") for c in CASES])
def test_reading_and_writing_equal_the_authors(case: dict) -> None:
    name = f"{case['model']}.{case['id']}"
    kv = compressor(case)
    watched = Watched(kv) if kv is not None else None
    reading = read(case, kv)
    assert reading.keys_per_layer == case["lengths"]
    torch.testing.assert_close(reading.logits, stored()[f"{name}.prefill"], atol=1e-5, rtol=0)
    if watched is not None and f"{name}.sizes" in stored():
        adaptive = (
            case["settings"].get("budget_allocation_method") == "adakv"
            and "stdvid" in case["settings"]["compression_method"]
        )
        assert watched.equal(name, adaptive)
    written = Continuation(reading).generate(max_new_tokens=8, output_logits=True, return_dict_in_generate=True)
    assert written.sequences[0].tolist() == stored()[f"{name}.tokens"].tolist()
    torch.testing.assert_close(written.logits[-1], stored()[f"{name}.last"], atol=1e-5, rtol=0)
    stands_equal(name, reading)


def stands_equal(name: str, reading: PrefillOutput) -> None:
    """Positions are the recorded ones up to each layer's offset in time (one released model stores other ones)."""
    if f"{name}.positions" not in stored() or ".e57." in name:
        return
    lengths = reading.keys_per_layer  # with what was written
    for layer, expected in zip(
        reading.cache.layers, stored()[f"{name}.positions"].long().split(lengths, -1), strict=True
    ):
        ahead = layer.positions[:, 0] - expected
        assert (ahead[0] == ahead[0, -1]).all() and not ahead[1:].any()


@pytest.mark.parametrize("case", ["full_allframes", "even_uniform", "uniform_adakv"])
def test_the_default_equals_the_authors_without_their_defects(case: dict) -> None:
    model, embeds, video = loaded("qwen25vl")
    settings = {"allocator": "even"} if case == "even_uniform" else {}
    kv = build("flexreduc", tokens=50, temporal=case == "full_allframes", **settings)
    reading = prefill(
        model.model.language_model,
        model.lm_head,
        embeds,
        positions("qwen25vl"),
        video,
        kv,
        chunk_tokens=24,
        frame_tokens=6,
    )
    torch.testing.assert_close(reading.logits, stored()[f"qwen25vl.e50.{case}.prefill"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["qwen2vl", "qwen25vl", "llava_ov"])
@pytest.mark.parametrize("chunk", [None, 7])
def test_reading_in_chunks_without_a_compressor_is_the_plain_model(name: str, chunk: int | None) -> None:
    model, embeds, video = loaded(name)
    reading = prefill(model.model.language_model, model.lm_head, embeds, positions(name), video, chunk_tokens=chunk)
    torch.testing.assert_close(reading.logits, stored()[f"{name}.plain.logits"], atol=1e-5, rtol=0)
    assert Continuation(reading).generate(max_new_tokens=8)[0].tolist() == stored()[f"{name}.plain.tokens"].tolist()
