"""`langdc data preview CONFIG`: a page of records as a training reads them: frames, targets, prompts, token counts.

Media and prompts are those of the training's own batches. With --checkpoint also what a trained model makes of the
videos: captions, tokens, and the words nearest to these. Letters: T steps, S segments, N tokens, D width, V vocabulary.
"""

import argparse
import difflib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers import set_seed

from langdc import checkpoint, devices
from langdc.backbones.chat import IGNORED
from langdc.config import RunConfig
from langdc.density import densities
from langdc.features import FeatureStore
from langdc.jsonl import check_output, write_text
from langdc.log import screen
from langdc.model import VideoModel
from langdc.rope import position_limit
from langdc.text import render
from langdc.tools.options import add_quarantine
from langdc.train import chain, output
from langdc.train.batches import TrainingData
from langdc.train.objectives import objectives
from langdc.train.samples import Sample
from langdc.train.setup import RunModel
from langdc.types import Compressed, Context, Frames, Prompt, VideoBatch, VideoTokens
from langdc.video import jpeg_url

_SEGMENTS, _FRAMES, _WORDS, _SIDE = 64, 8, 64, 224
"""Segments of a video, frames and tokens of a segment that are shown; pixels of a frame's longer side."""
_Made = tuple[list[int] | None, Compressed | None, Compressed | None]
"""Tokens of each video before the compressor, what a training has after it, and what there is in use; None where that
takes values and no weights were read.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; 0, or 1 when a record could not be read, which the page says."""
    parser = argparse.ArgumentParser(prog="langdc data preview", description=__doc__)
    parser.add_argument("words", nargs="+", metavar="CONFIG | key=value", help="one training run, as for langdc train")
    add_quarantine(parser)
    parser.add_argument("--records", type=int, default=8, help="how many, evenly out of all (default: 8)")
    parser.add_argument("--ids", nargs="+", metavar="ID", help="the records with these ids instead")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--checkpoint", metavar="DIR", help="a trained model: also show what it makes of the videos")
    model.add_argument("--no-weights", action="store_true", help="read no weights: tokens are counted by shapes")
    parser.add_argument("--device", help="where the model runs: auto (default: the accelerator, if any), cpu, cuda:1")
    parser.add_argument("--out", default="preview.html", help="the page to write (default: preview.html)")
    options = parser.parse_intermixed_args(argv)
    out, console = Path(options.out), screen()
    if options.records < 1:
        raise ValueError(f"--records {options.records}: give at least 1.")
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: give a file in a folder that exists.")
    check_output(out)
    names = [word for word in options.words if "=" not in word]
    links = chain.read(names, [*filter(None, [options.quarantine]), *(word for word in options.words if "=" in word)])
    if len(links) != 1:
        raise ValueError(f"A preview shows one run; given: {', '.join(link.name for link in links) or 'none'}.")
    console.print(f"Loading the model of {links[0].name} ...")
    data = _data(links[0].config, options)
    with console.status("reading ..."):
        records = [_record(data, sample, bool(options.checkpoint)) for sample in _chosen(data, options)]
    shown = {"data": data, "options": options, "records": records, "title": names[0]}
    write_text(out, render("langdc", "prepare/preview.html", **shown))
    for record in records:
        for note in record["notes"]:
            console.print(f"{record['sample'].where}: {note}")
    console.print(f"{len(records)} of {len(data)} records: {out}")
    return int(any(record["unread"] for record in records))


class _Online(TrainingData):
    def _too_much(self) -> bool:  # so that only what is shown is decoded and encoded
        return True


def _data(config: RunConfig, options: argparse.Namespace) -> TrainingData:
    """The data of a run with the model that it begins with, or with a trained one, ready to be used."""
    where, start = devices.named(options.device), config.start and (output.latest(config.start) or config.start)
    objective = objectives.build(config.objective.name, **config.objective.settings)
    set_seed(config.seed)
    if options.checkpoint:
        model = checkpoint.load(options.checkpoint, device=where, dtype=devices.dtype_named("auto", where))
    elif options.no_weights:
        with torch.device("meta"):
            model = RunModel.of(config.model_copy(update={"start": None}), objective).model
    elif start is not None and not (start / checkpoint.MANIFEST).is_file():
        raise ValueError(f"There is no {start} to start from. Train it first, or give start=null or --no-weights.")
    else:
        model = RunModel.of(config.model_copy(update={"start": start}), objective, where).model
    return _Online(model.eval(), objective, config, FeatureStore(model.backbone.encode, "preview"))


def _chosen(data: TrainingData, options: argparse.Namespace) -> list[Sample]:
    """The samples with the ids asked for, in that order, or a number of all, evenly spaced."""
    if options.ids is None:
        count = min(options.records, len(data))
        return [data[number * len(data) // count] for number in range(count)]
    by_id: dict[str, list[Sample]] = {}
    for sample in data.samples:
        by_id.setdefault(sample.record.id, []).append(sample)
    for name in options.ids:
        if name not in by_id:
            near = difflib.get_close_matches(name, by_id, n=1) or [*by_id]
            raise ValueError(f"The run learns from no record with the id {name!r}; there is {near[0]!r}, for example.")
    return [sample for name in dict.fromkeys(options.ids) for sample in by_id[name]]


def _record(data: TrainingData, sample: Sample, trained: bool) -> dict[str, Any]:
    """What the page shows of a record; `notes` say what a training would lose of it."""
    shown: dict[str, Any] = {"sample": sample, "media": [], "prompts": [], "unread": False}
    try:
        batch = data.collate([sample])["batch"]
        made = _compressed(data, batch, trained)
    except ValueError as error:
        return {**shown, "unread": True, "notes": [f"cannot be read: {error}"]}
    shown["media"] = [_medium(data, sample, number, batch, made) for number in range(len(sample.specs))]
    shown["prompts"] = [_laid_out(data.model, prompt, made[1] and made[1].tokens) for prompt in batch.prompts]
    return {**shown, "notes": _notes(data, sample, shown["media"], shown["prompts"])}


@torch.no_grad()
def _compressed(data: TrainingData, batch: VideoBatch, trained: bool) -> _Made:
    """`_Made` of a batch's videos; the last one only of a trained model."""
    model, before, found = data.model, None, None
    meta, cast = model.device.type == "meta", data.config.precision == "bfloat16" and not trained  # as in training
    targets = tree_map(lambda each: each.to("meta") if meta and isinstance(each, Tensor) else each, batch.targets)
    try:
        with torch.autocast("cpu" if meta else model.device.type, torch.bfloat16, cast):
            videos = model.features(batch)
            before = [sum(grid.tokens for grid in video.projected or video.encoder.values()) for video in videos]
            found = model.compress(videos, Context(targets=targets))
            return before, found, model.compress(videos) if trained else None
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        if not meta:
            raise
        return before, None, None


def _medium(data: TrainingData, sample: Sample, number: int, batch: VideoBatch, made_of: _Made) -> dict[str, Any]:
    """What the page shows of a video or image: its frames by segment, with what is said and made of each."""
    model, described, frames, (before, found, used) = data.model, sample.record.segments, batch.frames[number], made_of
    length = model.backbone.frames_per_step * model.compressor.frames_per_segment
    parts = range(0, len(frames), length)
    tokens, made = (None if each is None else each.tokens[number] for each in (found, used))
    written = used.ids[number] if used is not None and used.ids is not None else []
    columns = {
        "tokens": _per_segment(tokens, len(parts)),
        "made": _per_segment(made, len(parts)),
        "density": densities(described),
        "caption": [segment.caption for segment in described],
        "written": [model.compressor.text(ids) for ids in written],
    }
    known = {name: column for name, column in columns.items() if len(column) == len(parts)}
    words = _nearest(model, made, len(parts)) if made is not None and "made" in known else []
    segments = [
        {"frames": _pictures(frames, first, length), "words": words[i : i + 1], **{n: c[i] for n, c in known.items()}}
        for i, first in enumerate(parts[:_SEGMENTS])
    ]
    grid = sum(len(s.times) * s.height * s.width for each in batch.prompts for s in each.slots if s.video == number)
    counts = {"tokens": None if tokens is None else len(tokens), "made": None if made is None else len(made)}
    counts |= {"before": before[number] if before else grid or None, "frames": len(frames), "parts": len(parts)}
    counts |= {"size": frames.pixels.shape[2:], "repeats": len(frames) - len(set(frames.seconds.tolist()))}
    return {**counts, "segments": segments}


def _per_segment(tokens: VideoTokens | None, segments: int) -> list[int]:
    """How many tokens each segment has; empty where that is not known."""
    return [] if tokens is None or tokens.segment.is_meta else tokens.per_segment(segments)


def _pictures(frames: Frames, first: int, length: int) -> list[tuple[str, float]]:
    """The frames of a segment as data URIs, with their times; some of them where there are many."""
    found, part = [], range(first, min(first + length, len(frames)))
    for index in part[:: -(-len(part) // _FRAMES)]:
        picture = Image.fromarray(frames.pixels[index].permute(1, 2, 0).numpy())
        picture.thumbnail((_SIDE, _SIDE))
        found.append((jpeg_url(picture, quality=80), float(frames.seconds[index])))
    return found


def _nearest(model: VideoModel, tokens: VideoTokens, segments: int) -> list[list[list[tuple[str, float]]]]:
    """By segment and token, the three words whose input embeddings have the largest cosine with it, and that."""
    tokenizer = model.backbone.tokenizer
    embeddings: Any = model.backbone.language_model.get_input_embeddings()
    table = embeddings.weight[: len(tokenizer)]  # [V,D]
    lengths = torch.linalg.vector_norm(table, dim=1, dtype=torch.float32).clamp(min=1e-12)
    found = []
    for segment in range(min(segments, _SEGMENTS)):
        values = F.normalize(tokens.values[tokens.segment == segment][:_WORDS].float(), dim=1)
        best = ((values.to(table.dtype) @ table.T).float() / lengths).topk(min(3, len(table)))
        words = [[str(tokenizer.decode([i])).strip() or f"id {i}" for i in row] for row in best.indices.tolist()]
        found.append([list(zip(*row, strict=True)) for row in zip(words, best.values.tolist(), strict=True)])
    return found


def _laid_out(model: VideoModel, prompt: Prompt, tokens: list[VideoTokens] | None) -> dict[str, Any]:
    """A prompt in pieces: text, learned or not, and between it the places of videos, with numbers of tokens."""
    tokenizer, ids = model.backbone.tokenizer, prompt.ids
    learned = torch.zeros_like(ids, dtype=torch.bool) if prompt.labels is None else prompt.labels != IGNORED
    asked = torch.zeros_like(ids) if prompt.sequence_id is None else prompt.sequence_id
    changes = ((learned[1:] != learned[:-1]) | (asked[1:] != asked[:-1])).nonzero()[:, 0] + 1
    cuts = sorted({0, len(ids), *changes.tolist(), *(slot.position for slot in prompt.slots)})
    special = re.compile("(" + "|".join(map(re.escape, tokenizer.all_special_tokens)) + ")")
    pieces: list[dict[str, Any]] = []
    for first, last in pairwise([*cuts, len(ids)]):
        for slot in (slot for slot in prompt.slots if slot.position == first):
            count = len(tokens[slot.video]) if tokens else None
            if tokens and slot.segment is not None:
                own = tokens[slot.video].segment
                count = None if own.is_meta else int((own == slot.segment).sum())
            pieces.append({"slot": slot, "tokens": count})
        if last > first:
            parts = special.split(str(tokenizer.decode(ids[first:last])))  # every other one is a special token
            pieces.append({"parts": parts, "learned": bool(learned[first]), "question": int(asked[first])})
    sizes = torch.bincount(asked).tolist()
    video = None if tokens is None else sum(len(tokens[number]) for number in {slot.video for slot in prompt.slots})
    longest = sizes[0] + max(sizes[1:], default=0) + (video or 0)  # packed questions do not follow each other
    return {"pieces": pieces, "text": len(ids), "video": video, "longest": longest, "learned": int(learned.sum())}


def _notes(data: TrainingData, sample: Sample, media: Sequence[dict], prompts: Sequence[dict]) -> list[str]:
    """What a training loses of a record, or reads twice."""
    found, compressor, config = [], data.model.compressor, data.model.backbone.language_model.config
    for number, medium in enumerate(media, 1):
        if medium["repeats"]:
            found.append(f"video {number} has too few frames: {medium['repeats']} of {medium['frames']} are repeats")
        if medium["tokens"] == 0:
            found.append(f"video {number}: the compressor leaves no token")
    captions = data.targets(sample).get("captions", [])
    for number, (ids, segment) in enumerate(zip(captions, sample.record.segments, strict=False), 1):
        whole, read = ("".join(text.split()).lower() for text in (segment.caption, compressor.text(ids)))
        if whole != read and whole.startswith(read):
            found.append(f"segment {number}: the caption is cut to {len(ids)} tokens: {segment.caption[:80]!r}")
    most = position_limit(config)
    for prompt in prompts:
        if not prompt["learned"]:
            found.append("nothing of a prompt is learned: no token of it has a label")
        if most is not None and prompt["longest"] > most:
            found.append(f"a prompt of {prompt['longest']} tokens: the language model has {most} positions")
    return found
