"""What a training config makes of a record's text: is it too long, is there something to learn, do the marks fit."""

from collections.abc import Sequence
from typing import Any

import torch

from langdc.backbones.chat import IGNORED, conversation, turns
from langdc.checkpoint import named
from langdc.config import MemberConfig, RunConfig
from langdc.data.records import Record
from langdc.interfaces import Backbone
from langdc.model import VideoModel
from langdc.rope import position_limit
from langdc.train.objectives import objectives
from langdc.train.samples import Sample, usable, with_targets
from langdc.types import Context, FeatureGrid, Frames, FrameSpec, VideoBatch

Shape = Sequence[float]
"""Height, width and seconds; 0 seconds of an image."""


class Prompts:
    """The prompts that a run makes, with its tokenizer and the sizes of its model, whose weights are not loaded.

    Videos of one size and length, to a tenth of a second, count as equal: the first of them is looked into.
    """

    def __init__(self, config: RunConfig) -> None:
        self.train = config.train
        self.objective = objectives.build(config.objective.name, **config.objective.settings)
        model = named(config.model)
        settings = {name: value for name, value in model.backbone if name != "quantize"}  # which needs weights
        with torch.device("meta"):
            self.model = VideoModel(model.model_copy(update={"backbone": MemberConfig(**settings)}))
        self.limit = position_limit(self.model.backbone.language_model.config)
        self.unused = 0
        """Records of which the objective makes no sample."""
        self.text_only = False
        """Whether visual tokens could not be counted without weights."""
        self._specs: dict[tuple, FrameSpec] = {}
        self._tokens: dict[tuple, int] = {}

    def faults(self, record: Record, paths: Sequence[Any], shapes: Sequence[Shape], where: str) -> list[tuple]:
        """(kind, reason, whether it is fatal) of all that does not fit; `paths` and `shapes` of its media."""
        kept = usable(self.model, self.objective, self.train, [record])
        if not kept:
            self.unused += 1
            return []
        record, found = kept[0], list[tuple]()
        frames = [self._frames(*each) for each in zip(paths, record.shown, shapes, strict=True)]
        specs = tuple(spec for spec, _ in frames)
        try:
            with_targets(self.model, [Sample(record, specs, 0, where)], self.train, drop=not self.objective.reads)
        except ValueError as error:
            found.append(("targets", str(error), True))
        if not self.objective.reads:
            return found
        if not self.objective.own_replies and not all(question.answered for question in record.questions):
            found.append(("answer", "a question has no answer, which this objective learns", True))
        visual = sum(self._visual(record, video) for _, video in frames)
        return found + self._texts(record, [video for _, video in frames], visual)

    def _texts(self, record: Record, videos: Sequence[Frames], visual: int) -> list[tuple]:
        backbone, found = self.model.backbone, []
        asked = [conversation(q.prompt(), q.answer, len(videos)) for q in record.questions]
        if record.messages:
            asked = [turns([(turn.role, turn.content) for turn in record.messages], len(videos))]
        media = [backbone.outline(video) for video in videos]
        for messages in asked:
            try:
                prompt = backbone.prompt(messages, True, media, self.model.compressor.frames_per_segment)
            except ValueError as error:
                found.append(("prompt", str(error), True))
                continue
            assert prompt.labels is not None
            learned = (prompt.labels != IGNORED).nonzero()[:, 0]
            length = len(prompt.ids) + visual
            if self.limit is not None and length > self.limit:
                reason = f"a prompt of {length} tokens, {visual} of them visual; the language model has {self.limit}"
                found.append(("too long", f"{reason} positions", True))
            first = int(learned[0]) + visual if len(learned) else 0
            if not len(learned) or (self.limit is not None and first >= self.limit):
                found.append(("masked", "no token of the reply is learned within the positions of the model", True))
        return found

    def _frames(self, path: Any, medium: Any, shape: Shape) -> tuple[FrameSpec, Frames]:
        """Which frames are read of a medium, and black ones in their place."""
        height, width, seconds = shape
        bounds = (medium.start or 0.0, seconds if medium.end is None else medium.end)
        key = (height, width, round(bounds[1] - bounds[0], 1), bool(seconds), medium.fps)
        if key not in self._specs:
            self._specs[key] = self.model.backbone.frame_spec(path, medium.start, medium.end, medium.fps)
        spec = self._specs[key]
        count, size = spec.segments * spec.frames_per_segment, spec.size or (int(height), int(width))
        pixels = torch.zeros((), dtype=torch.uint8).expand(count, 3, *size)
        return spec, Frames(pixels, torch.linspace(*bounds, count, dtype=torch.float64))

    def _visual(self, record: Record, video: Frames) -> int:
        """Tokens that a video takes; 0, so that only text is counted, where it takes numbers to know."""
        key = tuple(video.pixels.shape)
        if key not in self._tokens:
            model, backbone, compressor = self.model, self.model.backbone, self.model.compressor
            context = Context(targets={name: [value] for name, value in compressor.targets(record).items()})
            exact = type(backbone).outline is not Backbone.outline
            question = [torch.zeros(8, dtype=torch.long)]
            try:
                with torch.device("meta" if not exact or any(True for _ in compressor.parameters()) else "cpu"):
                    if exact:
                        shapes = {name: grid.values.shape[:3] for name, grid in backbone.outline(video).encoder.items()}
                        sizes = {name: (*shape, backbone.stream_widths[name]) for name, shape in shapes.items()}
                        grids = {name: FeatureGrid(torch.rand(size)) for name, size in sizes.items()}
                        found = backbone.project([grids], [video.seconds], compressor.needs)
                        found = model.with_questions(found, question) if "question" in compressor.needs else found
                    else:
                        found = model.features(VideoBatch([], [video.seconds], questions=question, frames=[video]))
                    self._tokens[key] = len(model.compress(found, context).tokens[0])
            except (RuntimeError, NotImplementedError, ValueError, TypeError):
                self._tokens[key], self.text_only = 0, True
        return self._tokens[key]
