"""LangDC: each segment becomes the hidden states with which a captioner reads its caption.

Letters: T frames, H W patch grid, C encoder width, Z captioner width, D backbone width, S segments, N tokens.
Source: LangDC (arXiv 2509.00969), section 4; "CapPruner" there is the captioner, "BasePruner" the base.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from langdc.captioner import Captioner, SoftToken
from langdc.compressors.base import compressors, encoder_values, segment_length
from langdc.hashing import module_hash, text_hash
from langdc.interfaces import TokenCompressor
from langdc.projectors import Vectors, average_pool, build_projector, project_ragged
from langdc.sources import Source
from langdc.types import Compressed, Context, LanguageWork, VideoFeatures, VideoTokens

Item = TypeVar("Item")


@compressors.register("langdc")
class LangDC(TokenCompressor):
    """Caption every segment; its tokens are the projected states of the caption's tokens.

    `streams`: encoder widths by name and `width`: the backbone's, both filled in from the backbone. `pool`: side per
    stream of the captioner's visual tokens (12 and 8 at full size: 832 per segment; 0 leaves a stream out).
    `captioner`: source of the light language model; `prompt`, `layer`, `soft_token`, `max_soft_tokens` as in
    `Captioner`. `base`: {"name": ..., ...} of a compressor whose tokens come first (the dual form), None for captions
    only. `segment_marker`: a learned token before each segment's (ours; the paper has none), for up to `max_segments`
    segments. `grounded` (ours): adds to each token, through a map that starts at zero, a mean of unit encoder features,
    and of step, row and column, weighted by the attention of its state in the layer above: of all heads, or of these.

    With soft_token="released" all segments of a video take as many positions as the longest one, as in the authors'
    code: the others are padded; the prompt does not attend to padding, the reply does. Captions written in the dual
    form have no padding there, and lose their last state where no padding would follow.

    States come from `Context.targets["states"]`, else from `Context.targets["captions"]` (ids [n] of each segment, per
    video; None for a blank video), else from captions that are written greedily. The loss "caption", in nats summed
    over tokens, is made of given captions while the captioner or its projectors are trained.
    """

    losses = frozenset({"caption"})
    paper = "arXiv 2509.00969"

    def __init__(
        self,
        width: int,
        streams: dict[str, int],
        captioner: Source,
        prompt: str,
        layer: int,
        pool: list[int],
        soft_token: SoftToken = "at",
        max_soft_tokens: int = 128,
        captioner_tokenizer: str | None = None,
        projector: str = "mlp2x_gelu",
        post_projector: str = "linear",
        base: dict | None = None,
        segment_marker: bool = False,
        max_segments: int = 64,
        grounded: bool | list[int] = False,
        frames_per_segment: int = 4,
        attention: str = "sdpa",
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if len(pool) != len(streams):
            raise ValueError(f"pool has {len(pool)} sides, the backbone has the streams {', '.join(streams)}.")
        if not any(pool):
            raise ValueError(f"pool is {pool}, which leaves every stream out; give a positive side, such as [12, 8].")
        self.pool, self.frames_per_segment = dict(zip(streams, pool, strict=True)), frames_per_segment
        settings = (prompt, layer, soft_token, max_soft_tokens, captioner_tokenizer, attention, compiled)
        self.captioner = Captioner(captioner, *settings)
        inner = self.captioner.width
        self.projectors = nn.ModuleDict({n: build_projector(projector, wide, inner) for n, wide in streams.items()})
        self.post_projector = build_projector(post_projector, self.captioner.width, width)
        self.segment_marker = Vectors(max_segments, width) if segment_marker else None
        self.heads = grounded if isinstance(grounded, list) else None
        self.grounding: nn.Linear | None = None
        if grounded is not False:
            self.captioner.check_looks(self.heads)
            seen = sum(wide for name, wide in streams.items() if self.pool[name])
            self.grounding = nn.Linear(seen + 3, width, bias=False)
            nn.init.zeros_(self.grounding.weight)
        self.base = compressors.of(base) if base is not None else None
        of_base = self.base.needs if self.base is not None else frozenset()
        self.needs, self.needs_with_states = of_base | {"encoder"}, of_base

    def visual(self, videos: list[VideoFeatures]) -> list[Tensor]:
        """The captioner's visual tokens of every segment: per segment, all frames of each stream in turn [n,Z]."""
        streams = []
        for name, projector in self.projectors.items():
            if self.pool[name]:
                projected = project_ragged(projector, encoder_values(videos, name))
                streams.append([part.flatten(0, 2) for part in self._pooled(videos, name, projected)])
        return [torch.cat(parts) for parts in zip(*streams, strict=True)]

    def _pooled(self, videos: list[VideoFeatures], stream: str, grids: list[Tensor]) -> list[Tensor]:
        """The grids [T,H,W,*] of a stream, pooled, as one per segment."""
        pooled = [average_pool(grid, self.pool[stream]) for grid in grids]
        steps = [segment_length(video, self.frames_per_segment) for video in videos]
        return list(chain.from_iterable(map(Tensor.split, pooled, steps)))

    def segments(self, video: VideoFeatures) -> int:
        """S of a video."""
        steps = len(encoder_values([video], next(iter(self.projectors)))[0])
        return -(-steps // segment_length(video, self.frames_per_segment))

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        if not context.wanted & {"tokens", "states", *self._learnable()}:
            return Compressed([])
        result = self._captioned(videos, context)
        if "tokens" not in context.wanted or result.states is None:
            return result
        counts = map(self.segments, videos)
        states = [self._padded(*each) for each in zip(result.states, counts, strict=True)]
        return replace(result, tokens=self._tokens(videos, states, context))

    def targets(self, record: Any) -> Mapping[str, Any]:
        if not record.segments:
            return {}
        return {"captions": [self.captioner.encode(segment.caption) for segment in record.segments]}

    def loss_counts(self, targets: Mapping[str, Any]) -> Mapping[str, int]:
        names = self._learnable() if "captions" in targets else ()
        return {name: sum(len(ids) + 1 for ids in targets["captions"]) for name in names}

    @property
    def alignable(self) -> tuple[nn.Module, nn.Parameter | None, PreTrainedTokenizerBase]:
        """For `langdc.train.objectives.align`: the map from states to tokens, markers, and the captions' tokenizer."""
        markers = None if self.segment_marker is None else self.segment_marker.weight
        return self.post_projector, markers, self.captioner.tokenizer

    def layers(self, video: VideoFeatures, captions: list[Tensor]) -> list[list[Tensor]]:
        """For `langdc probe`: `Captioner.layers` of a video's given captions (ids [n] of each segment)."""
        return self.captioner.layers(self.visual([video]), captions)

    def text(self, ids: Tensor) -> str:
        return self.captioner.decode(ids)

    def frozen_identity(self, context: Context) -> str | None:
        if self._learnable():
            return None
        part = self.captioner
        settings = [self.base is None, self.pool, self.frames_per_segment]
        settings += [part.layer, part.soft_token, part.max_soft_tokens, part.end]
        prompt = [part.before.tolist(), part.after.tolist()]
        settings += [] if self.grounding is None else ["grounded", self.heads]
        weights = module_hash(part, self.projectors)
        return text_hash(json.dumps([*settings, prompt, "captions" in context.targets, weights]))

    def _learnable(self) -> frozenset[str]:
        """The losses that train anything."""
        weights = chain(self.captioner.parameters(), self.projectors.parameters())
        return self.losses if any(weight.requires_grad for weight in weights) else frozenset()

    def _captioned(self, videos: list[VideoFeatures], context: Context) -> Compressed:
        """The states of each segment: known ones, else those of the given captions, else of captions written now."""
        counts = [self.segments(video) for video in videos]
        if (known := context.targets.get("states")) is not None:
            pairs = zip(known, counts, strict=True)
            return Compressed([], states=[self._known(states, count) for states, count in pairs])
        if (given := context.targets.get("captions")) is None:
            return self._written(videos, counts, context.synced)
        captions = [_checked(ids, count) for ids, count in zip(given, counts, strict=True)]
        visual, flat = self.visual(videos), list(chain.from_iterable(captions))
        losses, scored = {}, bool(self._learnable() & context.wanted)
        output = (self.captioner.supervised if scored else self.captioner.read)(visual, flat)
        if scored:
            losses = {"caption": (output.loss, output.targets)}
        states = self._grounded(videos, visual, output) if context.wanted & {"tokens", "states"} else output.states
        work = self._work(visual, flat, counts, "scored" if scored else "read")
        return Compressed([], losses, captions, _grouped(states, counts), work)

    def _work(
        self, visual: list[Tensor], ids: list[Tensor], counts: list[int], how: Literal["scored", "read", "written"]
    ) -> list[list[LanguageWork]]:
        return _grouped([self.captioner.work(v, len(i), how) for v, i in zip(visual, ids, strict=True)], counts)

    def _written(self, videos: list[VideoFeatures], counts: list[int], synced: bool) -> Compressed:
        """Captions written greedily, without gradients."""
        with torch.no_grad(), _evaluating(self.captioner):
            visual = self.visual(videos)
            output = self.captioner.write(visual, synced)
            states = _grouped(self._grounded(videos, visual, output), counts)
        if output.padding is not None:
            steps = [min(len(ids) + 1, self.captioner.max_soft_tokens) for ids in output.ids]
            padding = [F.pad(each, (0, self._width - each.shape[1])) for each in output.padding]  # has no grounding
            triples = zip(states, _grouped(padding, counts), _grouped(steps, counts), strict=True)
            states = [self._released(*each) for each in triples]
        work = self._work(visual, output.ids, counts, "written")
        return Compressed([], ids=_grouped(output.ids, counts), states=states, work=work)

    @property
    def _width(self) -> int:
        """Of a state, with its grounding where there is one."""
        return self.captioner.width + (0 if self.grounding is None else self.grounding.in_features)

    def _grounded(self, videos: list[VideoFeatures], visual: list[Tensor], output: Any) -> list[Tensor]:
        """The states of each segment [n,Z]; with `grounded` also the means that each one attends to: wider."""
        if self.grounding is None:
            return output.states
        names = [name for name, side in self.pool.items() if side]
        streams = [self._pooled(videos, name, encoder_values(videos, name)) for name in names]
        looks, found = self.captioner.looks(visual, output, self.heads), []
        for states, look, *grids in zip(output.states, looks, *streams, strict=True):
            shares = look.split([grid.shape[:3].numel() for grid in grids], 1)
            units = [F.normalize(grid.flatten(0, 2).float(), dim=1) for grid in grids]
            means = [share @ unit for share, unit in zip(shares, units, strict=True)]
            place = look @ torch.cat([_places(grid) for grid in grids])
            found.append(torch.cat([part.to(states.dtype) for part in (states, *means, place)], 1))
        return found

    def _padded(self, states: list[Tensor], segments: int) -> list[Tensor]:
        """The states of a video's segments; if "released", then the padding of each, zeros behind given captions."""
        if self.captioner.soft_token != "released" or len(states) > segments:
            return states
        longest = max(map(len, states))
        return [*states, *(state.new_zeros(longest - len(state), state.shape[1]) for state in states)]

    def _released(self, states: list[Tensor], after: list[Tensor], steps: list[int]) -> list[Tensor]:
        """The states of a video's captions, then the padding of each, taken from `after`.
        `steps`: how many steps each caption took, its end included.
        """
        longest = max(steps)
        if self.base is not None:
            return [*(state[: longest - 1] for state in states), *(state[:0] for state in states)]
        return [*states, *(rest[: longest - len(state)] for state, rest in zip(states, after, strict=True))]

    def _known(self, states: list[Tensor] | None, count: int) -> list[Tensor]:
        """Stored states on the device of what reads them; states of length 0 for a blank video."""
        weight = next(chain(self.post_projector.parameters(), self.captioner.parameters()))
        if states is None:
            return [weight.new_empty(0, self._width)] * count
        return [state.to(weight.device, non_blocking=True).to(weight.dtype) for state in states]

    def _tokens(self, videos: list[VideoFeatures], states: list[list[Tensor]], context: Context) -> list[VideoTokens]:
        """The tokens of captions whose states are known, after those of the base."""
        flat = list(chain.from_iterable(states))
        state, seen = torch.cat(flat).tensor_split([self.captioner.width], 1)
        projected = self.post_projector(state)
        if self.grounding is not None:
            projected = projected + self.grounding(seen)
        projected = projected.split([len(state) for state in flat])
        markers = None if self.segment_marker is None else self.segment_marker()
        grouped = _grouped(list(projected), [len(per_video) for per_video in states])
        tokens = [self._caption_tokens(segments, markers) for segments in grouped]
        if self.base is None:
            return tokens
        first = self.base(videos, replace(context, wanted=frozenset({"tokens"}), targets={})).tokens
        return [_join(base, captions) for base, captions in zip(first, tokens, strict=True)]

    def _caption_tokens(self, segments: list[Tensor], markers: Tensor | None) -> VideoTokens:
        padding = []
        if self.captioner.soft_token == "released":
            segments, padding = segments[: len(segments) // 2], segments[len(segments) // 2 :]
        if markers is not None:
            if len(segments) > len(markers):
                raise ValueError(f"A video of {len(segments)} segments; max_segments is {len(markers)}.")
            markers = markers.to(segments[0].dtype)
            segments = [torch.cat([markers[i : i + 1], part]) for i, part in enumerate(segments)]
        parts = list(chain.from_iterable(zip(segments, padding, strict=True))) if padding else segments
        lengths = torch.tensor([len(part) for part in parts])
        order = torch.arange(len(parts)).repeat_interleave(lengths).to(parts[0].device, non_blocking=True)
        if not sum(map(len, padding)):
            return VideoTokens(torch.cat(parts), order // 2 if padding else order)
        return VideoTokens(torch.cat(parts), order // 2, padding=order % 2 == 1)


def _places(grid: Tensor) -> Tensor:
    """Step, row and column of each token of a segment's grid [t,r,c,C], each from -1 to 1: [t*r*c,3]."""
    middles = [(torch.arange(n, device=grid.device) * 2 + 1) / n - 1 for n in grid.shape[:3]]
    return torch.cartesian_prod(*middles)


def _join(first: VideoTokens, then: VideoTokens) -> VideoTokens:
    values, segment = torch.cat([first.values, then.values]), torch.cat([first.segment, then.segment])
    after = then.padding
    return VideoTokens(values, segment, padding=None if after is None else F.pad(after, (len(first), 0)))


def _grouped(flat: list[Item], counts: list[int]) -> list[list[Item]]:
    """A flat list as one list per video."""
    items = iter(flat)
    return [list(islice(items, count)) for count in counts]


def _checked(captions: list[Tensor] | None, segments: int) -> list[Tensor]:
    """The captions of a video, one per segment; empty ones for a blank video. ValueError for another number."""
    if captions is None:
        return [torch.empty(0, dtype=torch.long)] * segments
    if len(captions) != segments:
        raise ValueError(
            f"{len(captions)} captions for a video of {segments} segments; the data must have one caption per segment."
        )
    return captions


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode: gradient checkpointing turns the cache off in training mode."""
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)
