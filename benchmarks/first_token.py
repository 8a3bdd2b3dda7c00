"""python benchmarks/first_token.py [--frames 256 1024 2048] [--device cuda --dtype bfloat16] [--out docs/benchmarks.md]

Time to the first token after the encoder, on the language model of Qwen2.5-VL-7B with random weights: the whole video,
the video read in chunks by AdaReTaKe with a budget of keys, and token compressors before it, whose own seconds are
given as a share of what they save. Peak memory counts the weights. Random weights say nothing about answers.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from langdc import compressors
from langdc.devices import peak_bytes, reset_peak, synchronize
from langdc.interfaces import KVCompressor
from langdc.kvcompressors import kvcompressors
from langdc.prefill import PrefillOutput, prefill
from langdc.types import FeatureGrid, VideoFeatures

SIZES = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
FRAMES_PER_STEP, HEIGHT, WIDTH = 2, 9, 16
"""A step of two frames of 448 x 252 pixels is 144 tokens."""
SYSTEM, QUESTION, CHUNK_FRAMES, KEEP = 15, 64, 32, 0.25
BEFORE = ("vidcom2", "dpselect", "dycoke", "evs", "visionzip", "fastvid", "holitom_outer")
COLUMNS = ("frames", "tokens", "how", "compress s", "first token s", "faster", "share of saving", "peak GiB", "keys")


class Model:
    """The language model and its head with random weights, and prompts of a video between text."""

    def __init__(self, layers: int, device: str, dtype: torch.dtype, **sizes: object) -> None:
        config = Qwen2_5_VLTextConfig(**{**SIZES, "num_hidden_layers": layers, **sizes})
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                self.text_model: PreTrainedModel = Qwen2_5_VLTextModel(config).eval().requires_grad_(False)
                self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False).requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
        self.device, self.dtype, self.width = device, dtype, int(config.hidden_size)

    def video(self, frames: int) -> VideoFeatures:
        """Features of a video that changes from step to step, in part."""
        steps = max(1, frames // FRAMES_PER_STEP)
        dice = torch.Generator(self.device).manual_seed(0)
        shape = (HEIGHT, WIDTH, self.width)
        still = torch.randn(1, *shape, generator=dice, device=self.device, dtype=self.dtype)
        values = torch.randn(steps, *shape, generator=dice, device=self.device, dtype=self.dtype)
        return VideoFeatures((FeatureGrid(values.add_(still)),), {}, torch.arange(steps) / 2)

    def read(self, tokens: Tensor, places: Tensor, steps: int, kv: KVCompressor | None = None) -> PrefillOutput:
        """Read a prompt with the video's `tokens` [N,D], which come from flat `places` [N]."""
        row, frame = places % (HEIGHT * WIDTH), HEIGHT * WIDTH
        stands = torch.stack([places // frame, row // WIDTH, row % WIDTH]) + SYSTEM
        text = torch.arange(SYSTEM, device=self.device).expand(3, -1)
        asks = SYSTEM + max(steps, WIDTH) + torch.arange(QUESTION, device=self.device).expand(3, -1)
        words = tokens.new_zeros(SYSTEM + QUESTION, self.width).normal_()
        video = torch.zeros(SYSTEM + len(tokens) + QUESTION, dtype=torch.bool, device=self.device)
        video[SYSTEM : SYSTEM + len(tokens)] = True
        return prefill(
            self.text_model,
            self.lm_head,
            torch.cat([words[:SYSTEM], tokens, words[SYSTEM:]]),
            torch.cat([text, stands, asks], 1)[:, None],
            video,
            kv,
            chunk_tokens=CHUNK_FRAMES * frame if kv is not None else None,
            frame_tokens=frame,
        )


def timed(work: Callable[[], PrefillOutput], device: str) -> tuple[float, float | None, list[int]]:
    """Seconds of one call after one that is not counted, peak GiB where the device tells, and keys per layer."""
    work()
    synchronize(device)
    reset_peak(torch.device(device))
    started = time.perf_counter()
    held = work().keys_per_layer
    synchronize(device)
    seconds = time.perf_counter() - started
    peak = peak_bytes(torch.device(device))
    return seconds, None if peak is None else peak / 2**30, held


@torch.no_grad()
def rows(model: Model, frames: int, budget: int) -> Iterator[list[str]]:
    """Lines of the table for one length: plain first, with which the others are compared."""
    video = model.video(frames)
    grid = video.projected[0]
    steps = len(grid.values)
    everything = torch.arange(grid.tokens, device=model.device)
    whole = grid.values.flatten(0, 2)
    plain, peak, held = timed(lambda: model.read(whole, everything, steps), model.device)
    yield _cells(frames, grid.tokens, "plain", None, plain, plain, peak, held)
    if budget < grid.tokens:
        kv = kvcompressors.build("flexreduc", tokens=budget, chunk_frames=CHUNK_FRAMES)
        seconds, peak, held = timed(lambda: model.read(whole, everything, steps, kv), model.device)
        yield _cells(frames, grid.tokens, f"flexreduc, {budget} tokens", None, seconds, plain, peak, held)
    for name in BEFORE:
        method = compressors.build(name, keep=KEEP)
        kept = method.one(video)
        synchronize(model.device)
        started = time.perf_counter()
        method.one(video)
        synchronize(model.device)
        spent = time.perf_counter() - started
        assert kept.source is not None  # these choose, or merge into places
        places = kept.source
        seconds, peak, held = timed(lambda k=kept, p=places: model.read(k.values, p, steps), model.device)
        yield _cells(frames, len(kept), f"{name}, keep {KEEP}", spent, seconds, plain, peak, held)


def _cells(
    frames: int,
    tokens: int,
    how: str,
    spent: float | None,
    seconds: float,
    plain: float,
    peak: float | None,
    held: list[int],
) -> list[str]:
    total = seconds + (spent or 0.0)
    saved = plain - seconds
    share = "-" if spent is None else f"{100 * spent / saved:.1f} %" if saved > 0 else "nothing saved"
    keys = f"{min(held)}" if min(held) == max(held) else f"{min(held)} to {max(held)}"
    cost = "-" if spent is None else f"{spent:.3f}"
    memory = "-" if peak is None else f"{peak:.1f}"
    return [str(frames), str(tokens), how, cost, f"{total:.3f}", f"{plain / total:.2f}x", share, memory, keys]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = report.arguments(__doc__, [256, 1024, 2048])
    parser.add_argument("--tokens", type=int, default=16000, help="AdaReTaKe's budget (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=28, help="fewer than 28 to try it on a small machine")
    options = parser.parse_args(argv)
    model = Model(options.layers, options.device, getattr(torch, options.dtype))
    found = report.follow(line for frames in options.frames for line in rows(model, frames, options.tokens))
    layers = "" if options.layers == 28 else f" Only {options.layers} of 28 layers."
    head = f"{report.command(__file__, argv)} on {report.machine(options.device)}, {options.dtype}."
    head = f"{head} Random weights.{layers}"
    report.show(COLUMNS, found, head)
    if options.out is not None:
        report.write(options.out, f"Time to the first token, {options.device}, {options.dtype}", head, COLUMNS, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
