"""python benchmarks/paper_flops.py [--text 90 --reply 8] [--out docs/flops.md]

What a question costs in the settings of LangDC's paper, by our closed form, beside the paper's figures: its table 2 and
the ablation of table 6 (arXiv 2509.00969). From sizes alone; nothing is loaded or run. A second table counts in other
ways, one at a time, to see which of them could explain a difference. The paper tells tokens, not texts: `--text` is how
many text tokens a prompt has beside the video's, `--reply` how many tokens an answer.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Phi3Config, PretrainedConfig, Qwen2Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from langdc.decode import predictions
from langdc.encoders.image import ImageEncoder
from langdc.encoders.video import VideoEncoder
from langdc.flops import Counted, language_model_flops, work_flops
from langdc.projectors import build_projector
from langdc.types import Frames, LanguageWork

FRAMES, SEGMENTS = 16, 4  # the paper's table B4
MOST = 128  # caption tokens of a segment, ditto
CAPTION = 59
"""Caption tokens of a segment: 236 of a video on average (table 6)."""
CAPTION_TEXT = 47
"""Text tokens of the captioner's prompt; a comment in the authors' arch.py has 879 in all, 832 of them visual."""
SIDES = {"pool 2x2": (12, 8), "pool 4x4": (6, 4), "pool 8x8": (3, 2), "none": (0, 0)}
SEEN = (12, 8)
"""The captioner's sides of the image and video grids of a frame."""

# config.json of openai/clip-vit-large-patch14-336, microsoft/Phi-3-mini-4k-instruct and Qwen/Qwen2.5-*-Instruct;
# InternVideo2-1B are the defaults of InternVideo2Config.
CLIP = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip


def _qwen(width: int, layers: int, heads: int, mlp: int) -> Qwen2Config:
    return Qwen2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        intermediate_size=mlp,
        vocab_size=151936,
    )


MODELS: dict[str, PretrainedConfig] = {
    "Phi-3-mini": Phi3Config(
        hidden_size=3072,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        intermediate_size=8192,
        vocab_size=32064,
    ),
    "Qwen2.5-3B": _qwen(2048, 36, 16, 11008),
    "Qwen2.5-1.5B": _qwen(1536, 28, 12, 8960),
    "Qwen2.5-0.5B": _qwen(896, 24, 14, 4864),
}


@dataclass(frozen=True)
class Setting:
    """A row of the paper: the language model, the base compressor, whether segments are captioned, and its TFLOPs."""

    name: str
    model: str
    base: str
    captions: bool
    paper: float

    @property
    def tokens(self) -> int:
        """Video tokens that the language model reads."""
        image, video = SIDES[self.base]
        return FRAMES * (image**2 + video**2) + self.captions * SEGMENTS * CAPTION


SETTINGS = (
    Setting("VideoGPT+", "Phi-3-mini", "pool 2x2", False, 49.85),
    Setting("LangDC", "Qwen2.5-3B", "pool 4x4", True, 25.15),
    Setting("captions alone", "Qwen2.5-1.5B", "none", True, 18.24),
    Setting("pool 8x8", "Qwen2.5-1.5B", "pool 8x8", False, 16.06),
    Setting("pool 8x8 and captions", "Qwen2.5-1.5B", "pool 8x8", True, 19.51),
    Setting("pool 4x4", "Qwen2.5-1.5B", "pool 4x4", False, 17.57),
    Setting("pool 4x4 and captions", "Qwen2.5-1.5B", "pool 4x4", True, 21.38),
)


@dataclass(frozen=True)
class Counting:
    """How it is counted; the defaults are ours."""

    text: int = 90
    reply: int = 8
    caption: int = CAPTION
    logits: bool = False
    """Logits at every place of a prompt, as transformers 4.41 computes them, not at its last alone."""
    attention: bool = True
    """Whether queries times keys and weights times values count."""
    blocks: bool = False
    """Every block of both encoders, not only those up to the layer that is read."""
    encodings: int = 1
    """How often the video encoder runs where there are captions."""
    encoders: bool = True
    replies: bool = True
    """Whether what follows the first token counts."""
    per_product: float = 2.0
    """What a multiply-add counts."""

    def read(self, config: PretrainedConfig, new: int, past: int = 0) -> float:
        """Reading `new` tokens after `past` others, the head at the end."""
        total = language_model_flops(config, new, past, predictions=new if self.logits else 1)
        if not self.attention:
            total -= config.num_hidden_layers * 4 * new * config.hidden_size * (new + past)
        return total

    def write(self, config: PretrainedConfig, past: int, steps: int) -> float:
        """`steps` tokens one by one."""
        return sum(self.read(config, 1, past + done) for done in range(steps)) if self.replies else 0.0


@cache
def encoders(blocks: bool) -> tuple[ImageEncoder, VideoEncoder]:
    """CLIP and InternVideo2 without weights; with all `blocks`, or up to the layer that is read."""
    with torch.device("meta"):
        image = ImageEncoder({"init": "random", "config": CLIP}, layer=-1 if blocks else -2)
        return image, VideoEncoder({"init": "random", "config": {"skip_last": 0} if blocks else {}})


def encode(counting: Counting, captions: bool) -> float:
    """Both encoders over all frames."""
    if not counting.encoders:
        return 0.0
    image, video = encoded(counting.blocks, counting.attention)
    return image + video * (counting.encodings if captions else 1)


@cache
def encoded(blocks: bool, attention: bool) -> list[float]:
    """Each encoder over all frames, with or without the products of attention."""
    frames = Frames(torch.empty(FRAMES, 3, 336, 336, dtype=torch.uint8, device="meta"), torch.arange(FRAMES))
    found = []
    for encoder in encoders(blocks):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder([frames])
        kinds = counter.get_flop_counts()["Global"]  # batched products are those of attention
        found.append(counter.get_total_flops() - (0 if attention else kinds[torch.ops.aten.bmm]))
    return found


def project(width: int) -> float:
    """Two projectors, over every patch of the image and the video encoder."""
    with torch.device("meta"), Counted() as counted:
        for encoder in encoders(blocks=False):
            rows = torch.empty(FRAMES * encoder.side**2, encoder.width)
            build_projector("mlp2x_gelu", encoder.width, width)(rows)
    return counted.total


def compress(setting: Setting, counting: Counting) -> float:
    """Projectors of the base, and the captioner with its own."""
    width = MODELS[setting.model].hidden_size
    total = project(width) if setting.base != "none" else 0.0
    if not setting.captions:
        return total
    captioner = MODELS["Qwen2.5-0.5B"]
    start = FRAMES // SEGMENTS * sum(side**2 for side in SEEN) + CAPTION_TEXT
    total += project(captioner.hidden_size) + 2 * SEGMENTS * counting.caption * captioner.hidden_size * width
    written = predictions(counting.caption, max(MOST, counting.caption))
    each = work_flops([LanguageWork(captioner, start, written=written)])
    return total + SEGMENTS * (each + counting.read(captioner, start) - language_model_flops(captioner, start))


def stages(setting: Setting, counting: Counting) -> dict[str, float]:
    """FLOPs by stage, in T."""
    config = MODELS[setting.model]
    prompt = counting.text + setting.tokens
    found = {
        "encode": encode(counting, setting.captions),
        "compress": compress(setting, counting),
        "prefill": counting.read(config, prompt),
        "generate": counting.write(config, prompt, counting.reply - 1),
    }
    return {stage: flops * counting.per_product / 2 / 1e12 for stage, flops in found.items()}


def total(setting: Setting, counting: Counting) -> float:
    """All stages together, in T."""
    return sum(stages(setting, counting).values())


WAYS: dict[str, dict] = {
    "ours": {},
    "logits at every place of a prompt": {"logits": True},
    "attention's products left out": {"attention": False},
    "both of these": {"logits": True, "attention": False},
    "every block of the encoders": {"blocks": True},
    "video encoder twice where there are captions": {"encodings": 2},
    "encoders left out": {"encoders": False},
    "a multiply-add as one": {"per_product": 1.0},
    "up to the first token": {"replies": False},
    "300 text tokens": {"text": 300},
    "a reply of 1024 tokens": {"reply": 1024},
    "captions written to 128 tokens": {"caption": MOST},
}
STAGES = ("encode", "compress", "prefill", "generate")


def _beside(ours: float, paper: float) -> str:
    return f"{ours:.2f} {100 * (ours / paper - 1):+.1f} %"


def by_stage(counting: Counting) -> list[list[str]]:
    """A row for each of the paper's: ours by stage and in all, the paper's, the difference."""
    rows = []
    for setting in SETTINGS:
        found = stages(setting, counting)
        ours = sum(found.values())
        cells = [setting.name, setting.model, str(setting.tokens), *(f"{found[stage]:.2f}" for stage in STAGES)]
        rows.append([*cells, f"{ours:.2f}", f"{setting.paper:.2f}", f"{100 * (ours / setting.paper - 1):+.1f} %"])
    return rows


def otherwise(counting: Counting) -> list[list[str]]:
    """A row for each way to count: all settings with their differences from the paper."""
    ways = {way: replace(counting, **changes) for way, changes in WAYS.items()}
    return [[way, *(_beside(total(s, changed), s.paper) for s in SETTINGS)] for way, changed in ways.items()]


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables, and write them to a page where one is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--text", type=int, default=Counting.text, help="text tokens of a prompt")
    parser.add_argument("--reply", type=int, default=Counting.reply, help="tokens of an answer, its end included")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the tables to")
    given = parser.parse_args(argv)
    if given.text < 1 or given.reply < 1:
        parser.error(f"--text {given.text} and --reply {given.reply} must be at least 1.")
    counting = Counting(given.text, given.reply)
    typed = report.command(__file__, argv)
    tables = {
        "The settings of LangDC's paper": (
            f"{typed}; FLOPs in T, with {given.text} text tokens in a prompt and {given.reply} tokens in an answer.",
            ("setting", "language model", "tokens", *STAGES, "ours", "paper", "difference"),
            by_stage(counting),
        ),
        "Counted otherwise": (
            f"{typed}; FLOPs in T and their difference from the paper's, with one thing changed at a time.",
            ("way", *(setting.name for setting in SETTINGS)),
            otherwise(counting),
        ),
    }
    for title, (head, columns, rows) in tables.items():
        report.show(columns, rows, head)
        if given.out:
            report.write(given.out, title, head, columns, rows)


if __name__ == "__main__":
    main()
