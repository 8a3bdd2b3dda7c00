"""Token compressors against numbers from the authors' code (torch 2.13, float32, CPU)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from langdc.compressors import build
from langdc.compressors.base import Budget
from langdc.types import FeatureGrid, VideoFeatures

FOLDER = Path(__file__).parent


def cases(name: str, **wanted) -> list:
    found = json.loads((FOLDER / f"{name}.json").read_text())["cases"]
    return [pytest.param(c, id=c["id"]) for c in found if all(c.get(k) == v for k, v in wanted.items())]


@pytest.fixture(scope="module")
def numbers() -> dict[str, dict[str, Tensor]]:
    names = ("vidcom2", "dpselect", "baselines_qwen", "pruners", "cdpruner", "flashvid")
    return {name: load_file(FOLDER / f"{name}.safetensors") for name in names}


def one_row(values: Tensor) -> VideoFeatures:
    """Frames [T,P,C] as a video whose grid has one row."""
    return VideoFeatures((FeatureGrid(values[:, None]),), {}, torch.arange(len(values)))


@pytest.mark.parametrize("case", cases("vidcom2"))
def test_vidcom2(numbers, case) -> None:
    stored, name = numbers["vidcom2"], case["id"]
    features = stored[case["feature_tensor"]].unflatten(0, (case["frames"], -1))
    video, group = one_row(features), case["feature_tensor"].split(".")[0]
    method = build("vidcom2", keep=case["retention_ratio"], variant="released")
    to_video, to_frame = method.likeness(video.projected[0])
    torch.testing.assert_close(to_video, stored[f"{group}.video_score"], atol=1e-5, rtol=0)
    torch.testing.assert_close(to_frame, stored[f"{group}.frame_score"], atol=1e-5, rtol=0)
    budgets = method.shares(to_video, Budget(keep=case["retention_ratio"]))
    assert torch.equal(budgets, stored[f"{name}.budgets"])
    found = method([video]).tokens[0]
    assert torch.equal(found.source % features.shape[1], stored[f"{name}.local_indices"])
    assert torch.equal(found.values, features.flatten(0, 1)[found.source])


@pytest.mark.parametrize("case", cases("dpselect", kind="keyframe"))
def test_dpselect(numbers, case) -> None:
    """Their order is slot by slot, each patch with its own frames; ours is that of the video."""
    stored, name, places = numbers["dpselect"], case["id"], case["N"]
    memory = stored[f"{name.split('.')[0]}.memory"][0]
    method = build(
        "dpselect", tokens=case["tgt"] * places, window=case["window"], per="frame" if case["sync"] else "patch"
    )
    found = method([one_row(memory)]).tokens[0]
    frames = stored[f"{name}.frame_index"].reshape(case["tgt"], -1).expand(case["tgt"], places)
    expected = (frames * places + torch.arange(places)).flatten()
    order = expected.argsort()
    assert torch.equal(found.source, expected[order])
    assert torch.equal(found.anchor, stored[f"{name}.keypatches_mask"][order])


@pytest.mark.parametrize("case", cases("dpselect", kind="mallm"))
def test_ma_lmm(numbers, case) -> None:
    stored, name, places = numbers["dpselect"], case["id"], case["N"]
    memory = stored[f"{name.split('.')[0]}.memory"][0]
    per = "frame" if case["sync"] else "patch"
    method = build("ma_lmm", tokens=case["tgt"] * places, per=per, soft=not case["hard"])
    found = method([one_row(memory)]).tokens[0].values
    expected = stored[f"{name}.output"][0]
    if case["sync"]:
        torch.testing.assert_close(found.unflatten(0, (-1, places)), expected, atol=1e-5, rtol=0)
        return
    # ours are in order of the frame a slot begins with: compare as sets, patch by patch
    for rows in (found, expected.flatten(0, 1)):
        assert len(rows) == case["tgt"] * places
    apart = torch.cdist(expected.flatten(0, 1), found).min(1)
    assert apart.values.max() < 1e-4 and len(set(apart.indices.tolist())) == len(found)


NAMES = {"holitom": "holitom_outer"}
SETTINGS = {
    "visionzip_dominant_ratio": "dominant", "visionzip_k_neighbors": "neighbours", "DYCOKE_K": "merging_ratio",
    "fastvid_DySeg_c": "segments", "fastvid_DySeg_tau": "change", "fastvid_STPrune_d": "context",
    "fastvid_DTM_p": "stride", "fastvid_DTM_beta": "own", "HOLITOM_D": "context", "HOLITOM_T": "still",
    "HOLITOM_K": "neighbours", "HOLITOM_BETA": "own", "HOLITOM_MAX_WINDOW_SIZE": "max_window",
}  # fmt: skip


@pytest.mark.parametrize("case", cases("baselines_qwen"))
def test_others(numbers, case) -> None:
    stored, name = numbers["baselines_qwen"], case["id"]
    steps, rows, columns = case["grid_thw"]
    features = stored[f"{case['video']}.features"].unflatten(0, (steps, rows * columns // 4))
    settings = {SETTINGS[key]: value for key, value in case["env"].items()}
    budget = {} if "merging_ratio" in settings else {"keep": case["ratio"]}
    method = build(NAMES.get(case["method"], case["method"]), **budget, variant="released", **settings)
    found = method([one_row(features)]).tokens[0]
    assert torch.equal(found.source, stored[f"{name}.keep"])
    torch.testing.assert_close(found.values, stored[f"{name}.output"], atol=1e-5, rtol=0)


def grid_of(stored: dict[str, Tensor], case: dict) -> FeatureGrid:
    """The input of a case of `pruners`, in its type, with its side features."""
    values, *sides = (
        stored[f"{case['input']}.{name}"].to(getattr(torch, case["dtype"]))
        for name in (("values", "side") if case.get("side") else ("values",))
    )
    return FeatureGrid(values, None, tuple(sides))


VLLM = {"evs": "released", "vidcom2": "vllm"}
"""The variant of each method that keeps what vLLM keeps."""


@pytest.mark.parametrize("case", [case for method in VLLM for case in cases("pruners", method=method)])
def test_as_vllm(numbers, case) -> None:
    stored = numbers["pruners"]
    grid = grid_of(stored, case)
    method = build(case["method"], keep=1 - float(case["pruning_rate"]), variant=VLLM[case["method"]])
    found = method([VideoFeatures((grid,), {}, torch.arange(len(grid.values)))]).tokens[0]
    assert torch.equal(found.source, stored[case["id"]].long())


@pytest.mark.parametrize("case", cases("pruners", method="divprune"))
def test_divprune(numbers, case) -> None:
    """The tokens, and the order in which they are chosen; copies of kept ones again, as released."""
    stored = numbers["pruners"]
    grid, expected = grid_of(stored, case), stored[case["id"]].long()
    method = build("divprune", keep=float(case["subset_ratio"]), variant="released")
    assert torch.equal(method.picks(grid.values.flatten(0, 2)[None], len(expected))[0], expected)
    found = method([VideoFeatures((grid,), {}, torch.arange(len(grid.values)))]).tokens[0]
    assert torch.equal(found.source, expected.sort().values)


@pytest.mark.parametrize("case", cases("cdpruner"))
def test_cdpruner(numbers, case) -> None:
    """The released rule on features that are both the projected tokens and those that are compared with the words."""
    features, words, mask = (numbers["cdpruner"][f"{case['id']}.{part}"] for part in ("features", "words", "mask"))
    video = replace(one_row(features.float()), question=words.float())
    found = build("cdpruner", tokens=case["tokens"], variant="released")([video]).tokens[0]
    assert torch.equal(found.source, mask.flatten().nonzero()[:, 0])


CHOICES = {
    "alpha": "selected", "temporal_threshold": "alike", "min_segment_num": "segments", "segment_threshold": "change",
}  # fmt: skip


@pytest.mark.parametrize("case", cases("flashvid"))
def test_flashvid(numbers, case) -> None:
    """Rows of an index that is given twice come in any order."""
    parts = ("features", "attention", "index", "tokens")
    features, attention, index, tokens = (numbers["flashvid"][f"{case['id']}.{part}"] for part in parts)
    settings = {CHOICES[name]: value for name, value in case["settings"].items() if name in CHOICES}
    settings["events"] = case["settings"]["token_selection_method"] == "attn_div_v2"
    grid = FeatureGrid(features.float()[:, None], attention.float()[:, None])
    video = VideoFeatures((grid,), {}, torch.arange(len(features)))
    found = build("flashvid", keep=case["ratio"], variant="released", **settings)([video]).tokens[0]
    assert found.source.tolist() == index.tolist()
    assert (found.source.diff() == 0).sum() == case["repeated"]
    rows = [(1000 * index.float() + values[:, 0]).argsort() for values in (found.values, tokens)]
    torch.testing.assert_close(found.values[rows[0], ::4], tokens[rows[1]], atol=1e-5, rtol=0)
