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
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from jinja2 import Environment, PackageLoader
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, set_seed

from langdc import checkpoint, devices
from langdc.backbones.chat import IGNORED
from langdc.density import densities
from langdc.features import FeatureStore
from langdc.jsonl import write_text
from langdc.log import screen
from langdc.model import VideoModel
from langdc.train import chain, output
from langdc.train.batches import TrainingData
from langdc.train.objectives import objectives
from langdc.train.samples import Sample
from langdc.train.setup import RunModel
from langdc.types import Compressed, Context, Frames, Prompt, Slot, VideoBatch, VideoTokens
from langdc.video import jpeg_url

_SEGMENTS, _FRAMES, _WORDS = 64, 8, 64
"""Segments shown of a video, frames shown of a segment, and tokens of a segment whose nearest words are."""
_SIDE = 224
"""Pixels of a frame's longer side."""
_NEAREST = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; 0, or 1 when a record could not be read, which the page says."""
    parser = argparse.ArgumentParser(prog="langdc data preview", description=__doc__)
    parser.add_argument("words", nargs="+", metavar="CONFIG | key=value", help="one training run, as for langdc train")
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
    link = _one_run(options.words)
    data = _data(link, options)
    samples = _chosen(data, options.records, options.ids)
    with console.status("reading ..."):
        records = [_record(data, sample, options.checkpoint is not None) for sample in samples]
    environment = Environment(loader=PackageLoader("langdc", ""), autoescape=True, trim_blocks=True)
    page = environment.get_template("prepare/preview.html").render(
        name=link.name,
        config=link.config,
        records=records,
        total=len(data),
        checkpoint=options.checkpoint,
        no_weights=options.no_weights,
        compressor=data.model.config.compressor.name,
        own_replies=data.objective.own_replies,
        means={key: _mean(records, key) for key in ("before", "after", "text", "learned")},
        warnings=sum(len(record["warnings"]) for record in records),
    )
    write_text(out, page)
    for record in records:
        for warning in record["warnings"]:
            console.print(f"{record['where']}: {warning}")
    console.print(f"{len(records)} of {len(data)} records of {link.name}: {out}")
    return int(any(record["unread"] for record in records))


def _one_run(words: Sequence[str]) -> chain.Link:
    names = [word for word in words if "=" not in word]
    links = chain.read(names, [word for word in words if "=" in word])
    if len(links) != 1:
        listed = ", ".join(link.name for link in links) or "none"
        raise ValueError(f"A preview shows one run; {' '.join(names) or 'nothing'} names {listed}. Give one of them.")
    return links[0]


class _Online(TrainingData):
    """The data of a run of which only the media shown are decoded and encoded."""

    def _too_much(self) -> bool:
        return True


def _data(link: chain.Link, options: argparse.Namespace) -> TrainingData:
    """The data of a run with the model that it begins with, or with a trained one, ready to be used."""
    config, where = link.config, devices.named(options.device)
    objective = objectives.build(config.objective.name, **config.objective.settings)
    set_seed(config.seed)
    if options.checkpoint is not None:
        model = checkpoint.load(options.checkpoint, device=where, dtype=devices.dtype_named("auto", where))
    elif options.no_weights:
        with torch.device("meta"):
            model = RunModel.of(config.model_copy(update={"start": None}), objective).model
    else:
        start = config.start and output.latest(config.start)
        if config.start is not None and start is None and not (config.start / checkpoint.MANIFEST).is_file():
            raise ValueError(
                f"{link.name} starts from {config.start}, where no finished run is. Train that one first, name another "
                "with start=DIR, or begin with published weights by start=null, or with none by --no-weights."
            )
        model = RunModel.of(config.model_copy(update={"start": start or config.start}), objective, where).model
    return _Online(model.eval(), objective, config, FeatureStore(model.backbone.encode, "preview"))


def _chosen(data: TrainingData, count: int, ids: Sequence[str] | None) -> list[Sample]:
    """The samples with these ids, in this order, or `count` of all, evenly spaced."""
    if ids is None:
        shown = min(count, len(data))
        return [data[number * len(data) // shown] for number in range(shown)]
    by_id: dict[str, list[Sample]] = {}
    for sample in data.samples:
        by_id.setdefault(sample.record.id, []).append(sample)
    for name in ids:
        if name not in by_id:
            near = difflib.get_close_matches(name, by_id, n=1)
            hint = f"the nearest is {near[0]!r}" if near else f"the first is {next(iter(by_id))!r}"
            raise ValueError(f"The run learns from no record with the id {name!r}; {hint}.")
    return [sample for name in dict.fromkeys(ids) for sample in by_id[name]]


def _mean(records: Sequence[dict[str, Any]], key: str) -> float | None:
    found = [record[key] for record in records if not record["unread"]]
    return None if not found or None in found else fmean(found)


# ---- one record


def _record(data: TrainingData, sample: Sample, trained: bool) -> dict[str, Any]:
    """What the page shows of a record; `warnings` say what a training would lose of it."""
    known = {"record": sample.record, "where": sample.where, "unread": False, "media": [], "prompts": []}
    try:
        batch = data.collate([sample])["batch"]
    except ValueError as error:
        return {**known, "unread": True, "warnings": [f"cannot be read: {error}"]}
    before, found, used = _compressed(data, batch, trained)
    media = [
        _medium(data, sample, number, batch.frames[number], before, found, used) for number in range(len(sample.specs))
    ]
    prompts = [_laid_out(data.model, prompt, found and found.tokens, media) for prompt in batch.prompts]
    after = [medium["after"] for medium in media]
    warnings = [*_lost(data, sample, media), *(line for prompt in prompts for line in prompt.pop("warnings"))]
    sums: dict[str, Any] = {key: sum(prompt[key] for prompt in prompts) for key in ("text", "learned")}
    sums |= {"before": sum(medium["before"] or 0 for medium in media), "after": None if None in after else sum(after)}
    sums["targets"] = "captions" in data.targets(sample)
    return {**known, **sums, "media": media, "prompts": prompts, "warnings": list(dict.fromkeys(warnings))}


@torch.no_grad()
def _compressed(
    data: TrainingData, batch: VideoBatch, trained: bool
) -> tuple[list[int], Compressed | None, Compressed | None]:
    """Tokens of each video before compression; what training has of it; if `trained`, what it is in use.

    Without weights the result is None where a compressor decides by values.
    """
    model, config = data.model, data.config
    cast = config.precision == "bfloat16" and not trained  # as a training computes
    with torch.autocast(model.device.type if model.device.type != "meta" else "cpu", torch.bfloat16, cast):
        videos = model.features(batch)
        before = [sum(grid.tokens for grid in video.projected or video.encoder.values()) for video in videos]
        try:
            found = model.compress(videos, Context(targets=batch.targets))
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            if model.device.type != "meta":
                raise
            return before, None, None
        return before, found, model.compress(videos) if trained else None


def _medium(
    data: TrainingData,
    sample: Sample,
    number: int,
    frames: Frames,
    before: list[int],
    found: Compressed | None,
    used: Compressed | None,
) -> dict[str, Any]:
    """What the page shows of a video or image: its frames by segment, with what is said and made of each."""
    compressor, medium = data.model.compressor, sample.record.shown[number]
    length = data.model.backbone.frames_per_step * compressor.frames_per_segment
    parts = range(0, len(frames), length)
    tokens = None if found is None else found.tokens[number]
    made = None if used is None else used.tokens[number]
    counts, own = (_per_segment(each, len(parts)) for each in (tokens, made))
    if counts is None and (ids := data.targets(sample).get("captions")) and tokens is not None:
        counts = [len(each) for each in ids]  # without weights no token says which segment it belongs to
    written = used.ids[number] if used is not None and used.ids is not None else []
    described = sample.record.segments
    dense = densities(described)
    segments = [
        {
            "frames": _pictures(frames, first, min(first + length, len(frames))),
            "tokens": counts and counts[index],
            "density": dense[index] if len(dense) == len(parts) else None,
            "caption": described[index].caption if len(described) == len(parts) else None,
            "written": compressor.text(written[index]) if len(written) == len(parts) else None,
            "made": own and own[index],
            "words": _nearest(data.model, made.values[made.segment == index][:_WORDS]) if made and own else [],
        }
        for index, first in list(enumerate(parts))[:_SEGMENTS]
    ]
    return {
        "kind": "image" if medium.image is not None else "video",
        "file": medium.file,
        "span": (medium.start or 0.0, medium.end) if medium.start or medium.end else None,
        "frames": len(frames),
        "repeats": len(frames) - len(set(frames.seconds.tolist())),
        "before": before[number],
        "after": None if tokens is None else len(tokens),
        "made": None if made is None else len(made),
        "parts": len(parts),
        "segments": segments,
    }


def _per_segment(tokens: VideoTokens | None, segments: int) -> list[int] | None:
    """How many tokens each segment has; None where tokens do not say so."""
    if tokens is None or tokens.segment.is_meta:
        return None
    counts = tokens.per_segment(segments)
    return counts if len(counts) == segments else None


def _pictures(frames: Frames, first: int, last: int) -> list[tuple[str, float]]:
    """Frames `first` to `last` as data URIs, with their times; some of them where there are many."""
    count = min(last - first, _FRAMES)
    shown = [first + number * (last - first) // count for number in range(count)]
    found = []
    for index in shown:
        picture = Image.fromarray(frames.pixels[index].permute(1, 2, 0).cpu().numpy())
        picture.thumbnail((_SIDE, _SIDE))
        found.append((jpeg_url(picture, quality=80), float(frames.seconds[index])))
    return found


def _nearest(model: VideoModel, values: Tensor) -> list[list[tuple[str, float]]]:
    """The words whose input embeddings have the largest cosine with tokens [N,D], with these, per token."""
    tokenizer = model.backbone.tokenizer
    table = model.backbone.language_model.get_input_embeddings().weight[: len(tokenizer)].detach()  # [V,D]
    lengths = torch.linalg.vector_norm(table, dim=1, dtype=torch.float32)
    near = (F.normalize(values.float(), dim=1).to(table.dtype) @ table.T).float() / lengths.clamp(min=1e-12)
    best = near.topk(min(_NEAREST, len(table)))
    return [
        [(_word(tokenizer, index), cosine) for cosine, index in zip(*row, strict=True)]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _word(tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    return str(tokenizer.decode([index])).strip() or str(tokenizer.convert_ids_to_tokens(index))


# ---- prompts


def _laid_out(
    model: VideoModel, prompt: Prompt, tokens: list[VideoTokens] | None, media: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A prompt in pieces of text, learned or not, and places of videos between them, with numbers of tokens."""
    tokenizer, ids = model.backbone.tokenizer, prompt.ids
    learned = torch.zeros_like(ids, dtype=torch.bool) if prompt.labels is None else prompt.labels != IGNORED
    asked = torch.zeros_like(ids) if prompt.sequence_id is None else prompt.sequence_id
    changes = ((learned[1:] != learned[:-1]) | (asked[1:] != asked[:-1])).nonzero()[:, 0] + 1
    cuts = sorted({0, len(ids), *changes.tolist(), *(slot.position for slot in prompt.slots)})
    special = re.compile("(" + "|".join(map(re.escape, tokenizer.all_special_tokens)) + ")")
    pieces: list[dict[str, Any]] = []
    for first, last in pairwise([*cuts, len(ids)]):
        slots = [slot for slot in prompt.slots if slot.position == first and (last > first or first == len(ids))]
        pieces += [{"slot": _slot(slot, tokens, media)} for slot in slots]
        if last > first:
            parts = special.split(str(tokenizer.decode(ids[first:last])))  # every other one is a special token
            pieces.append({"parts": parts, "learned": bool(learned[first]), "question": int(asked[first])})
    shown = {slot.video for slot in prompt.slots}
    video = None if tokens is None else sum(len(tokens[number]) for number in shown)
    most = getattr(model.backbone.language_model.config.get_text_config(), "max_position_embeddings", None)
    warnings = [] if learned.any() else ["nothing of it is learned: no token of the prompt has a label"]
    if most is not None and len(ids) + (video or 0) > most:
        warnings.append(f"{len(ids) + (video or 0)} tokens are more than the {most} positions of the language model")
    counts = {"text": len(ids), "video": video, "learned": int(learned.sum())}
    return {**counts, "pieces": pieces, "questions": int(asked.max()), "warnings": warnings}


def _slot(slot: Slot, tokens: list[VideoTokens] | None, media: Sequence[dict[str, Any]]) -> str:
    """What stands at a place of a prompt."""
    name = f"{media[slot.video]['kind']} {slot.video + 1}"
    if slot.segment is not None:
        name += f", segment {slot.segment + 1}"
    if tokens is None or (slot.segment is not None and tokens[slot.video].segment.is_meta):
        return name
    chosen = tokens[slot.video]
    count = len(chosen) if slot.segment is None else int((chosen.segment == slot.segment).sum())
    return f"{name}: {count:,} token{'s' * (count != 1)}"


def _lost(data: TrainingData, sample: Sample, media: Sequence[dict[str, Any]]) -> list[str]:
    """What a training loses of a record's media and captions, or sees twice."""
    found = []
    for number, medium in enumerate(media, 1):
        if medium["repeats"]:
            text = "{kind} {number}: {repeats} of {frames} frames are repeats; it has fewer frames than are read"
            found.append(text.format(number=number, **medium))
        if medium["after"] == 0:
            found.append(f"{medium['kind']} {number}: the compressor leaves no token")
    captions, described = data.targets(sample).get("captions", []), sample.record.segments
    for number, (ids, segment) in enumerate(zip(captions, described, strict=False), 1):
        whole, read = ("".join(text.split()).lower() for text in (segment.caption, data.model.compressor.text(ids)))
        if whole != read and whole.startswith(read):
            found.append(f"segment {number}: the caption is cut to {len(ids)} tokens")
    return found
