"""Several compressors one after the other.

Letters: T frames, H W patch grid, N tokens kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from langdc.compressors.base import compressors
from langdc.interfaces import TokenCompressor
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens


@compressors.register("chain")
class Chain(TokenCompressor):
    """Compress with each of `members` in turn: `chain([{"name": "dpselect", "keep": 0.5}, {"name": "vidcom2", ...}])`.

    What a member hands on has to be a grid again: every member but the last keeps whole frames, or the same number of
    tokens of each, in which case the next one sees frames of one row. `source` counts in the first grid; anchors are
    those of the first member that sets any. After a last member that merges, segments count in the frames it was given.
    """

    def __init__(
        self, members: Sequence[Mapping[str, Any] | TokenCompressor], frames_per_segment: int | None = None
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("A chain of no compressors; give at least one, such as {name: vidcom2, keep: 0.25}.")
        given = {} if frames_per_segment is None else {"frames_per_segment": frames_per_segment}
        built = [m if isinstance(m, TokenCompressor) else compressors.build(**{**given, **m}) for m in members]
        self.members = torch.nn.ModuleList(built)
        for member in built[1:]:
            if "encoder" in member.needs:
                raise ValueError(
                    f"{type(member).__name__} reads the encoder's own grids, which the members of a chain before it "
                    "leave as they are. Use it without a chain."
                )
        self.needs = frozenset().union(*(member.needs for member in built))  # pyright: ignore[reportAttributeAccessIssue]
        self.keeps_places = all(member.keeps_places for member in built)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, video: VideoFeatures) -> VideoTokens:
        first, *rest = self.members
        found = first(video)
        for member in rest:
            between = as_grid(found, video)
            then = member(between)
            found = _through(found, then)
        return found

    def flops(self, video: VideoFeatures) -> float:
        """What the members take; all but the last compress once more, for what the next one was given."""
        total = 0.0
        members: list[Any] = list(self.members)
        for member in members[:-1]:
            total += member.flops(video)
            video = as_grid(member(video), video)
        return total + members[-1].flops(video)


def _through(found: VideoTokens, then: VideoTokens) -> VideoTokens:
    """What is left of `found` after a member that kept or made `then` of it."""
    if then.source is None:
        return then
    left = replace(found.take(then.source), values=then.values, extra=then.extra)
    return left if left.anchor is not None else replace(left, anchor=then.anchor)


def as_grid(tokens: VideoTokens, video: VideoFeatures) -> VideoFeatures:
    """Kept tokens as a video again; ValueError unless each frame that is left has as many."""
    if len(video.projected) != 1 or tokens.source is None:
        raise ValueError("A chain goes through one stream of kept tokens; merged ones or two streams have no frames.")
    height, width = video.projected[0].values.shape[1:3]
    frame = tokens.source // (height * width)
    kept, counts = frame.unique_consecutive(return_counts=True)
    if (counts != counts[0]).any():
        raise ValueError(
            f"After this member frames have between {int(counts.min())} and {int(counts.max())} tokens; the next "
            "member of a chain needs the same number of each. Put it first, or last."
        )
    whole = int(counts[0]) == height * width
    shape = (len(kept), height, width) if whole else (len(kept), 1, int(counts[0]))
    saliency = video.projected[0].saliency
    grid = FeatureGrid(
        tokens.values.unflatten(0, shape),
        None if saliency is None else saliency.flatten()[tokens.source].unflatten(0, shape),
        tuple(e.unflatten(0, shape) for e in tokens.extra),
    )
    return VideoFeatures((grid,), video.encoder, video.seconds[kept.to(video.seconds.device)], video.question)
