"""Layer and token compressors through a language model: rows kept, and logits after the prompt, of the authors' models.

Weights and prompts come from numpy's `RandomState`, whose numbers never change. Where a member differs from the release
on purpose, the test has the release's habit in its place, so that nothing else differs.
Letters: n rows, D width, E head width.
"""

import json
from functools import cache
from itertools import count
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from langdc import attention, compressors
from langdc.interfaces import LayerCompressor, Rows
from langdc.layercompressors import build, sparsevlm
from langdc.layercompressors.base import going_on
from langdc.prefill import PrefillOutput, prefill
from langdc.types import FeatureGrid, VideoFeatures

FOLDER = Path(__file__).parent
CASES = json.loads((FOLDER / "e2e_models.json").read_text())
WIDTH, VOCABULARY = 32, 48


@cache
def stored() -> dict[str, Tensor]:
    return load_file(FOLDER / "e2e_models.safetensors")


def cases(*methods: str) -> list:
    return [pytest.param(name, id=name) for name, case in CASES.items() if case["method"] in methods]


def fill(modules: tuple[nn.Module, ...], seed: int) -> None:
    """Weights as the authors' models had them."""
    draw = np.random.RandomState(seed)
    for module in modules:
        for name, weight in sorted(module.named_parameters()):
            noise = torch.from_numpy(draw.standard_normal(tuple(weight.shape)).astype("float32"))
            if weight.ndim == 1:
                noise = 0.1 * noise + float("norm" in name)
            elif "embed_tokens" not in name:
                noise = noise * weight.shape[1] ** -0.5
            weight.data.copy_(noise)


MODELS = {
    "dart": (Qwen2VLTextModel, Qwen2VLTextConfig),
    "flashvid": (Qwen2Model, Qwen2Config),
    "holitom": (Qwen2Model, Qwen2Config),
    "holitom_inner": (Qwen2Model, Qwen2Config),
}


def model(case: dict) -> tuple[nn.Module, nn.Module]:
    kind, config = MODELS.get(case["method"], (LlamaModel, LlamaConfig))
    rotary = {"rope_type": "default", "rope_theta": 1e4}
    if "grid" in case:
        rotary["mrope_section"] = [1, 1, 2]
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": case["layers"],
        "num_attention_heads": 4,
        "num_key_value_heads": case.get("key_heads", 2),
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rotary,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    text, head = kind(config(**sizes)).eval(), nn.Linear(WIDTH, VOCABULARY, bias=False)
    fill((text, head), case["weights"])
    return text, head


def prompt(name: str) -> Tensor:
    """Embeddings [n,D]."""
    noise = np.random.RandomState(CASES[name]["prompt"]).standard_normal((sum(CASES[name]["shape"]), WIDTH))
    return torch.from_numpy(noise.astype("float32"))


def read(name: str, member: LayerCompressor, renumbered: bool = False) -> PrefillOutput:
    case = CASES[name]
    before, shown, after = case["shape"]
    length = before + shown + after
    video = torch.zeros(length, dtype=torch.bool)
    video[before : before + shown] = True
    positions = torch.arange(length)[None]
    if "grid" in case:
        height, width = case["grid"]
        place = torch.arange(shown)
        inside = before + torch.stack([place // (height * width), place // width % height, place % width])
        asked = int(inside.max()) + 1 + torch.arange(after)
        positions = torch.cat([torch.arange(before).expand(3, -1), inside, asked.expand(3, -1)], 1)
    text, head = model(case)
    if renumbered:
        turn = text.rotary_emb.forward
        text.rotary_emb.forward = lambda *given: tuple(map(Renumbered, turn(*given)))
    return prefill(text, head, prompt(name), positions[:, None], video, layers=member)


class Renumbered:
    """Rotations of rows [1,n,E]; of those that go on, as if they were the first ones."""

    def __init__(self, rotations: Tensor) -> None:
        self.rotations = rotations

    def __getitem__(self, key: tuple[slice, Tensor]) -> "Renumbered":
        return Renumbered(self.rotations[:, : len(key[1])])

    def unsqueeze(self, axis: int) -> Tensor:
        return self.rotations.unsqueeze(axis)


def mean_of(case: dict, stages: dict[int, int]) -> float:
    """The `keep` that has `stages`: from which layer on, how many rows of the video are read."""
    (_, shown, _), last = case["shape"], case["layers"]
    first = sorted(stages)
    counts = [stages[layer] * (stop - layer) for layer, stop in zip(first, [*first[1:], last], strict=True)]
    return (first[0] * shown + sum(counts)) / (last * shown)


def check(found: PrefillOutput, name: str, layers: list[int]) -> None:
    for number, layer in enumerate(layers):
        assert found.kept_rows[layer].tolist() == stored()[f"{name}.kept{number}"].tolist()
    torch.testing.assert_close(found.logits, stored()[f"{name}.logits"], atol=1e-5, rtol=0)


def one_layer(name: str, count: int) -> dict:
    """The settings of a member that drops rows once and keeps `count` of the video."""
    layer = CASES[name]["settings"]["layer"]
    return {"keep": mean_of(CASES[name], {layer: count}), "layer": layer}


@pytest.mark.parametrize("name", cases("fastv"))
def test_fastv(name: str) -> None:
    case = CASES[name]
    settings = one_layer(name, round(case["shape"][1] * (1 - case["settings"]["r"])))
    check(read(name, build("fastv", **settings)), name, [settings["layer"]])


@pytest.mark.parametrize("name", cases("flashvid"))
def test_fastv_is_what_flashvid_does_inside_the_language_model(name: str) -> None:
    case = CASES[name]
    settings = one_layer(name, ceil(case["shape"][1] * case["settings"]["r"]))
    check(read(name, build("fastv", **settings)), name, [settings["layer"]])


def in_both_directions(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one layer attend so, as HoliTom's release does in the layer before it drops rows."""
    causal, layer = attention._causal_attention, count()

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, hidden=None) -> Tensor:
        if next(layer) != which:
            return causal(query, key, value, scale, hidden)
        return nn.functional.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=True)

    monkeypatch.setattr(attention, "_causal_attention", attend)


@pytest.mark.parametrize("name", cases("holitom_inner"))
def test_holitom_inner(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = one_layer(name, round(CASES[name]["shape"][1] * (1 - CASES[name]["settings"]["r"])))
    in_both_directions(settings["layer"] - 1, monkeypatch)
    check(read(name, build("holitom_inner", **settings)), name, [settings["layer"]])


@pytest.mark.parametrize("name", cases("holitom"))
def test_holitom_outside_and_inside_the_language_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens' lengths stand for the encoder's attention."""
    case, embeds = CASES[name], prompt(name)
    (before, shown, _), frames, how = case["shape"], case["frames"], case["settings"]
    values = embeds[before : before + shown].unflatten(0, (frames, 1, -1)).clone()
    scene = (torch.arange(frames) >= frames // 2) * (frames // 2)
    values[:, :, ::2] = 0.3 * values[:, :, ::2] + values[scene][:, :, ::2]
    outer = compressors.build("holitom_outer", keep=how["keep"], variant="released")
    found = outer([VideoFeatures((FeatureGrid(values),), {}, torch.arange(frames))]).tokens[0].values
    assert len(found) == case["read"]
    embeds = torch.cat([embeds[:before], found, embeds[before + shown :]])
    video = torch.zeros(len(embeds), dtype=torch.bool)
    video[before : before + len(found)] = True
    left, layers, layer = round(len(found) * (1 - how["r"])), case["layers"], how["layer"]
    share = (layer * len(found) + (layers - layer) * left) / (layers * len(found))
    in_both_directions(layer - 1, monkeypatch)
    positions, inner = torch.arange(len(embeds))[None, None], build("holitom_inner", keep=share, layer=layer)
    check(prefill(*model(case), embeds, positions, video, layers=inner), name, [layer])


@pytest.mark.parametrize("name", cases("dart"))
def test_dart(name: str) -> None:
    case = CASES[name]
    settings, (own, asked) = case["settings"], case["settings"]["pivots"]
    count = own + (own + asked) * int(case["shape"][1] * (1 - settings["r"]) / (own + asked))
    member = build("dart", variant="released", pivots=own, **one_layer(name, count))
    check(read(name, member), name, [settings["layer"]])


@pytest.mark.parametrize("name", cases("pyramiddrop"))
def test_pyramiddrop(name: str) -> None:
    """With positions numbered anew at every stage, as the release has them."""
    case = CASES[name]
    at, shown = case["settings"]["at"], case["shape"][1]
    member = build("pyramiddrop", keep=0.9, at=tuple(layer / case["layers"] for layer in at))
    member.counts = lambda rows: [int(shown * share) for share in case["settings"]["ratios"]]
    check(read(name, member, renumbered=True), name, at)


def behind(rows: Rows, video: Tensor, kept: int) -> Rows:
    """The rows that go on, with the merged ones behind the `kept` first of `video`."""
    found, order = going_on(rows, video), torch.cat([video[:kept].sort().values, video[kept:]])
    found.states[found.video] = rows.states[order]
    return found


@pytest.mark.parametrize("name", cases("sparsevlm"))
def test_sparsevlm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With merged rows behind the others, and positions numbered anew at every stage, as the release has them."""
    case, after = CASES[name], (2, 6, 15)
    stages, chosen = case["settings"]["stages"], []

    def noted(rows: Rows, video: Tensor) -> Rows:
        stage = stages[len(chosen)]
        chosen.append(torch.cat([(rows.video_id < 0).nonzero()[:, 0], video[:stage]]).sort().values.tolist())
        return behind(rows, video, stage)

    monkeypatch.setattr(sparsevlm, "going_on", noted)
    found = read(name, build("sparsevlm", stages=tuple(stages), after=after), renumbered=True)
    assert chosen == [stored()[f"{name}.kept{stage}"].tolist() for stage in range(3)]
    torch.testing.assert_close(found.logits, stored()[f"{name}.logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", cases("divprune", "cdpruner"))
def test_token_compressors(name: str) -> None:
    """CDPruner's words are the question, as they are here."""
    case, embeds = CASES[name], prompt(name)
    before, shown, after = case["shape"]
    parts = embeds[:before], embeds[before : before + shown], embeds[before + shown :]
    features = FeatureGrid(parts[1].unflatten(0, (case["frames"], 1, -1)))
    video = VideoFeatures((features,), {}, torch.arange(case["frames"]), question=parts[2])
    found = compressors.build(case["method"], variant="released", **case["settings"])([video]).tokens[0]
    rows = [torch.arange(before), before + found.source, before + shown + torch.arange(after)]
    assert torch.equal(torch.cat(rows), stored()[f"{name}.kept0"].long())
    embeds = torch.cat([parts[0], found.values, parts[2]])
    nothing = torch.zeros(len(embeds), dtype=torch.bool)
    reading = prefill(*model(case), embeds, torch.arange(len(embeds))[None, None], nothing)
    torch.testing.assert_close(reading.logits, stored()[f"{name}.logits"], atol=1e-5, rtol=0)
