"""`langdc compare`: answers and costs of several compressors on one video and question, and the patches each kept."""

# letters: T steps of time, H W token grid, N tokens kept

import argparse
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from langdc.compressors import compressors
from langdc.config import MemberConfig
from langdc.jsonl import check_output, write_text
from langdc.language_models import ids_of
from langdc.log import screen
from langdc.model import build_training_free
from langdc.pipeline import OpenVideo, VideoLM
from langdc.text import render
from langdc.tools import options as shared
from langdc.tools.zoo import INSIDE, member_of
from langdc.types import Answer
from langdc.video import jpeg_url

_SHOWN_STEPS, _STEPS_PER_ROW, _HEIGHT, _DARK = 16, 8, 96, 0.22


def main(argv: Sequence[str] | None = None) -> int:
    """Ask with every compressor, print a table and write the page; 0 when that is done."""
    parser = argparse.ArgumentParser(prog="langdc compare", description=__doc__)
    parser.add_argument("video", help="a video or image file")
    parser.add_argument("question", help="the question")
    parser.add_argument("--model", required=True, help="a checkpoint: a folder or a Hugging Face id")
    parser.add_argument("--compressors", nargs="+", metavar="NAME", help="which ones (default: all without training)")
    parser.add_argument("--out", default="compare.html", help="the page to write (default: compare.html)")
    shared.add_method(parser)
    options = parser.parse_args(argv)
    budget, out = shared.budget(options), Path(options.out)
    if len(budget) != 1:
        raise ValueError(f"langdc compare needs --keep or --tokens, one of them; given: {budget or 'neither'}.")
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: give a file in a folder that exists.")
    check_output(out)
    shared.check_asked(options.video, options.question, options.max_new_tokens)
    names = options.compressors or training_free()
    console = screen(soft_wrap=False)
    with console.status("asking ..."):
        given = {**shared.selector(options), **shared.place(options)}
        lm = VideoLM.from_pretrained(options.model, backbone=shared.backbone(options), **given)
        video = lm.open(options.video, question=options.question)
        found = list(_compare(video, options.question, budget, names, max_new_tokens=options.max_new_tokens))
    table = Table("compressor", "tokens", "ms", "answer", box=None, pad_edge=False)
    for one in found:
        text = one.trouble if one.answer is None else one.answer.text
        costs = ["-", "-"] if one.answer is None else [str(one.answer.tokens), f"{one.milliseconds:.0f}"]
        table.add_row(one.name, *costs, text, style="dim" if one.answer is None else "")
    console.print(table)
    assert video.frames is not None and found[0].answer is not None
    before = found[0].answer.tokens_before
    write_text(out, _page(Path(options.video).name, options.question, video.frames.pixels, found, before))
    console.print(f"The patches that each one kept: {out}", soft_wrap=True)
    return 0


@dataclass(frozen=True, eq=False)
class Compared:
    """The answer with one compressor, or the `trouble`: why there is none.

    `kept` [T,H,W]: which patches were kept; with a KV compressor, the share of layers (and heads) that kept each. None
    where tokens are new. `steps`: how many of the T steps are one segment.
    """

    name: str
    answer: Answer | None = None
    kept: Tensor | None = None
    trouble: str = ""
    steps: int = 1

    @property
    def milliseconds(self) -> float:
        """From encoder outputs to the end of the reply."""
        assert self.answer is not None
        return 1000 * sum(s for stage, s in self.answer.seconds.items() if stage not in ("select", "decode", "encode"))


def training_free() -> list[str]:
    """All compressors that drop patches by a budget and need no training, as names of `member_of`."""
    settings = {name: inspect.signature(compressors.get(name)).parameters for name in compressors.names()}
    budgeted = [name for name, known in settings.items() if "keep" in known and "width" not in known]
    inside = [(kind, name) for kind, zoo in INSIDE.items() for name in zoo.names()]
    inside = [(kind, name) for kind, name in inside if not getattr(INSIDE[kind].get(name), "decoding", False)]
    return budgeted + [f"{kind}:{name}" if name in compressors.names() else name for kind, name in inside]


def with_method(lm: VideoLM, name: str, budget: Mapping[str, Any]) -> VideoLM:
    """The same model with a training-free compressor, by a name of `member_of`; ValueError if it cannot serve it."""
    chosen = member_of(name, budget)
    if inside := {kind: zoo.build(**chosen[kind]) for kind, zoo in INSIDE.items() if kind in chosen}:
        return VideoLM(lm.model, **inside)
    return VideoLM(lm.model, build_training_free(MemberConfig(**chosen["compressor"]), lm.model.backbone))


def _compare(
    video: OpenVideo, question: str, budget: Mapping[str, Any], names: Sequence[str], **generation: Any
) -> Iterator[Compared]:
    """Ask with the model's own compressor, then with each of `names`; the video is decoded and encoded once."""
    lm = video.lm
    lm.open("", same=video).ask(question, **generation)  # the first call is slower than the others
    yield asked(lm.model.config.compressor.name, lm, video, question, **generation)
    for name in names:
        try:
            yield asked(name, with_method(lm, name, budget), video, question, **generation)
        except ValueError as error:
            yield Compared(name, trouble=str(error))


def asked(name: str, lm: VideoLM, video: OpenVideo, question: str, **generation: Any) -> Compared:
    """Ask about a video that another model with the same encoders opened."""
    opened = lm.open("", same=video)
    answer = opened.ask(question, **generation)
    return Compared(name, answer, _kept(lm, opened, question), steps=lm.compressor.frames_per_segment)


@torch.no_grad()
def _kept(lm: VideoLM, video: OpenVideo, question: str) -> Tensor | None:
    """The kept share of each patch of the first stream's grid: [T,H,W]."""
    features = video.features
    if not features.projected:
        return None
    if "question" in lm.compressor.needs:
        features = lm.model.with_questions([features], [ids_of(lm.model.backbone.tokenizer, question)])[0]
    source = lm.compressor([features]).tokens[0].source
    if source is None:
        return None
    shape = features.projected[0].values.shape[:3]
    if len(lm.compress([(video, question)])[0].tokens) > len(source) + 1:
        return None  # newlines stand between the tokens
    inside = lm.kv is not None or lm.layers is not None
    share = _shares(lm, video, question, len(source)) if inside else torch.ones(len(source))
    mask = torch.zeros(shape.numel())
    first = source.cpu() < shape.numel()  # later streams have grids of their own
    mask[source.cpu()[first]] = share[first]
    return mask.view(shape)


def _shares(lm: VideoLM, video: OpenVideo, question: str, tokens: int) -> Tensor:
    """The share of layers and heads that held each of a video's tokens after reading: [N]."""
    prompt = lm.prompt(question, video)
    reading = lm.read(prompt, [video])
    shown = lm.model.backbone.splice([prompt], [[video.tokens]])[0].video.nonzero()[:, 0].cpu()
    counts = [
        torch.bincount(o.flatten().cpu(), minlength=int(shown.max()) + 1) / (o.numel() / o.shape[-1])
        for o in reading.kept_rows
    ]
    return torch.stack(counts).mean(0)[shown][:tokens]


def strip(frames: Tensor, kept: Tensor) -> Image.Image:
    """Frames [T',3,height,width] side by side, dark where patches [T,H,W] were dropped."""
    steps = torch.linspace(0, len(kept) - 1, min(len(kept), _SHOWN_STEPS)).round().long()
    shown = frames[(steps * len(frames)) // len(kept)].float()
    width = max(1, round(_HEIGHT * shown.shape[3] / shown.shape[2]))
    shown = functional.interpolate(shown, (_HEIGHT, width), mode="bilinear", antialias=True)
    mask = functional.interpolate(kept[steps][:, None].float(), (_HEIGHT, width), mode="nearest")
    lit = (shown * (_DARK + (1 - _DARK) * mask)).clamp(0, 255).byte()
    rows = [torch.cat(list(row), 2) for row in lit.split(_STEPS_PER_ROW)]
    whole = functional.pad(rows[-1], (0, rows[0].shape[2] - rows[-1].shape[2]))
    return Image.fromarray(torch.cat([*rows[:-1], whole], 1).permute(1, 2, 0).numpy())


def _page(title: str, question: str, frames: Tensor, found: Sequence[Compared], before: int) -> str:
    """One self-contained HTML page with a strip of kept patches per compressor; `compare.html` is its template."""
    strips = [None if one.kept is None else jpeg_url(strip(frames, one.kept), quality=85) for one in found]
    pairs = list(zip(found, strips, strict=True))
    return render("langdc", "tools/compare.html", title=title, question=question, before=before, found=pairs)
