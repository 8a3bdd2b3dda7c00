"""FrameFusion against its authors' code: its rule call by call, and what two tiny models read and write with it.

Recorded of the rule are states [n,D], what was added to them between two calls, and attention [h,q,n] of the last rows.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from langdc.generate import Continuation
from langdc.interfaces import Rows
from langdc.layercompressors import build
from langdc.prefill import prefill
from tests.golden.test_kv_end_to_end import FRAME, loaded, positions

FOLDER = Path(__file__).parent
CASES = json.loads((FOLDER / "framefusion.json").read_text())["cases"]


@pytest.fixture(scope="module")
def numbers() -> dict[str, Tensor]:
    return load_file(FOLDER / "framefusion.safetensors")


def cases(*kinds: str) -> list:
    return [pytest.param(case, id=f"{case['kind']}-{case['id']}") for case in CASES if case["kind"] in kinds]


def member(case: dict, asking: int):
    settings = {"keep": case["cost"], "similarity": case["similarity"], "least": case["ratio"], "asking": asking}
    return build("framefusion", variant="released", **settings)


@pytest.mark.parametrize("case", cases("rule"))
def test_rule(numbers, case) -> None:
    before, frames, places, after = case["shape"]
    shown = frames * places
    states, drift, attention = (
        numbers[f"rule.{case['id'].split('.')[0]}.{part}"].float() for part in ("states", "drift", "attention")
    )
    in_frame = torch.full([len(states)], -1)
    in_frame[before : before + shown] = torch.arange(shown) % places
    rows = Rows(states, torch.arange(len(states)), in_frame.clamp(max=0), 28, shown, after, in_frame=in_frame)
    compressor, calls = member(case, case["asking"]), []
    sites = compressor.begin(rows)

    def call() -> None:
        nonlocal rows
        for layer in range(-1, 27):
            if layer not in sites:
                return
            if layer >= 0:
                rows = replace(rows, states=rows.states + 0.4 * drift[rows.index])
            rows = compressor.keep(layer, replace(rows, attention=attention.mean(0)[:, rows.index]))
            calls.append(len(rows.index))

    if case["error"]:
        with pytest.raises(ValueError, match="more than the budget"):
            call()
    else:
        call()
        assert rows.index.tolist() == numbers[f"rule.{case['id']}.rows"].tolist()
        torch.testing.assert_close(rows.states, numbers[f"rule.{case['id']}.states"], atol=1e-5, rtol=0)
    assert calls == case["calls"]


@pytest.mark.parametrize("case", cases("qwen2vl", "llava_ov"))
def test_reading_and_writing(numbers, case) -> None:
    kind, name = case["kind"], f"{case['kind']}.{case['id']}"
    model, embeds, video = loaded(kind)
    if kind == "llava_ov":  # the token behind the last frame was text
        video = video & (video.cumsum(0) < video.sum())
    layers = member(case, 4 if kind == "qwen2vl" else 1)
    given = (embeds, positions(kind), video)
    reading = prefill(model.model.language_model, model.lm_head, *given, layers=layers, frame_tokens=FRAME[kind])
    assert reading.keys_per_layer == case["lengths"]
    torch.testing.assert_close(reading.logits, numbers[f"{name}.prefill"], atol=1e-5, rtol=0)
    written = Continuation(reading).generate(
        max_new_tokens=8, eos_token_id=[], pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    assert written.sequences[0].tolist() == numbers[f"{name}.tokens"].tolist()
    torch.testing.assert_close(written.logits[-1], numbers[f"{name}.last"], atol=1e-5, rtol=0)
