"""What is checked on a card: in bfloat16 against float32, an error at most twice that of a plain implementation.

An error is the length of a difference of vectors over the length of the exact one. Where a method chooses tokens or
keys, rounding may turn nearly tied choices: then the shares of common choices are bounded instead.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from langdc import steps
from langdc.conformance import prompts
from langdc.conformance.candidates import Candidate
from langdc.conformance.test_compressor import _training
from langdc.conformance.test_kvcompressor import reply
from langdc.interfaces import KVCompressor, LayerCompressor, Rows
from langdc.model import VideoModel
from langdc.pipeline import OpenVideo, VideoLM
from langdc.types import Chunk, Context, VideoFeatures
from tests import stock, tiny
from tests.contract import grid

LOW = torch.bfloat16
ROUNDING = 2.0**-8
"""Largest relative error of one rounding to bfloat16."""
COMMON_TOKENS, COMMON_KEYS = 0.9, 0.8
STEPS = 6


def error(found: Tensor | Sequence[Tensor], exact: Tensor | Sequence[Tensor]) -> float:
    """The length of the difference over that of the exact values, all tensors as one vector."""
    one, other = (
        torch.cat(
            [part.detach().double().cpu().flatten() for part in ([given] if isinstance(given, Tensor) else given)]
        )
        for given in (found, exact)
    )
    return float((one - other).norm() / other.norm())


# ---- backbones


@torch.no_grad()
def backbone(name: str, device: torch.device) -> None:
    """Logits after a ragged batch of uncompressed videos, encoders included."""
    torch.manual_seed(0)
    model = VideoModel(grid.model_config(name, "identity")).eval().to(device)
    exact, low = _logits(model, name), deepcopy(model).to(LOW)
    found = error(_logits(low, name), exact)
    if name in grid.STOCK_POSITIONS:
        plain = error(_stock_logits(low, name), _stock_logits(model, name))
    else:  # no class of transformers: attention written out
        for part in low.modules():
            if isinstance(part, PreTrainedModel):
                part.set_attn_implementation("eager")
        plain = error(_logits(low, name), exact)
    assert 0 < found <= 2 * plain, f"{found:.4f} where the plain implementation has {plain:.4f}"


def _logits(model: VideoModel, name: str) -> Tensor:
    return model(grid.batch_of(model, grid.clips(name), learn=False)).logits


def _stock_logits(model: VideoModel, name: str) -> list[Tensor]:
    """Of transformers' own model, prompt by prompt."""
    found: Any = model.backbone
    inputs = [stock.stock_inputs(found, name, [video]) for video in grid.clips(name)]
    return [stock.stock_logits(found, {key: _placed(value, model) for key, value in each.items()}) for each in inputs]


def _placed(value: Any, model: VideoModel) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(model.device, model.backbone.language_model.dtype if value.is_floating_point() else None)


# ---- token compressors


def compressor(candidate: Candidate, device: torch.device) -> None:
    """Tokens and losses of a video, given captions where the method learns some."""
    exact, losses = _compressed(candidate, device, torch.float32)
    found, low_losses = _compressed(candidate, device, LOW)
    assert found.values.device.type == device.type and found.values.dtype == LOW
    for name, (total, _) in losses.items():
        assert abs(float(low_losses[name][0]) / float(total) - 1) < 8 * ROUNDING
    if exact.source is None:
        assert len(found) == len(exact)
        plain = error(_compressed(candidate, torch.device("cpu"), LOW)[0].values, exact.values)
        assert error(found.values, exact.values) <= min(2 * plain + ROUNDING, 16 * ROUNDING)
        return
    common = torch.isin(exact.source, found.source)
    assert float(common.double().mean()) >= COMMON_TOKENS and abs(len(found) / len(exact) - 1) <= 1 - COMMON_TOKENS
    shared = found.values[torch.isin(found.source, exact.source)]
    assert error(shared, exact.values[common]) <= 16 * ROUNDING


@torch.no_grad()
def _compressed(candidate: Candidate, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokens and losses in some type, of the same values, which bfloat16 can hold."""
    made = candidate.make().to(device, dtype)
    video = _as(candidate.video(dtype=LOW), device, dtype)
    found = made([video], replace(_training(made, [video]), training=False, generator=None))
    return found.tokens[0], found.losses


def _as(video: VideoFeatures, device: torch.device, dtype: torch.dtype) -> VideoFeatures:
    question = None if video.question is None else video.question.to(device, dtype)
    projected = tuple(each.to(device, dtype) for each in video.projected)
    encoder = {name: each.to(device, dtype) for name, each in video.encoder.items()}
    return replace(video, projected=projected, encoder=encoder, question=question)


# ---- reading


def reading(kind: str, device: torch.device, candidate: Candidate | None = None) -> None:
    """Logits after a prompt that is read in chunks, with the keys that the KV compressor keeps in float32."""
    if candidate is None:
        exact, found, given = _read(kind, device, torch.float32), _read(kind, device, LOW), None
    else:
        given = _Recorded(candidate.make())
        exact = _read(kind, device, torch.float32, given)
        own = _read(kind, device, LOW, candidate.make())
        assert _common(own.kept_rows, exact.kept_rows) >= COMMON_KEYS
        found = _read(kind, device, LOW, _Replayed(candidate.make(), given))
        assert found.keys_per_layer == exact.keys_per_layer
    plain = error(_plain(kind, device, LOW), _plain(kind, device, torch.float32))
    measured = error(found.logits, exact.logits)
    assert 0 < measured <= 2 * plain, f"{measured:.4f} where the plain model has {plain:.4f}"


def layers(candidate: Candidate, device: torch.device) -> None:
    """Most rows that go on after each layer are those of float32; logits after a prompt of which these go on."""
    exact, own = (_between(device, dtype, candidate.make(keep=0.75)) for dtype in (torch.float32, LOW))
    assert own.keys_per_layer == exact.keys_per_layer
    assert _common(own.kept_rows, exact.kept_rows) >= COMMON_KEYS
    found, wanted = (_between(device, dtype, _Given(exact.kept_rows)).logits for dtype in (LOW, torch.float32))
    plain = error(_plain("sections", device, LOW), _plain("sections", device, torch.float32))
    assert 0 < error(found, wanted) <= 2 * plain


def _between(device: torch.device, dtype: torch.dtype, compressor: LayerCompressor) -> Any:
    model, words = _placed_model("sections", device, dtype)
    return prompts.read("sections", None, words, model, layers=compressor, chunk_tokens=None, frame_tokens=None)


class _Given(LayerCompressor):
    """Lets the rows [n] go on that each layer has."""

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self.rows = rows

    def begin(self, rows: Rows) -> list[int]:
        return list(range(rows.layers - 1))

    def keep(self, layer: int, rows: Rows) -> Rows:
        return rows.take(torch.isin(rows.index, self.rows[layer + 1]).nonzero()[:, 0])


def _placed_model(kind: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model and a prompt of 30 frames, whose values bfloat16 can hold."""
    model, words = deepcopy(prompts.small(kind)), prompts.prompt(kind, frames=30)
    modules: Any = model.text_model, model.lm_head
    parts = [part.to(device, LOW).to(dtype) for part in modules]
    embeds = words.embeds.to(device, LOW).to(dtype)
    placed = replace(words, embeds=embeds, positions=words.positions.to(device), video=words.video.to(device))
    return replace(model, text_model=parts[0], lm_head=parts[1]), placed


def _read(kind: str, device: torch.device, dtype: torch.dtype, kv: Any = None) -> Any:
    model, words = _placed_model(kind, device, dtype)
    return prompts.read(kind, kv, words, model)


@torch.no_grad()
def _plain(kind: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    model, words = _placed_model(kind, device, dtype)
    positions = words.positions if len(words.positions) > 1 else words.positions[0]
    states = model.text_model(inputs_embeds=words.embeds[None], position_ids=positions).last_hidden_state
    return model.lm_head(states[:, -1])


def _common(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The share of exact rows that were found, over layers and key heads."""
    pairs = [
        (a, b)
        for one, other in zip(found, exact, strict=True)
        for a, b in zip(one.reshape(-1, one.shape[-1]), other.reshape(-1, other.shape[-1]), strict=True)
    ]
    return sum(float(torch.isin(b, a).double().mean()) for a, b in pairs) / len(pairs)


class _Recorded(KVCompressor):
    """Another one, and what it decides by chunk and layer."""

    def __init__(self, other: KVCompressor) -> None:
        self.other, self.rows, self.moved = other, {}, {}

    def __getattribute__(self, name: str) -> Any:
        if name in ("other", "rows", "moved", "kept", "positions", "__class__", "__dict__"):
            return super().__getattribute__(name)
        return getattr(self.other, name)

    def begin(self, plan: Any) -> None:
        raise AssertionError("the other one's is called")

    def kept(self, chunk: Chunk) -> list[Tensor]:
        self.rows[chunk.rows.start] = self.other.kept(chunk)
        return self.rows[chunk.rows.start]

    def positions(self, chunk: Chunk, layer: int, old: Tensor) -> Tensor:
        self.moved[chunk.rows.start, layer] = self.other.positions(chunk, layer, old)
        return self.moved[chunk.rows.start, layer]


class _Replayed(_Recorded):
    """Decides as was recorded."""

    def __init__(self, other: KVCompressor, recorded: _Recorded) -> None:
        self.other, self.rows, self.moved = other, recorded.rows, recorded.moved

    def kept(self, chunk: Chunk) -> list[Tensor]:
        return self.rows[chunk.rows.start]

    def positions(self, chunk: Chunk, layer: int, old: Tensor) -> Tensor:
        return self.moved[chunk.rows.start, layer]


def choosing(candidate: Candidate, device: torch.device) -> None:
    """A reply in float32 of which each token reads what it chose is that of a CPU; in bfloat16 it is finite."""
    found = [
        reply(_read("sections", where, torch.float32, candidate.make(keep=0.6)))
        for where in (device, torch.device("cpu"))
    ]
    assert found[0].argmax(1).tolist() == found[1].argmax(1).tolist()
    assert torch.isfinite(reply(_read("sections", device, LOW, candidate.make(keep=0.6)))).all()


# ---- training


def training_step(name: str, member: str, device: torch.device) -> None:
    """Losses and gradients of a step under autocast, and five steps that lower the loss."""
    model = grid.build(name, member)[0].to(device)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.normal_(std=0.02)  # zero at the start, so that lora_A would get no gradient
    batch = grid.batch_of(model, grid.clips(name))
    exact, gradients = _step(model, batch, enabled=False)
    found, low = _step(model, batch, enabled=True)
    assert abs(found / exact - 1) < 0.02
    assert F.cosine_similarity(low, gradients, dim=0) > 0.98
    fresh = grid.build(name, member)[0].to(device)
    with torch.autocast(device.type, LOW, cache_enabled=False):  # else one block has the weights of its first step
        history = grid.train(fresh, batch, 5, 1e-2)
    assert history[-1] < history[0]


def _step(model: VideoModel, batch: Any, enabled: bool) -> tuple[float, Tensor]:
    """The sum of all losses, and the gradients as one vector."""
    model.train()
    wanted = frozenset({"tokens", *model.compressor.losses})
    with torch.autocast(model.device.type, LOW, enabled=enabled):
        found = model(batch, Context(True, 0.3, torch.Generator().manual_seed(0), wanted=wanted))
        loss = F.cross_entropy(found.logits.float(), found.labels)
        loss = loss + sum(total / count for total, count in found.compressed.losses.values())
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    filled = [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True)]
    return float(loss.detach()), torch.cat([each.float().flatten() for each in filled])


# ---- writing


@torch.no_grad()
def captions(device: torch.device) -> None:
    """States of captions, which a card replays from one graph, beside those that the whole model has of them."""
    captioner = tiny.captioner(max_soft_tokens=STEPS).to(device)
    low = deepcopy(captioner).to(LOW)
    low.end = [-1]
    visual = [each.to(device, LOW) for each in tiny.visual([7, 3, 12])]
    first, again = low.write(visual), low.write(visual)  # the second one replays
    assert all(torch.equal(a, b) and len(a) == STEPS for a, b in zip(first.ids, again.ids, strict=True))
    if device.type == "cuda":
        graphs = steps._graphs[low.language_model.model]
        assert graphs and all(graphs.values())
    captioner.load_state_dict(low.state_dict())  # the rounded weights
    exact = captioner.read([each.float() for each in visual], again.ids).states
    plain = error(low.read(visual, again.ids).states, exact)
    measured = error(again.states, exact)
    assert 0 < measured <= 2 * plain, f"{measured:.4f} where reading has {plain:.4f}"


@torch.no_grad()
def replies(name: str, device: torch.device) -> None:
    """Replies in float32 to a batch of videos are those that a CPU writes one by one."""
    torch.manual_seed(0)
    model = VideoModel(grid.model_config(name, "identity")).eval()
    alone = [_answers(model, name, [number])[0] for number in range(3)]
    assert _answers(model.to(device), name, [0, 1, 2]) == alone


def _answers(model: VideoModel, name: str, numbers: list[int]) -> list[tuple[str, int | None]]:
    lm, videos = VideoLM(model), grid.clips(name)
    encoded = model.backbone.encode(videos, lm.compressor.needs)
    batch = [(OpenVideo(lm, None, encoded[i], videos[i].seconds), grid.QUESTIONS[i][0]) for i in numbers]
    return [(answer.text, answer.reply_tokens) for answer in lm.answer(batch, max_new_tokens=STEPS)]
