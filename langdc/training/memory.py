"""How much memory of a device a training phase takes, by closed form, and what would fit into less.

Counted per device: weights, gradients, optimizer state, what is kept from forward to backward ("activations"), logits,
grids of the batch, and what encoders need if they run in the step. Not counted: the device's own context (about 0.5 to
1 GiB), fragmentation, and what encoders need where they run before the first step. Letters: B rows, M length, h width,
A heads' width together, K keys' width, m feed-forward width; e bytes of a number.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from langdc.config import LoraConfig, PhaseConfig, StageConfig
from langdc.model import VideoModel

GIB = 2**30
NF4_BYTES = 0.516  # per weight: 4 bits, and scales that are quantized in turn (QLoRA, arXiv 2305.14314)
ENCODING = 8  # widths that an encoder layer holds at once per patch: its input, four in the feed-forward layer, a rest
BUCKET = 50_000_000  # numbers that ZeRO gathers before it sends them; as configs/deepspeed/ sets it


@dataclass(frozen=True)
class Layout:
    """How a phase is spread over devices. `zero`: 0 without DeepSpeed."""

    gpus: int = 1
    zero: int = 0
    offload: bool = False
    """Optimizer state, and with ZeRO-3 weights, wait in the machine's memory."""
    checkpointing: bool = False
    micro_batch: int = 1
    precision: str = "float32"
    attention: str | None = None
    online: bool = False
    """The encoders run in the step."""

    @property
    def half(self) -> bool:
        """Whether products are made of 16-bit numbers."""
        return self.precision != "float32"

    @property
    def name(self) -> str:
        """For tables."""
        zero = f"ZeRO-{self.zero}" if self.zero else "no ZeRO"
        return zero + (", offload" if self.offload else "") + (", checkpointing" if self.checkpointing else "")


def layout_of(config: StageConfig, phase: PhaseConfig, gpus: int) -> Layout:
    """The layout that a config asks for."""
    zero, offload = 0, False
    if config.deepspeed is not None:
        if not Path(config.deepspeed).is_file():
            raise ValueError(f"deepspeed: there is no file {config.deepspeed}. See configs/deepspeed/.")
        chosen = json.loads(Path(config.deepspeed).read_text()).get("zero_optimization", {})
        zero = int(chosen.get("stage", 0))
        offload = chosen.get("offload_optimizer", {}).get("device", "none") != "none"
    return Layout(
        gpus, zero, offload, config.gradient_checkpointing, phase.batch_size, config.precision, config.attention
    )


@dataclass(frozen=True)
class Rows:
    """What the trained language model reads at once, per sample: `rows` of at most `longest` tokens.

    `learned`: places with a target; `seen`: encoded encoder tokens of each stream that are projected, by its width.
    """

    rows: float
    longest: int
    learned: float
    seen: tuple[tuple[int, float], ...] = ()
    branched: bool = False


@dataclass(frozen=True)
class Weights:
    """Parameters of a model as memory sees them."""

    total: int
    trained: int
    bytes: int
    """Of all, as they lie in memory without DeepSpeed."""
    largest: int
    """Parameters of the largest block and of the largest single one, which ZeRO-3 gathers to compute."""
    can_be_cut: bool = True
    """Whether ZeRO-3 may share them out; it cannot where some are in 4 bits."""

    @classmethod
    def of(cls, model: nn.Module, quantized: nn.Module | None = None) -> "Weights":
        """Count a model, tied weights once. `quantized`: the part whose linear layers will be kept in 4 bits."""
        sizes = {id(p): p for p in model.parameters()}.values()
        stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
        blocks = [sum(p.numel() for p in block.parameters()) for stack in stacks for block in stack]
        linear = [m for m in quantized.modules() if type(m) is nn.Linear] if quantized is not None else []
        saved = sum(m.weight.numel() * (m.weight.element_size() - NF4_BYTES) for m in linear)
        return cls(
            total=sum(p.numel() for p in sizes),
            trained=sum(p.numel() for p in sizes if p.requires_grad),
            bytes=round(sum(p.numel() * p.element_size() for p in sizes) - saved),
            largest=2 * max(blocks, default=0) + max((p.numel() for p in sizes), default=0),
            can_be_cut=quantized is None,
        )


def kept_per_token(config: Any, size: int, trained: bool, lora: LoraConfig | None = None) -> float:
    """Bytes per token that one decoder layer (Qwen2, Llama, Phi-3) keeps for its backward pass.

    `size`: e, of activations; norms keep float32. A frozen linear layer keeps nothing of its input, a trained or
    adapted one keeps it, and an adapter with dropout a masked copy besides.
    """
    h, m = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or h // config.num_attention_heads
    a, k = head * config.num_attention_heads, head * config.num_key_value_heads
    norms = 2 * (h * 4 + (h * size if trained else 0))
    attention = size * (2 * a + 2 * k)
    feed_forward = size * 3 * m
    # the attention's output is what the next layer reads: the same tensor
    inputs = size * (2 * h + m) if trained or lora is not None else 0
    total = norms + attention + feed_forward + inputs
    if lora is None:
        return total
    masked = size * (3 * h + a + 2 * h + m) * (1 + 1 / size) if lora.dropout else 0
    return total + 7 * lora.rank * size + masked


def activations(
    config: Any, rows: float, longest: int, layout: Layout, trained: bool, lora: LoraConfig | None
) -> float:
    """Bytes that a language model keeps for B rows of M tokens."""
    size = 2 if layout.half else 4
    tokens = rows * longest
    layer = kept_per_token(config, size, trained, lora) * tokens
    if layout.attention == "eager":
        layer += rows * config.num_attention_heads * longest**2 * (size + 4)
    last = 2 * 4 * config.hidden_size * tokens  # the norm after all layers
    if not layout.checkpointing:
        return config.num_hidden_layers * layer + last
    return config.num_hidden_layers * config.hidden_size * size * tokens + layer + last


def projected(seen: tuple[tuple[int, float], ...], width: int, size: int) -> float:
    """Bytes of a sample's grids (float32, and joined once more) and of what two-layer projectors keep of them."""
    return sum(count * (8 * wide + (wide * size if size < 4 else 0) + 3 * width * size) for wide, count in seen)


def memory(model: VideoModel, phase: PhaseConfig, rows: Rows, weights: Weights, layout: Layout) -> dict[str, float]:
    """Bytes per device by what they are for, and their "total".

    `model`: as it is trained, adapters attached and the rest frozen; it may be on the meta device.
    """
    half, gpus = layout.half, max(layout.gpus, 1)
    size = 2 if half else 4
    shared = gpus if layout.zero >= 3 else 1
    if layout.zero == 0:
        found = {
            "weights": weights.bytes + (2 * weights.trained if half else 0),  # and their copies in 16 bits
            "gradients": 4.0 * weights.trained,
            "optimizer": 8.0 * weights.trained,
        }
    else:
        gathered = size * weights.largest if layout.zero >= 3 else 0
        kept = 0 if layout.offload and layout.zero >= 3 else size * weights.total / shared
        found = {
            "weights": kept + gathered,
            "gradients": size
            * (weights.trained / (gpus if layout.zero >= 2 else 1) + 2 * min(BUCKET, weights.trained)),
            "optimizer": 0.0 if layout.offload else 12.0 * weights.trained / gpus,
        }
    caption = phase.objective == "caption"
    reader: Any = model.captioner.captioner.language_model if caption else model.backbone.language_model
    lora = getattr(phase, "captioner_lora", None) if caption else phase.lora
    body = [(name, p) for name, p in reader.named_parameters() if "embed" not in name]
    trained = any(p.requires_grad and ".lora_" not in name for name, p in body)
    config = reader.config.get_text_config()
    batch = layout.micro_batch
    found["activations"] = activations(config, batch * rows.rows, rows.longest, layout, trained, lora)
    if rows.branched:
        found["activations"] += batch * rows.longest**2 * (size + 2)  # who may look at whom, made once
    found["grids"] = batch * projected(rows.seen, config.hidden_size, size)
    if layout.online:
        found["encoders"] = batch * max((count * ENCODING * wide * size for wide, count in rows.seen), default=0)
    found["logits"] = batch * rows.learned * config.vocab_size * (8 + size + (4 if half else 0))
    return {**found, "total": sum(found.values())}


def layouts(base: Layout) -> Iterator[Layout]:
    """What may be tried, the fastest first."""
    for zero, offload in ((0, False), (2, False), (3, False), (3, True)):
        if zero >= 2 and base.gpus == 1 and not offload:
            continue
        for checkpointing in (False, True):
            yield replace(base, zero=zero, offload=offload, checkpointing=checkpointing)


def largest_batch(
    model: VideoModel, phase: PhaseConfig, rows: Rows, weights: Weights, layout: Layout, budget: float
) -> int:
    """The largest micro-batch that fits into a device of so many bytes; 0 if none does."""

    def fits(batch: int) -> bool:
        return memory(model, phase, rows, weights, replace(layout, micro_batch=batch))["total"] <= budget

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= 4096 and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Choice:
    """A layout with the largest micro-batch that fits, and the accumulation that keeps the batch of the config."""

    layout: Layout
    largest: int
    micro_batch: int
    accumulation: int


def choices(
    model: VideoModel, phase: PhaseConfig, rows: Rows, weights: Weights, base: Layout, budget: float
) -> list[Choice]:
    """Every layout in which at least one sample fits, the fastest first."""
    found = []
    for layout in layouts(base):
        if layout.zero >= 3 and not weights.can_be_cut:
            continue
        largest = largest_batch(model, phase, rows, weights, layout, budget)
        if largest:
            wanted = phase.batch_size * phase.gradient_accumulation
            micro = next(size for size in range(min(largest, wanted), 0, -1) if wanted % size == 0)
            found.append(Choice(layout, largest, micro, wanted // micro))
    return found


def best(found: list[Choice], wanted: int) -> Choice | None:
    """The first that fits the config's micro-batch, else the one that fits most."""
    enough = (choice for choice in found if choice.micro_batch >= wanted)
    return next(enough, max(found, key=lambda choice: choice.micro_batch, default=None))
