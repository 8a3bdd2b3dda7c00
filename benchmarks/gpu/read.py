"""First token of long videos on the language model of Qwen2.5-VL-7B: `benchmarks/first_token.py` with floors.

A floor is what the text model's calls take at the ceiling of products, with causal attention over the keys that each
call finds; what a method itself costs is not in it. PivotKV is read beside the lines of that benchmark.
"""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import first_token
from benchmarks.gpu.measure import Place, Row, costs
from langdc.flops import language_model_flops
from langdc.kvcompressors import kvcompressors
from langdc.prefill import PrefillOutput

FRAMES, BUDGET = (1024, 2048, 256), 16000
TINY = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}  # fmt: skip


class Model(first_token.Model):
    """Remembers the calls of its last prompt."""

    calls: tuple[tuple[int, float, int, int], ...] = ()

    def read(self, *given: Any, **named: Any) -> PrefillOutput:
        """As the class above."""
        output = super().read(*given, **named)
        self.calls = output.calls
        return output

    def flops(self) -> float:
        """Operations of the last prompt's calls, without the masked half of what a call reads of itself."""
        config = self.text_model.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        masked = 2.0 * config.num_hidden_layers * config.num_attention_heads * head
        done = sum(language_model_flops(config, new, past, 0) - masked * new**2 for new, past, *_ in self.calls)
        return done + language_model_flops(config, 0)


def rows(place: Place) -> Iterator[Row]:
    """The whole video and FlexReduc at 1,024 and 2,048 frames first, then the other methods, then 256 frames."""
    lengths, budget = ((16, 32), 600) if place.tiny else (FRAMES, BUDGET)
    model = Model(2 if place.tiny else 28, place.device, place.dtype, **(TINY if place.tiny else {}))
    tables = {frames: first_token.rows(model, frames, budget) for frames in lengths}
    for frames in lengths[:2]:
        for _ in range(2):
            yield _row(place, model, next(tables[frames]))
    for frames, table in tables.items():
        for cells in table:
            yield _row(place, model, cells)
        yield _pivotkv(place, model, frames, budget)
    yield from _profiles(model, lengths[-1], budget)


def _row(place: Place, model: Model, cells: list[str]) -> Row:
    floor = place.floor(model.flops())
    row = dict(zip(first_token.COLUMNS, cells, strict=True))
    reading = float(row["first token s"]) - (0.0 if row["compress s"] == "-" else float(row["compress s"]))
    return {"table": "first token", **row, "floor s": floor, "reading / floor": reading / floor}


def _everything(model: Model, frames: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    grid = model.video(frames).projected[0]
    return grid.values.flatten(0, 2), torch.arange(grid.tokens, device=model.device), len(grid.values)


@torch.no_grad()
def _pivotkv(place: Place, model: Model, frames: int, budget: int) -> Row:
    whole = _everything(model, frames)
    kv = kvcompressors.build("pivotkv", tokens=budget, chunk_frames=first_token.CHUNK_FRAMES)
    taken, peak, held = first_token.timed(lambda: model.read(*whole, kv), model.device)
    floor = place.floor(model.flops())
    return {
        "table": "first token", "frames": str(frames), "tokens": str(len(whole[0])), "how": f"pivotkv, {budget} tokens",
        "compress s": "-", "first token s": f"{taken:.3f}", "peak GiB": "-" if peak is None else f"{peak:.1f}",
        "keys": str(min(held)), "floor s": floor, "reading / floor": taken / floor,
    }  # fmt: skip


@torch.no_grad()
def _profiles(model: Model, frames: int, budget: int) -> Iterator[Row]:
    whole = _everything(model, frames)
    yield from costs(f"plain, {frames} frames", lambda: model.read(*whole), model.device)
    for name in ("flexreduc", "pivotkv"):
        kv = kvcompressors.build(name, tokens=budget, chunk_frames=first_token.CHUNK_FRAMES)
        yield from costs(f"{name}, {frames} frames", lambda kv=kv: model.read(*whole, kv), model.device)
