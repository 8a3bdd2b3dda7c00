"""`langdc probe`: what linear probes read about objects from a compressor's tokens, beside the encoder's features."""

# letters: S segments, n objects or caption tokens, N tokens, T H W patch grid, C D Z widths

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from langdc import jsonl
from langdc.data.records import ObjectRecord, Record, SegmentRecord, check_media, read_records
from langdc.evaluate.probes import Probed, covered, examples, probe, split, things
from langdc.language_models import ids_of
from langdc.log import screen, track
from langdc.pipeline import OpenVideo, VideoLM
from langdc.text import counted, render
from langdc.tools import options as shared
from langdc.tools.compare import with_method
from langdc.tools.zoo import INSIDE, member_of
from langdc.types import Context, VideoTokens

_LARGEST = 4, 4, 4  # steps, rows and columns of the encoder's grid of a segment


def main(argv: Sequence[str] | None = None) -> int:
    """Read the labels of records from tokens, print a table, write DIR/probe.json and DIR/probe.html; 0 when done."""
    parser = argparse.ArgumentParser(prog="langdc probe", description=__doc__)
    parser.add_argument("model", help="a checkpoint: a folder, a Hugging Face id, or sample:langdc")
    said = "records of videos whose segments have objects (docs/data.md)"
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help=said)
    said = "further compressors, training-free ones before the LLM, beside the model's own"
    parser.add_argument("--compressors", nargs="+", default=[], metavar="NAME", help=said)
    parser.add_argument("--keep", type=float, help="fraction of the visual tokens that these keep, such as 0.25")
    parser.add_argument("--tokens", type=int, help="number of visual tokens that these keep, in place of --keep")
    parser.add_argument("--videos", type=int, default=200, help="use at most the first N videos (default: 200)")
    parser.add_argument(
        "--out", type=Path, default=Path("probe"), metavar="DIR", help="folder to write (default: probe)"
    )
    parser.add_argument("--backbone", help="for stock models: a backbone by name, such as llava_video")
    parser.add_argument("--frames", type=int, help="for stock models: the number of frames of a video")
    shared.add_device(parser)
    shared.add_outside(parser)
    options = parser.parse_args(argv)
    files = [options.out / f"probe.{kind}" for kind in ("json", "html")]
    for file in files:
        jsonl.check_output(file)
    records = _annotated(options.data, options.videos, options.allow_outside)
    lm = VideoLM.from_pretrained(options.model, backbone=shared.backbone(options), **shared.place(options))
    methods = {lm.model.config.compressor.name: lm, **_others(lm, options.compressors, shared.budget(options))}
    found = _Found(records)
    for record in track(records, len(records), "Encoding videos"):
        found.add(record, options.data.parent, methods)
    blocks, left_out = found.blocks(), found.left_out
    about = {"model": str(options.model), "data": str(options.data), "videos": len(records), **shared.budget(options)}
    with jsonl.making_folder(options.out):
        jsonl.write_json(files[0], {**about, "units": [block.as_json() for block in blocks], "left_out": left_out})
        jsonl.write_text(files[1], render("langdc", "tools/probe.html", about=about, blocks=blocks, left_out=left_out))
    console = screen(soft_wrap=False)
    for block in blocks:
        console.print(block.table())
    for sentence in left_out:
        console.print(f"Left out: {sentence}", style="dim")
    console.print(f"% right in test videos. Written: {', '.join(map(str, files))}", soft_wrap=True)
    return 0


def _annotated(data: Path, videos: int, allow_outside: bool) -> list[Record]:
    """The first records of videos with objects; ValueError where there are too few."""
    if videos < 6:
        raise ValueError(f"--videos {videos}: half of them are for testing; give 6 or more.")
    read = read_records(data)
    found = [each for each in read if each.video is not None and any(part.objects for part in each.segments)][:videos]
    if len(found) < 6:
        raise ValueError(
            f"{data}: {counted(len(found), 'record')} of {len(read)} have a video and objects in its segments; at "
            "least 6 are needed. See docs/probe.md. A sample set of an earlier version has none: make a new one with "
            "langdc data sample."
        )
    return check_media(data, found, allow_outside)


def _others(lm: VideoLM, names: Sequence[str], budget: Mapping[str, Any]) -> dict[str, VideoLM]:
    """The same model with other compressors, by their names with the budget; ValueError if one cannot be probed."""
    if budget and not names:
        raise ValueError(f"A budget {budget} needs compressors: add --compressors NAME. See: langdc compressors")
    found = {}
    for name in names:
        if not member_of(name, budget).keys().isdisjoint(INSIDE):
            raise ValueError(f"{name} works inside the language model; probes read the tokens before it. Leave it out.")
        found[" ".join([name, *map(str, budget.values())])] = with_method(lm, name, budget).to(lm.device)
    return found


class _Place(NamedTuple):
    """What a column reads: `of` "object" or "segment", from `name` of a `group`, such as a layer of a compressor."""

    of: str
    group: str
    name: str = ""


@dataclass(frozen=True, eq=False)
class _Block:
    """The results for objects or for segments. `without`: for each place, % of the examples without a token there."""

    of: str
    places: list[_Place]
    without: list[float]
    rows: list[Probed]

    @property
    def groups(self) -> dict[str, list[int]]:
        """The places of each group."""
        found = defaultdict(list)
        for number, place in enumerate(self.places):
            found[place.group].append(number)
        return found

    def as_json(self) -> dict[str, Any]:
        places = [{"group": place.group, "name": place.name} for place in self.places]
        shown = [{**place, "without": share} for place, share in zip(places, self.without, strict=True)]
        return {"of": self.of, "places": shown, "labels": [asdict(row) for row in self.rows]}

    def table(self) -> Table:
        """The table for the terminal, with the places of a group in one cell."""
        groups = self.groups
        table = Table(f"of the {self.of}", "test", "majority", *groups, "±", box=None, pad_edge=False)
        for row in self.rows:
            cells = [" ".join(f"{row.scores[i].accuracy:.0f}" for i in numbers) for numbers in groups.values()]
            most = max(score.half_width for score in row.scores)
            table.add_row(f"{row.label}, {row.values}", str(row.test), f"{row.majority:.0f}", *cells, f"{most:.0f}")
        lost = [f"{max(self.without[i] for i in numbers):.0f}" for numbers in groups.values()]
        table.add_row("no token, %", "", "", *lost, style="dim")
        names = [", ".join(self.places[i].name.removeprefix("layer ") for i in numbers) for numbers in groups.values()]
        if any(names):
            table.add_row("places", "", "", *names, style="dim")
        return table


@dataclass(eq=False)
class _Found:
    """The vectors of the objects and segments of some records, by place.

    The vector of an object is the mean of the encoder's features, or of the tokens with a `source`, at the patches that
    its boxes touch, weighted by how much of it they show; streams are concatenated; zero where no token was kept. In
    captions it is a state at the object's phrase, while the record's own captions are read, or the token made of it.
    Of tokens without a source, a segment has the mean and, where the number is always the same and at most 64, also all
    of them concatenated ("in order"); so has the encoder's grid, averaged to at most 4 steps, rows and columns.
    """

    records: Sequence[Record]
    left_out: list[str] = field(default_factory=list)
    vectors: dict[_Place, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    tokens: dict[_Place, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    @torch.no_grad()
    def add(self, record: Record, root: Path, methods: Mapping[str, VideoLM]) -> None:
        """Add the vectors of a video; ValueError for a compressor or a record that cannot be probed."""
        path, need = root / str(record.file), frozenset[str]().union(*(lm.compressor.needs for lm in methods.values()))
        first = next(iter(methods.values()))
        video = first.open(path, record.start, record.end, fps=record.fps, need=need - {"question"})
        self._add_encoder(record, video)
        for name, lm in methods.items():
            opened = lm.open("", same=video)
            if "question" in lm.compressor.needs:
                raise ValueError(f"{name} compresses for a question, and a probe asks none. Leave it out.")
            ids = lm.compressor.targets(record).get("captions")
            context = Context() if ids is None else Context(targets={"captions": [ids]})
            tokens = lm.compressor([opened.features], context).tokens[0]
            if tokens.source is not None:
                self._add_sourced(_Place("object", name), record, opened, tokens, tokens.source.cpu())
                continue
            self._add_segments(_Place("segment", name), record, opened, tokens)
            if ids is not None and hasattr(lm.compressor, "layers"):
                self._add_captions(name, record, lm.compressor, opened, ids, tokens)

    def _add_encoder(self, record: Record, video: OpenVideo) -> None:
        grids, parts = [grid.values.float().cpu() for grid in video.encoder.values()], len(record.segments)
        means = [_means(grid.flatten(0, 2), _cover(record, grid.shape)) for grid in grids]
        self.vectors[_Place("object", "encoder")].append(torch.cat(means, 1))
        for name, largest in (("mean", (1, 1, 1)), ("in order", _LARGEST)):
            pooled = torch.cat([_pooled(grid, parts, largest) for grid in grids], 1)
            self.vectors[_Place("segment", "encoder", name)].append(pooled)

    def _add_sourced(
        self, place: _Place, record: Record, video: OpenVideo, tokens: VideoTokens, source: Tensor
    ) -> None:
        grids, values = video.features.projected, tokens.values.float().cpu()
        means, before = [], 0
        for grid in grids:
            kept = (source >= before) & (source < before + grid.tokens)
            cover = _cover(record, grid.values.shape)[:, source[kept] - before]
            means.append(_means(values[kept], cover))
            before += grid.tokens
        self.vectors[place].append(torch.cat(means, 1))

    def _add_segments(self, place: _Place, record: Record, video: OpenVideo, tokens: VideoTokens) -> None:
        parts, count = len(record.segments), video.segments
        if count % parts:
            raise ValueError(
                f"{place.group} makes its tokens in {counted(count, 'segment')} of {record.file}, and the record has "
                f"{parts}; such tokens are probed by segment, so the first must be a multiple of the second."
            )
        segment, values = tokens.segment.cpu() * parts // count, tokens.values.float().cpu()
        self.tokens[place] += [values[segment == number] for number in range(parts)]

    def _add_captions(
        self, name: str, record: Record, compressor: Any, video: OpenVideo, ids: list[Tensor], tokens: VideoTokens
    ) -> None:
        starts = list(accumulate((len(each) + 1 for each in ids), initial=1))  # row 0 is zero: no phrase
        spans = [(starts[s], _span(compressor, record.segments[s], each, ids[s])) for s, each in things(record)]
        index = {
            "before the phrase": [at and start + at[0] for start, at in spans],
            "at its first token": [at and start + at[0] + 1 for start, at in spans],
            "at its last token": [at and start + at[1] + 1 for start, at in spans],
        }
        rows = {f"layer {n}": torch.cat(each) for n, each in enumerate(compressor.layers(video.features, ids))}
        rows["soft"] = _soft(tokens, list(map(len, ids)))
        for place, states in rows.items():
            known = F.pad(states.float().cpu(), (0, 0, 1, 0))
            for which, places in index.items():
                if place != "soft" or which != "before the phrase":
                    self.vectors[_Place("object", f"{name}, {which}", place)].append(known[[at or 0 for at in places]])

    def blocks(self) -> list[_Block]:
        """Probe all labels from all places. ValueError if no label can be probed."""
        part = split(len(self.records))
        kinds = ["object", *["segment"] * bool(self.tokens)]
        for place, segments in self.tokens.items():
            means = [each.sum(0, keepdim=True) / max(len(each), 1) for each in segments]
            self.vectors[place._replace(name="mean")] = means
            if len({len(each) for each in segments}) == 1 and len(segments[0]) <= math.prod(_LARGEST):
                self.vectors[place._replace(name="in order")] = [each.flatten()[None] for each in segments]
        found, asked = [], examples(self.records, part)
        for of in kinds:
            vectors = {place: torch.cat(rows) for place, rows in self.vectors.items() if place.of == of}
            for place in [place for place, rows in vectors.items() if not rows.any()]:
                said = f"no {of} has a token there; objects in captions need a phrase"
                self.left_out.append(f"{place.group}, {place.name}: {said}")
                del vectors[place]
            rows = list(probe(asked[of][0], torch.tensor(asked[of][1]), part, list(vectors.values())))
            self.left_out += [f"{of}, {row}" for row in rows if isinstance(row, str)]
            without = [100 * (each == 0).all(1).double().mean().item() for each in vectors.values()]
            if rows := [row for row in rows if isinstance(row, Probed)]:
                found.append(_Block(of, list(vectors), without, rows))
        if not found:
            raise ValueError("No label can be probed. " + " ".join(self.left_out))
        return found


def _cover(record: Record, shape: Sequence[int]) -> Tensor:
    """How much of each object each patch shows: [n,T*H*W]."""
    parts = len(record.segments)
    return torch.stack([covered(each, s, parts, shape).flatten() for s, each in things(record)])


def _pooled(grid: Tensor, parts: int, largest: Sequence[int]) -> Tensor:
    """A grid [T,H,W,C] as one vector for each of equal parts of its video: [parts,*]. Each part is averaged to at most
    `largest` steps, rows and columns.
    """
    steps, rows, columns = map(min, largest, (max(len(grid) // parts, 1), *grid.shape[1:3]))
    small = F.adaptive_avg_pool3d(grid.movedim(3, 0), (parts * steps, rows, columns))
    return small.unflatten(1, (parts, steps)).movedim(1, 0).flatten(1)


def _means(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of tokens [N,D] by weights [n,N]: [n,D]; zero where all weights are."""
    return weights @ values / weights.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _soft(tokens: VideoTokens, counts: Sequence[int]) -> Tensor:
    """The tokens of all captions, with a row of zeros before those of each segment: [S+n,D]."""
    values, segment = tokens.values, tokens.segment
    if tokens.padding is not None:
        values, segment = values[~tokens.padding], segment[~tokens.padding]
    # the caption's tokens are the last of a segment, after those of a base and a marker
    parts = [values[segment == number][-count:] if count else values[:0] for number, count in enumerate(counts)]
    return torch.cat([F.pad(each, (0, 0, 1, 0)) for each in parts])


def _span(compressor: Any, segment: SegmentRecord, thing: ObjectRecord, ids: Tensor) -> tuple[int, int] | None:
    """The first and last index of the tokens of an object's phrase in its caption; None where it has no own tokens."""
    start = segment.caption.find(thing.phrase)
    tokenizer, end = compressor.alignable[2], start + len(thing.phrase)
    before, through = (ids_of(tokenizer, segment.caption[:to].rstrip()) for to in (start, end))
    fits = start >= 0 and len(before) < len(through) <= len(ids) and torch.equal(ids[: len(through)], through)
    return (len(before), len(through) - 1) if fits and torch.equal(ids[: len(before)], before) else None
