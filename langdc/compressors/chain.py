"""Several compressors one after the other. Letters: T frames, H W patch grid, N tokens kept."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from langdc.compressors.base import compressors
from langdc.interfaces import TokenCompressor
from langdc.types import Compressed, Context, FeatureGrid, VideoFeatures, VideoTokens


@compressors.register("chain")
class Chain(TokenCompressor):
    """Compress with each of `members` in turn: `chain([{"name": "dpselect", "keep": 0.5}, {"name": "vidcom2", ...}])`.

    What a member passes on must be a grid again: every member but the last keeps whole frames, or the same number of
    tokens of each, which the next one gets as frames of one row. `source` indexes the first grid; anchors are those of
    the first member that sets any. After a last member that merges, segments count the frames that it was given.
    Where the first member is a `pool`, the next one chooses among its tokens, of all streams; they have no `source`.
    """

    def __init__(
        self, members: Sequence[Mapping[str, Any] | TokenCompressor], frames_per_segment: int | None = None
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("A chain of no compressors; give at least one, such as {name: vidcom2, keep: 0.25}.")
        given = {} if frames_per_segment is None else {"frames_per_segment": frames_per_segment}
        built = [m if isinstance(m, TokenCompressor) else compressors.of({**given, **m}) for m in members]
        # a chain in a chain as its members, or what follows its pool would be left out
        built = [each for m in built for each in (m.members if isinstance(m, Chain) else [m])]
        self.members: Any = torch.nn.ModuleList(built)
        counts = built[len(built) > 1 and hasattr(built[0], "pooled")]  # whose segments the tokens have
        self.frames_per_segment = counts.frames_per_segment
        if hasattr(built[0], "pooled"):  # as of a pool alone: what another method chooses among
            self.pooled = built[0].pooled
        for member in built[1:]:
            if "encoder" in member.needs:
                raise ValueError(
                    f"{type(member).__name__} reads the encoder's own grids, which the members of a chain before it "
                    "leave as they are. Use it without a chain."
                )
        self.needs = frozenset().union(*(member.needs for member in built))
        named = [name for member in built for name in sorted(member.losses)]
        if len(set(named)) < len(named):
            raise ValueError(f"Two members of a chain have a loss of the same name: {', '.join(named)}.")
        self.losses = frozenset(named)

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        results: list[Compressed] = []
        tokens: list[VideoTokens] = []
        pooled = len(self.members) > 1 and hasattr(self.members[0], "pooled")
        if pooled:
            videos = list(map(self.members[0].pooled, videos))
        for index, member in list(enumerate(self.members))[pooled:]:
            given = self._context(index, context)
            before = list(map(_as_grid, tokens, videos)) if results else videos
            after = member(before, given)
            if "tokens" not in given.wanted:
                results, tokens = [*results, after], []
                break
            tokens = list(map(_through, tokens, after.tokens)) if results else after.tokens
            results.append(after)
        if pooled:
            tokens = [replace(each, source=None) for each in tokens]
        losses = {name: loss for result in results for name, loss in result.losses.items()}
        ids = next((result.ids for result in results if result.ids is not None), None)
        known = [result.work for result in results if result.work is not None]
        work = [[part for each in per_video for part in each] for per_video in zip(*known, strict=True)]
        return Compressed(tokens, losses, ids, results[0].states, work if known else None)

    def _context(self, index: int, context: Context) -> Context:
        """The context of a member: all but the last make tokens for the next one; states are those of the first."""
        wanted, targets = context.wanted, context.targets
        if index + 1 < len(self.members) and wanted != {"states"}:
            wanted = wanted | {"tokens"}
        if index:
            wanted = wanted - {"states"}
            targets = {name: target for name, target in targets.items() if name != "states"}
        return replace(context, wanted=wanted, targets=targets)

    def frozen_identity(self, context: Context) -> str | None:
        return self.members[0].frozen_identity(context)

    def text(self, ids: Tensor) -> str:
        writers = [member for member in self.members if type(member).text is not TokenCompressor.text]
        return writers[0].text(ids) if writers else super().text(ids)

    def loss_counts(self, targets: Mapping[str, Any]) -> Mapping[str, int]:
        return {name: count for member in self.members for name, count in member.loss_counts(targets).items()}

    def targets(self, record: Any) -> Mapping[str, Any]:
        return {name: target for member in self.members for name, target in member.targets(record).items()}


def _through(before: VideoTokens, then: VideoTokens) -> VideoTokens:
    """The tokens `then` that a member kept or made of `before`, with `source` and segments of the first grid."""
    if then.source is None:
        return then
    left = replace(before.take(then.source), values=then.values, extra=then.extra)
    return left if left.anchor is not None else replace(left, anchor=then.anchor)


def _as_grid(tokens: VideoTokens, video: VideoFeatures) -> VideoFeatures:
    """Kept tokens as a video again; ValueError unless each frame that is left has as many."""
    if len(video.projected) != 1 or tokens.source is None:
        raise ValueError(
            "A chain goes through one stream of kept tokens; merged ones or two streams have no frames. Put a member "
            "that merges last, a pool first, and one member only after a pool of two streams."
        )
    height, width = video.projected[0].values.shape[1:3]
    frame = tokens.source // (height * width)
    kept, counts = frame.unique_consecutive(return_counts=True)
    if (counts != counts[0]).any():
        raise ValueError(
            f"After this member frames have between {int(counts.min())} and {int(counts.max())} tokens; the next "
            "member of a chain needs the same number of each. Put it first, or last."
        )
    size = int(counts[0])
    shape = (len(kept), height, width) if size == height * width else (len(kept), 1, size)
    saliency = video.projected[0].saliency
    grid = FeatureGrid(
        tokens.values.unflatten(0, shape),
        None if saliency is None else saliency.flatten()[tokens.source].unflatten(0, shape),
        tuple(e.unflatten(0, shape) for e in tokens.extra),
    )
    return VideoFeatures((grid,), video.encoder, video.seconds[kept.to(video.seconds.device)], video.question)
