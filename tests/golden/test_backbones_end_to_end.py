"""Token compressors through a backbone: kept tokens, logits and greedy tokens of the authors' code."""

import json
from dataclasses import replace
from functools import cache
from math import ceil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from langdc import compressors, layercompressors
from langdc.backbones import backbones
from langdc.backbones.inputs import read_prompt
from langdc.backbones.stock import StockBackbone
from langdc.generate import Continuation
from langdc.interfaces import LayerCompressor
from langdc.prefill import PrefillOutput, prefill
from langdc.types import FeatureGrid, Prompt, Slot, VideoFeatures, VideoTokens

FOLDER = Path(__file__).parent
RECORD = json.loads((FOLDER / "e2e_backbones.json").read_text())
NAMES = {"holitom": "holitom_outer"}
VIDEO_ID = 291


@cache
def stored() -> dict[str, Tensor]:
    kv = load_file(FOLDER / "e2e_kv.safetensors")
    inputs = {name: tensor for name, tensor in kv.items() if name.startswith("qwen25vl.in.")}
    return {**inputs, **load_file(FOLDER / "e2e_backbones.safetensors")}


@cache
def opened(model: str) -> tuple[StockBackbone, VideoFeatures, Prompt]:
    name = {"qwen25vl": "qwen2_5_vl", "qwen3vl": "qwen3_vl"}[model]
    backbone = backbones.build(name, source=str(FOLDER / f"e2e_{model}"), dtype="float32")
    given = stored()
    pixels, shape = given[f"{model}.in.pixel_values_videos"], given[f"{model}.in.video_grid_thw"].long()
    (grid,) = backbone.read_patches(pixels, shape)
    features = VideoFeatures((grid,), {"video": grid}, torch.arange(2 * len(grid.values)).float())
    return backbone, features, prompt(model, given[f"{model}.in.input_ids"][0].long(), grid)


def prompt(model: str, ids: Tensor, grid: FeatureGrid) -> Prompt:
    """The recorded ids without their placeholders; a slot for each run of them."""
    steps, height, width = grid.values.shape[:3]
    shown = ids == VIDEO_ID
    starts = (shown & ~torch.cat([shown.new_zeros(1), shown[:-1]])).nonzero()[:, 0]
    places = [int((~shown[:start]).sum()) for start in starts]
    # the transformers that this release pins cuts half a second per step to none
    times = (0,) * steps
    segments = [None] if model == "qwen25vl" else range(steps)
    slots = [Slot(p, 0, s, times, height, width) for p, s in zip(places, segments, strict=True)]
    return Prompt(ids[~shown], slots=tuple(slots))


def read(model: str, tokens: VideoTokens, layers: LayerCompressor | None = None) -> PrefillOutput:
    backbone, features, asked = opened(model)
    steps = len(features.projected[0].values)
    return read_prompt(backbone, asked, [tokens], None, [len(features.seconds)], [steps], layers)


def check(reading: PrefillOutput, name: str) -> None:
    expected = stored()
    torch.testing.assert_close(reading.logits, expected[f"{name}.logits"][:1], atol=1e-5, rtol=0)
    written = Continuation(reading).generate(max_new_tokens=8, output_logits=True, return_dict_in_generate=True)
    assert written.sequences[0].tolist() == expected[f"{name}.tokens"].tolist()
    torch.testing.assert_close(written.logits[-1], expected[f"{name}.logits"][-1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", [pytest.param(c, id=c["id"]) for c in RECORD["cases"]])
def test_compressed_answers_equal_the_authors(case: dict) -> None:
    method = NAMES.get(case["method"], case["method"])
    squeeze = compressors.build(method, keep=case["ratio"], variant="released", frames_per_segment=1)
    tokens = squeeze.one(opened(case["model"])[1])
    assert tokens.source is not None
    assert tokens.source.tolist() == stored()[f"{case['id']}.keep"].tolist()
    check(read(case["model"], tokens), case["id"])


@pytest.mark.parametrize("case", [pytest.param(c, id=c["id"]) for c in RECORD["flashvid"]])
def test_flashvid_and_fastv_are_the_whole_of_flashvid(case: dict) -> None:
    """With the encoder's attention as recorded, which is not read of Qwen's encoders here."""
    features, (choice, depth, name) = opened("qwen25vl")[1], (case["token_selection_method"], case["layer"], case["id"])
    (grid,) = features.projected
    grid = replace(grid, saliency=stored()["qwen25vl.flashvid.attention"].view(grid.values.shape[:3]))
    settings = {"segments": case["min_segment_num"], "events": choice == "attn_div_v2"}
    settings["change"] = case.get("segment_threshold", 0.9)
    squeeze = compressors.build("flashvid", keep=1.25 * case["ratio"], variant="released", **settings)
    tokens = squeeze.one(replace(features, projected=(grid,)))
    assert tokens.source is not None and tokens.source.tolist() == stored()[f"{name}.keep"].tolist()
    share = ceil(case["inside"] * len(tokens.source)) / len(tokens.source)
    member = layercompressors.build("fastv", keep=(depth + (3 - depth) * share) / 3, layer=depth)
    reading = read("qwen25vl", tokens, member)
    assert reading.kept_rows[depth].tolist() == stored()[f"{name}.inside"].tolist()
    check(reading, name)


def test_qwen3_uncompressed_equals_the_record() -> None:
    backbone, features, asked = opened("qwen3vl")
    tokens = compressors.build("identity", frames_per_segment=1).one(features)
    stands = backbone.positions(asked, [tokens])
    assert torch.equal(stands, stored()["qwen3vl.plain.position_ids"].long())
    reading = read("qwen3vl", tokens)
    torch.testing.assert_close(reading.logits, stored()["qwen3vl.plain.logits"], atol=1e-5, rtol=0)
    assert Continuation(reading).generate(max_new_tokens=8)[0].tolist() == stored()["qwen3vl.plain.tokens"].tolist()


@pytest.mark.parametrize("model", ["qwen2vl", "qwen25vl", "llava_ov"])
def test_uncompressed_answers_are_those_of_the_transformers_the_models_were_made_with(model: str) -> None:
    backbone, features, asked = whole(model)
    tokens = backbone.append_newline_tokens(compressors.build("identity", frames_per_segment=1).one(features), features)
    if model != "llava_ov":
        assert torch.equal(backbone.positions(asked, [tokens]), every()[f"{model}.positions"].long())
    reading = read_prompt(backbone, asked, [tokens], None, [len(features.seconds)], [len(features.projected[0].values)])
    torch.testing.assert_close(reading.logits, every()[f"{model}.plain.logits"], atol=1e-5, rtol=0)
    assert Continuation(reading).generate(max_new_tokens=8)[0].tolist() == every()[f"{model}.plain.tokens"].tolist()


@cache
def every() -> dict[str, Tensor]:
    return {**load_file(FOLDER / "e2e_kv.safetensors"), **stored()}


@cache
def whole(model: str) -> tuple[StockBackbone, VideoFeatures, Prompt]:
    """A backbone with a recorded video and prompt, positions as the models were trained."""
    name = {"qwen2vl": "qwen2_vl", "qwen25vl": "qwen2_5_vl", "llava_ov": "llava_onevision"}[model]
    backbone, given = backbones.build(name, source=str(FOLDER / f"e2e_{model}"), dtype="float32"), every()
    ids, pixels = given[f"{model}.in.input_ids"][0].long(), given[f"{model}.in.pixel_values_videos"]
    if model == "llava_ov":
        encoded, frames = backbone.read_pixels([pixels[0]])[0], pixels.shape[1]
    else:
        (encoded,) = backbone.read_patches(pixels, given[f"{model}.in.video_grid_thw"].long())
        frames = 2 * len(encoded.values)
    # half a second per step, as recorded for Qwen2.5-VL
    features = backbone.project([{"video": encoded}], [torch.arange(frames) / 4], frozenset({"projected"}))[0]
    shown = ids == VIDEO_ID
    slot = backbone.slots(0, features, 1)[0]
    return backbone, features, Prompt(ids[~shown], slots=(replace(slot, position=int(shown.nonzero()[0])),))


@pytest.mark.parametrize("case", ["qwen2vl.dp_half_only", "qwen2vl.mallm_only"])
def test_fewer_moments_on_qwen2_equal_the_authors_where_their_layout_is_copied(case: str) -> None:
    """Their code orders tokens by slot, gives them the first slots' positions, and new text skips what was dropped."""
    model = case.split(".")[0]
    backbone, features, asked = whole(model)
    frames, places = len(features.projected[0].values), features.projected[0].values.shape[1:3].numel()
    if "dp_half" in case:
        found = compressors.build("dpselect", keep=0.5, per="patch", frames_per_segment=1).one(features)
        values = found.values[(found.source % places).argsort(stable=True)]
        values = values.unflatten(0, (places, -1)).transpose(0, 1).flatten(0, 1)
    else:
        kept = int(0.4 * frames) * places
        values = compressors.build("ma_lmm", tokens=kept, per="frame", frames_per_segment=1).one(features).values
    start, dropped = asked.slots[0].position, frames - len(values) // places
    embeds = backbone.splice([asked], [[VideoTokens(values, torch.zeros(len(values), dtype=torch.long))]])[0].embeds
    stands = every()[f"{model}.positions"].long()
    after = stands[:, :, start + frames * places :] - dropped
    stands = torch.cat([stands[:, :, : start + len(values)], after], 2)
    video = torch.zeros(len(embeds), dtype=torch.bool)
    reading = prefill(backbone.text_model, backbone.lm_head, embeds, stands, video)
    reading.next_position = reading.next_position + dropped
    check_to_the_end(reading, case)


@pytest.mark.parametrize("case", ["llava_ov.dp_half_only", "llava_ov.dp_half_sync_only"])
def test_fewer_moments_on_llava_equal_the_authors_where_their_layout_is_copied(case: str) -> None:
    """Their code selects patches before they are projected and pooled, loses the newline, and new text skips."""
    backbone, features, asked = whole("llava_ov")
    encoded = features.encoder["video"]
    per = "frame" if "sync" in case else "patch"
    places = encoded.values.shape[1:3].numel()
    select = compressors.build("dpselect", keep=0.5, per=per, frames_per_segment=1)
    found = select.one(VideoFeatures((encoded,), {}, features.seconds))
    frames = found.values[(found.source % places).argsort(stable=True)].unflatten(0, (places, -1)).transpose(0, 1)
    pooled = backbone.pool(backbone.model.model.multi_modal_projector(frames)).flatten(0, 2)
    embeds = backbone.splice([asked], [[VideoTokens(pooled, torch.zeros(len(pooled), dtype=torch.long))]])[0].embeds
    stands, video = torch.arange(len(embeds))[None, None], torch.zeros(len(embeds), dtype=torch.bool)
    reading = prefill(backbone.text_model, backbone.lm_head, embeds, stands, video)
    reading.next_position = torch.full((1, 1, 1), every()["llava_ov.in.input_ids"].shape[1])
    check_to_the_end(reading, case)


def check_to_the_end(reading: PrefillOutput, name: str) -> None:
    expected = stored()
    torch.testing.assert_close(reading.logits, expected[f"{name}.logits"][:1], atol=1e-5, rtol=0)
    written = Continuation(reading).generate(max_new_tokens=8)
    assert written[0].tolist() == expected[f"{name}.tokens"].tolist()
