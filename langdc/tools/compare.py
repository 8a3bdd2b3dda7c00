"""Several compressors side by side on one video and question: answers, costs, and which patches each one kept.

Letters: T steps of time, H W token grid, N tokens kept.
"""

import base64
import html
import inspect
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from langdc.compressors import compressors
from langdc.config import MemberConfig
from langdc.kvcompressors import kvcompressors
from langdc.model import VideoModel, build_compressor
from langdc.pipeline import OpenVideo, VideoLM
from langdc.types import Answer

SHOWN_STEPS, STEPS_PER_ROW, HEIGHT, DARK = 16, 8, 96, 0.22


@dataclass(frozen=True, eq=False)
class Compared:
    """What one compressor made of the video, or what the `trouble` was.

    `kept` [T,H,W]: which patches stayed; with a compressor of keys, the share of layers (and heads) that kept each.
    None where tokens are new.
    """

    name: str
    answer: Answer | None = None
    kept: Tensor | None = None
    trouble: str = ""

    @property
    def milliseconds(self) -> float:
        """From encoder outputs to the end of the reply."""
        assert self.answer is not None
        return 1000 * sum(s for stage, s in self.answer.seconds.items() if stage not in ("decode", "encode"))


def resolved(name: str, budget: Mapping[str, Any]) -> dict[str, Any]:
    """{"compressor": ...} or {"kv": ...} for a name of either zoo; ValueError if there is none.

    A name of both is a token compressor; "kv:random" is the other.
    """
    if name.startswith("kv:"):
        return {"kv": {"name": name.removeprefix("kv:"), **budget}}
    if name in compressors.names():
        return {"compressor": {"name": name, **budget}}
    if name in kvcompressors.names():
        return {"kv": {"name": name, **budget}}
    compressors.get(name)  # says what there is
    raise AssertionError(name)


def training_free() -> list[str]:
    """All that take a budget and no training: what a comparison shows unless told otherwise."""
    budgeted = [n for n in compressors.names() if "keep" in inspect.signature(compressors.get(n)).parameters]
    return budgeted + [f"kv:{name}" if name in compressors.names() else name for name in kvcompressors.names()]


def compare(
    video: OpenVideo, question: str, budget: Mapping[str, Any], names: Sequence[str], **generation: Any
) -> Iterator[Compared]:
    """Ask once with the model's own compressor, then with each of `names`; the video was decoded and encoded once."""
    lm = video.lm
    lm.open("", same=video).ask(question, **generation)  # warms up, so that times compare
    yield _asked(lm.model.config.compressor.name, lm, video, question, **generation)
    for name in names:
        try:
            yield _asked(name, _with(lm.model, name, budget), video, question, **generation)
        except ValueError as error:
            yield Compared(name, trouble=str(error))


def _with(model: VideoModel, name: str, budget: Mapping[str, Any]) -> VideoLM:
    chosen = resolved(name, budget)
    if "kv" in chosen:
        return VideoLM(model, kv=kvcompressors.build(**chosen["kv"]))
    return VideoLM(model, build_compressor(MemberConfig(**chosen["compressor"]), model.backbone))


def _asked(name: str, lm: VideoLM, video: OpenVideo, question: str, **generation: Any) -> Compared:
    opened = lm.open("", same=video)
    return Compared(name, opened.ask(question, **generation), _kept(lm, opened, question))


@torch.no_grad()
def _kept(lm: VideoLM, video: OpenVideo, question: str) -> Tensor | None:
    """How much of each place of the first stream's grid was kept: [T,H,W]."""
    features = video.features
    source = lm.compressor(features).source if features.projected else None
    if source is None:
        return None
    shape = features.projected[0].values.shape[:3]
    if len(video.tokens) > len(source) + 1:
        return None  # newlines stand between the tokens
    share = _shares(lm, video, question, len(source)) if lm.kv is not None else torch.ones(len(source))
    mask = torch.zeros(shape.numel())
    first = source.cpu() < shape.numel()  # later streams have no place in this grid
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
    steps = torch.linspace(0, len(kept) - 1, min(len(kept), SHOWN_STEPS)).round().long()
    shown = frames[(steps * len(frames)) // len(kept)].float()
    width = max(1, round(HEIGHT * shown.shape[3] / shown.shape[2]))
    shown = functional.interpolate(shown, (HEIGHT, width), mode="bilinear", antialias=True)
    mask = functional.interpolate(kept[steps][:, None].float(), (HEIGHT, width), mode="nearest")
    lit = (shown * (DARK + (1 - DARK) * mask)).clamp(0, 255).byte()
    rows = [torch.cat(list(row), 2) for row in lit.split(STEPS_PER_ROW)]
    whole = functional.pad(rows[-1], (0, rows[0].shape[2] - rows[-1].shape[2]))
    return Image.fromarray(torch.cat([*rows[:-1], whole], 1).permute(1, 2, 0).numpy())


def page(title: str, question: str, frames: Tensor, found: Sequence[Compared], before: int) -> str:
    """One self-contained HTML page with a strip of kept patches per compressor."""
    rows = "\n".join(_row(one, frames, before) for one in found)
    return PAGE.format(title=html.escape(title), question=html.escape(question), before=before, rows=rows)


def _row(one: Compared, frames: Tensor, before: int) -> str:
    name = html.escape(one.name)
    if one.answer is None:
        return f'<section><h2>{name}</h2><p class="quiet">{html.escape(one.trouble)}</p></section>'
    cost = f"{one.answer.tokens} tokens ({one.answer.tokens / max(before, 1):.0%}), {one.milliseconds:.0f} ms"
    if one.answer.keys_per_layer is not None:
        held = one.answer.keys_per_layer
        cost += f", {min(held)} to {max(held)} keys per layer kept, text included"
    said = html.escape(one.answer.text) or "(nothing)"
    return f"<section><h2>{name} <small>{cost}</small></h2><p>{said}</p>{_picture(one, frames)}</section>"


def _picture(one: Compared, frames: Tensor) -> str:
    if one.kept is None:
        return '<p class="quiet">No patches to show: its tokens are new ones.</p>'
    file = io.BytesIO()
    strip(frames, one.kept).save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    share = float(one.kept.float().mean())
    return f'<img alt="{html.escape(one.name)} kept {share:.0%} of the patches" src="data:image/jpeg;base64,{data}">'


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: light-dark(#1c2430, #e6e9ee); --quiet: light-dark(#5b6675, #98a3b3);
  --paper: light-dark(#fff, #12161c); --line: light-dark(#dde3ea, #2c3542); }}
body {{ margin: 0 auto; max-width: 90rem; padding: 2rem clamp(1rem, 4vw, 3rem); background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.6rem; margin: 0; }} h2 {{ font-size: 1.05rem; margin: 0; }}
small, .quiet {{ color: var(--quiet); font-weight: 400; }} small {{ margin-left: .6rem; }}
section {{ border-top: 1px solid var(--line); padding: 1rem 0; }} section p {{ margin: .2rem 0 .6rem; }}
img {{ display: block; width: 100%; height: auto; border-radius: .4rem; }}
</style>
<h1>{title}</h1>
<p class="quiet">{question} &mdash; {before} visual tokens before compression. Bright patches were kept;
where keys are dropped, the brighter the more layers kept them.</p>
{rows}
</html>
"""
