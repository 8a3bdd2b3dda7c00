"""python benchmarks/costs.py [--frames 128] [--device cuda --dtype bfloat16] [--out docs/benchmarks.md]

What every training-free method takes by itself on a video of `--frames` x 196 tokens, as a share of the prefill of
Qwen2.5-VL-7B that it saves: FLOPs by closed form at the rate of a matrix product, measured before every row. "At least"
is the share that the products of its rule alone are. Layer compressors run between layers that do nothing; KV
compressors choose for four of 28 layers, counted seven times. Random features: seconds do not depend on what is kept.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLAttention,
    Qwen2_5_VLRotaryEmbedding,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from benchmarks.compressors import HEAD_WIDTH, HEADS, KEEP, KEY_HEADS, PLACES, PROMPT, clocked, video
from benchmarks.first_token import SIZES
from langdc.attention import NAME
from langdc.compressors import compressors
from langdc.flops import Counted, language_model_flops
from langdc.frameselectors import frameselectors
from langdc.interfaces import KVCompressor, LayerCompressor, Rows
from langdc.kvcompressors import kvcompressors
from langdc.layercompressors import layercompressors
from langdc.types import Chunk, Frames, Plan
from langdc.walk import Walk

CONFIG: Any = Qwen2_5_VLTextConfig(**SIZES)
SIDE, CHUNK_FRAMES, SOME_LAYERS = 14, 32, 4
LIMIT = 0.05
"""The share of what it saves that a method may take."""
MORE: dict[str, list[dict[str, Any]]] = {"divprune": [{"per": "frame"}], "dpselect": [{"per": "patch"}]}
"""Settings with which a method is measured a second time."""
LAYER_KEEP = {"holitom_inner": 0.8}
"""What layer compressors keep on average: half, but for one whose first layers leave less room."""
ENOUGH = 5.0
"""Seconds after which one run is not repeated."""
COLUMNS = ("method", "works", "keeps", "own s", "of the prefill", "of what it saves", "at least", "")


@dataclass(frozen=True)
class Cost:
    """One method: what it does `once`, then its `work`, `times` times; `saves`: FLOPs of the prefill."""

    method: str
    works: str
    keeps: str
    work: Callable[[], object]
    saves: float
    times: int = 1
    once: Callable[[], object] = lambda: None


def prefill_flops(tokens: int, cached: float = 0.0) -> float:
    """FLOPs of the whole model reading `tokens` after `cached` keys."""
    return language_model_flops(CONFIG, tokens, cached)


def budgeted(zoo: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The members that have a budget and no weights, each with its settings."""
    for name in zoo.names():
        settings = inspect.signature(zoo.get(name)).parameters
        if "keep" in settings and "width" not in settings:
            yield from ((name, given) for given in [{}, *MORE.get(name, [])])


def token_costs(frames: int, device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Compressors before the language model."""
    found = video(frames, PLACES, CONFIG.hidden_size, device, dtype)
    values = found.projected[0].values[:, 0].unflatten(1, (SIDE, SIDE))
    saliency = torch.rand(values.shape[:3], generator=torch.Generator().manual_seed(1)).to(device, dtype)
    features = replace(found, projected=(replace(found.projected[0], values=values, saliency=saliency),))
    saves = prefill_flops(frames * PLACES) - prefill_flops(int(KEEP * frames * PLACES))
    for name, settings in budgeted(compressors):
        method = compressors.build(name, keep=KEEP, **settings)
        label = ", ".join([name, *map(str, settings.values())])
        yield Cost(label, "before the LLM", f"{KEEP}", lambda method=method: method.one(features), saves)


class _Layers(nn.Module):
    """A language model whose layers do nothing but show random queries and keys; each can project for the next."""

    def __init__(self, rows: int, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = CONFIG
        self.rotary_emb = Qwen2_5_VLRotaryEmbedding(CONFIG).to(device)
        self.norm = nn.RMSNorm(CONFIG.hidden_size).to(device, dtype)
        config: Any = Qwen2_5_VLTextConfig(**{**SIZES, "attn_implementation": NAME})
        attention = Qwen2_5_VLAttention(config, 0).to(device, dtype).requires_grad_(False)
        shown = [torch.randn(1, heads, rows, HEAD_WIDTH, device=device, dtype=dtype) for heads in (HEADS, KEY_HEADS)]
        self.layers = [_Layer(number, shown, self.norm, attention) for number in range(CONFIG.num_hidden_layers)]


class _Layer:
    def __init__(self, number: int, shown: list[Tensor], norm: Any, attention: Any) -> None:
        self.number, self.shown, self.attention = number, shown, attention
        self.input_layernorm = self.post_attention_layernorm = norm

    def __call__(self, states: Tensor, observer: Any, **_: Any) -> Tensor:
        query, key = (part[:, :, : states.shape[1]] for part in self.shown)
        observer.before_attention(self.number, query, key, key)
        return states

    def self_attn(self, states: Tensor, observer: Any, **given: Any) -> tuple[Tensor]:
        """For the next layer's attention its projections; of this one, where rows leave halfway, what it shows."""
        if "past_key_values" not in given:
            return self.attention(states, observer=observer, **given)
        return (self.mlp(self(states, observer)),)

    def mlp(self, states: Tensor) -> Tensor:
        return states.new_zeros(1).expand_as(states)


def layer_costs(frames: int, device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Compressors between the layers, with what moving the rows takes."""
    shown = frames * PLACES
    length = shown + PROMPT
    model: Any = _Layers(length, device, dtype)
    index = torch.arange(length, device=device)
    states = video(frames, PLACES, CONFIG.hidden_size, device, dtype).projected[0].values.flatten(0, 2)
    states = torch.cat([states, states[:PROMPT]])
    places = torch.where(index < shown, index % PLACES, -1)
    sizes = CONFIG.num_hidden_layers, shown, PROMPT
    given = Rows(states, index, torch.where(index < shown, 0, -1), *sizes, in_frame=places)
    positions = index.expand(3, 1, -1)
    through: Any = SimpleNamespace(before_attention=lambda layer, *shown: shown)

    def read(method: LayerCompressor) -> Walk:
        held = [SimpleNamespace(keys=None, get_seq_length=lambda: 0) for _ in model.layers]
        cache: Any = SimpleNamespace(layers=held, narrow=lambda layer, places: None)
        walk = Walk(model, method, cache, through, None)
        walk.read(given, positions)
        return walk

    for name, settings in budgeted(layercompressors):
        keep = LAYER_KEEP.get(name, 0.5)
        method = layercompressors.build(name, keep=keep, **settings)
        calls = read(method).work
        took = sum(language_model_flops(CONFIG, new, past, 1, fed) * layers for new, past, layers, fed in calls)
        yield Cost(
            name,
            "LLM layers",
            f"{keep}",
            lambda method=method: read(method),
            prefill_flops(length) - took / len(model.layers),
        )


def kv_costs(frames: int, device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Compressors of the cache: what they observe and choose of all chunks, one of which is measured; of those that
    work in replies, what they choose for one token, which saves nothing of the prefill.
    """
    size, shown = CHUNK_FRAMES * PLACES, frames * PLACES
    starts = range(0, shown, size)
    dice = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, n, size, HEAD_WIDTH, generator=dice).to(device, dtype) for n in (HEADS, KEY_HEADS))
    embeds = torch.randn(shown + PROMPT, CONFIG.hidden_size, generator=dice).to(device, dtype)
    chunks = tuple(
        Chunk(slice(at, min(at + size, shown)), 0, torch.ones(min(size, shown - at), dtype=torch.bool), PLACES)
        for at in starts
    )
    plan = Plan(chunks, embeds, SOME_LAYERS, KEY_HEADS)
    past = tuple([0] * SOME_LAYERS)
    positions = torch.arange(len(chunks[0]), device=device).expand(3, 1, -1)

    def choose(method: KVCompressor) -> None:
        window = min(method.question_window, PROMPT)
        asking = query[:, :, :window] if window else query[:, :, : len(chunks[0])]
        for layer in range(SOME_LAYERS):
            method.observe(layer, asking, key[:, :, : len(chunks[0])], key[:, :, : len(chunks[0])])
        kept = method.kept(replace(chunks[0], past=past, question_window=window))
        for layer in range(len(kept)):
            method.positions(replace(chunks[0], past=past), layer, positions)

    lengths = [len(chunk) for chunk in chunks]
    whole, less = (
        sum(prefill_flops(n, share * sum(lengths[:i])) for i, n in enumerate(lengths)) for share in (1.0, KEEP)
    )
    held = torch.randn(1, KEY_HEADS, len(embeds) + 1, HEAD_WIDTH, generator=dice).to(device, dtype)

    def write(method: KVCompressor) -> None:
        for layer in range(SOME_LAYERS):
            method.step(layer, query[:, :, :1], held)

    for name, settings in budgeted(kvcompressors):
        if kvcompressors.get(name).decoding:
            method = kvcompressors.build(name, keep=0.5, **settings)  # a layer of the four reads all
            yield Cost(name, "replies, a token", "0.5", partial(write, method), 0.0, 1, partial(method.begin, plan))
            continue
        method = kvcompressors.build(name, keep=KEEP, chunk_frames=CHUNK_FRAMES, **settings)
        times = len(chunks) * CONFIG.num_hidden_layers // SOME_LAYERS
        work, once = partial(choose, method), partial(method.begin, plan)
        yield Cost(name, "KV cache", f"{KEEP}", work, whole - less, times, once)


def frame_costs(frames: int, device: str, dtype: torch.dtype) -> Iterator[Cost]:
    """Frame selectors that look: CLIP ViT-B/32 in float32, as they run it, of `frames` frames of 224 pixels."""
    towers: Any = CLIPModel(CLIPConfig()).eval()
    towers, processor = towers.to(device), CLIPImageProcessor()
    pixels = torch.randint(0, 256, (frames, 3, 224, 224), dtype=torch.uint8, device=device)
    given = Frames(pixels, torch.arange(frames) / 2)

    def scores(shown: Frames, question: str) -> Tensor:
        parts = [processor(images=list(some), return_tensors="pt")["pixel_values"].to(device) for some in
                 shown.pixels.split(64)]  # fmt: skip
        return torch.cat([towers.get_image_features(pixel_values=part).pooler_output[:, 0] for part in parts])

    few = int(KEEP * frames)
    saves = prefill_flops(frames * PLACES) - prefill_flops(few * PLACES)
    for name in frameselectors.names():
        if "scorer" in inspect.signature(frameselectors.get(name)).parameters:
            method = frameselectors.build(name, scorer=scores)
            yield Cost(name, "before encoding", f"{KEEP}", lambda method=method: method.select(given, "?", few), saves)


def rate(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of a product of the model's shape, the best of three."""
    one, other = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((1024, 3584), (3584, 3584)))
    torch.mm(one, other)  # not counted
    return 2 * one.numel() * other.shape[1] / min(clocked(lambda: torch.mm(one, other), device) for _ in range(3))


@torch.no_grad()
def rows(frames: int, device: str, dtype: torch.dtype, rates: list[float]) -> Iterator[list[str]]:
    """Lines of the table; the rates measured go into `rates`."""
    parts = (frame_costs, token_costs, layer_costs, kv_costs)
    for cost in chain.from_iterable(part(frames, device, dtype) for part in parts):
        first = clocked(cost.once, device)
        with Counted() as counted:
            seconds = clocked(cost.work, device)
        rates.append(rate(device, dtype))
        for _ in range(3 if seconds < ENOUGH else 0):
            first = min(first, clocked(cost.once, device))
            seconds = min(seconds, clocked(cost.work, device))
        seconds = first + cost.times * seconds
        line = [cost.method, cost.works, cost.keeps, f"{seconds:.2f}"]
        line += [f"{100 * seconds * rates[-1] / prefill_flops(frames * PLACES):.2f} %"]
        if cost.saves <= 0:  # the cache, where a video is one chunk
            yield [*line, "nothing saved", "-", ""]
            continue
        share, least = seconds * rates[-1] / cost.saves, cost.times * counted.total / cost.saves
        said = "" if share <= LIMIT else "its products" if least > LIMIT else "**above 5 %**"
        yield [*line, f"{100 * share:.2f} %", f"{100 * least:.2f} %", said]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    options = report.arguments(__doc__, [128]).parse_args(argv)
    dtype, rates = getattr(torch, options.dtype), list[float]()
    lines = (rows(frames, options.device, dtype, rates) for frames in options.frames)
    found = report.follow(chain.from_iterable(lines))
    head = (
        f"{report.command(__file__, argv)} on {report.machine(options.device)}, {options.dtype}; "
        f"{', '.join(map(str, options.frames))} frames x {PLACES} tokens. A prefill of "
        f"{prefill_flops(options.frames[0] * PLACES) / 1e12:.0f} TFLOP at {min(rates) / 1e9:.0f} to "
        f"{max(rates) / 1e9:.0f} GFLOP a second."
    )
    report.show(COLUMNS, found, head)
    if options.out is not None:
        title = f"What methods cost, {options.device}, {options.dtype}"
        report.write(options.out, title, head, COLUMNS, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
