"""A backbone with a compressor, and the one way from videos and prompts to logits.

Letters: T frames, H W patch grid, B prompts, M length, D backbone width, n positions, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from langdc.attention import causal_rows
from langdc.backbones import backbones
from langdc.backbones.chat import IGNORED
from langdc.backbones.inputs import text_inputs
from langdc.compressors import compressors
from langdc.config import MemberConfig, ModelConfig
from langdc.flops import uncounted
from langdc.interfaces import Backbone, TokenCompressor
from langdc.types import Compressed, Context, FeatureGrid, TextInputs, VideoBatch, VideoFeatures, VideoTokens


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """`logits` [n,V] and `labels` [n] at the positions to learn; of prompts without labels, logits [B,V] after each."""

    compressed: Compressed
    inputs: TextInputs | None = None
    logits: Tensor | None = None
    labels: Tensor | None = None


class VideoModel(nn.Module):
    """A backbone with a compressor; `config` is what it was built from.

    `text`: whether the language model is needed; without it the backbone encodes and projects only.
    `untrained`: after loading a checkpoint, the names of tensors of the backbone's projectors and places that no run
    has trained.
    """

    untrained: frozenset[str] = frozenset()

    def __init__(self, config: ModelConfig, text: bool = True) -> None:
        super().__init__()
        self.config = config
        given = {} if text else {"text": False}
        self.backbone = backbones.build(config.backbone.name, **config.backbone.settings, **given)
        self.compressor = build_compressor(config.compressor, self.backbone)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move or cast all weights but those that are absent."""
        with hidden(self, is_absent):
            return super()._apply(fn, recurse)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        parts = (
            self.compressor,
            *self.backbone.encoders.values(),
        )  # in training encoders may be out of the module tree
        return next(parameter for part in parts for parameter in part.parameters()).device

    def features(
        self, batch: VideoBatch, needs: frozenset[str] | None = None, synced: bool = False
    ) -> list[VideoFeatures]:
        """Features of a batch's videos, as far as `needs` asks; by default what the compressor needs."""
        if needs is None:
            reduced = self.compressor.needs_with_states if "states" in batch.targets else None
            needs = self.compressor.needs if reduced is None else reduced
        encoded = batch.raw or self.backbone.encode(list(batch.frames), needs, synced)
        encoded = [{name: self._placed(grid) for name, grid in grids.items()} for grids in encoded]
        found = self.backbone.project(encoded, list(batch.seconds), needs)
        return self.with_questions(found, batch.questions) if "question" in needs else found

    def _placed(self, grid: FeatureGrid) -> FeatureGrid:
        """A stored grid on the model's device, in the type that its consumers compute in."""
        weights = (*self.backbone.projectors.parameters(), *self.compressor.parameters())
        dtype = weights[0].dtype if weights else self.backbone.language_model.dtype
        return grid.to(self.device, dtype)

    def with_questions(
        self, videos: Sequence[VideoFeatures], questions: Sequence[Tensor] | None
    ) -> list[VideoFeatures]:
        """Videos with the embedded question about each; `questions`: token ids [n] per video."""
        if questions is None or len(questions) != len(videos):
            given = 0 if questions is None else len(questions)
            raise ValueError(
                f"The compressor needs the question asked about each video: {len(videos)} videos, {given} questions "
                "were given. Ask one question a sequence (questions_per_video: 1)."
            )
        if not videos:
            return []
        embed = self.backbone.language_model.get_input_embeddings()
        words = embed(torch.cat(list(questions)).to(self.device)).split([len(ids) for ids in questions])
        return [replace(video, question=word) for video, word in zip(videos, words, strict=True)]

    def compress(
        self, videos: list[VideoFeatures], context: Context = Context(), compressor: TokenCompressor | None = None
    ) -> Compressed:
        """Compress videos, by default with the model's own compressor, and add what the backbone expects: newlines."""
        if not videos:
            return Compressed([])
        compressor = self.compressor if compressor is None else compressor
        found, name, width = compressor(videos, context), type(compressor).__name__, self.backbone.width
        if not isinstance(found, Compressed):
            raise ValueError(f"{name}.forward returned {type(found).__name__}; it returns langdc.types.Compressed.")
        if "tokens" not in context.wanted:
            return found
        if len(found.tokens) != len(videos):
            raise ValueError(f"{name} returned tokens of {len(found.tokens)} of {len(videos)} videos.")
        if wrong := {tokens.values.shape[1] for tokens in found.tokens} - {width}:
            raise ValueError(f"{name} returned tokens of width {min(wrong)}; the backbone reads tokens of {width}.")
        tokens = map(self.backbone.append_newline_tokens, found.tokens, videos)
        return replace(found, tokens=list(tokens))

    def inputs(self, batch: VideoBatch, tokens: list[VideoTokens], left: bool = False) -> TextInputs:
        """What the language model reads of a batch; `tokens` of its videos."""
        shown = [[tokens[number] for number in numbers] for numbers in batch.shows]
        return text_inputs(self.backbone, list(batch.prompts), shown, left, batch.packed, batch.where)

    def forward(
        self,
        batch: VideoBatch,
        context: Context = Context(),
        compressor: TokenCompressor | None = None,
        videos: list[VideoFeatures] | None = None,
    ) -> ModelOutput:
        """Videos, or their known features `videos`, to logits; `compressor`: another one than the model's own."""
        videos = self.features(batch, synced=context.synced) if videos is None else videos
        compressed = self.compress(videos, replace(context, targets={**context.targets, **batch.targets}), compressor)
        inputs = self.inputs(batch, compressed.tokens)
        if batch.blank:
            # zero, added to the input, so that gradients flow through the same modules on every rank
            unused = sum(tokens.values.sum() for tokens in compressed.tokens) * 0
            inputs = replace(inputs, embeds=inputs.embeds + unused)
        return self._read(compressed, inputs)

    @uncounted()
    def _read(self, compressed: Compressed, inputs: TextInputs) -> ModelOutput:
        text: Any = self.backbone.text_model
        if inputs.labels is None:
            states = text(**inputs.arguments, use_cache=False).last_hidden_state
            order = torch.arange(inputs.positions.shape[2], device=states.device)
            last = (inputs.mask * order).argmax(1)
            return ModelOutput(compressed, inputs, self.backbone.lm_head(states[torch.arange(len(last)), last]))
        padding = any(item.padding is not None for item in inputs.spliced)
        with nullcontext() if padding else causal_rows(text.config, inputs.embeds.shape[1]):
            states = text(**inputs.arguments, use_cache=False).last_hidden_state
        labels = F.pad(inputs.labels[:, 1:], (0, 1), value=IGNORED).flatten()
        places = (labels != IGNORED).nonzero()[:, 0]  # on the CPU, where labels are
        numbers = [item.sample_id for item in inputs.spliced if item.sample_id is not None]
        if numbers:  # of packed rows, in the order of the samples, as a teacher's
            places = places[pad_sequence(numbers, batch_first=True).flatten()[places].argsort(stable=True)]
        labels, places = (each.to(states.device, non_blocking=True) for each in (labels[places], places))
        logits = self.backbone.lm_head(states.flatten(0, 1).index_select(0, places))
        return ModelOutput(compressed, inputs, logits, labels)

    def check_serves(self, compressor: TokenCompressor) -> None:
        """ValueError for a compressor of visual tokens where the projectors were never trained, or the language model
        learned to read what another compressor makes of them.
        """
        if "projected" not in compressor.needs:
            return
        if self.untrained:
            raise ValueError(
                f"{type(compressor).__name__} takes the features of the backbone's projectors, which this checkpoint "
                f"does not hold: it was trained with {self.config.compressor.name!r}, which does not use them "
                f"({len(self.untrained)} tensors, such as {min(self.untrained)}, would be random). Take a checkpoint "
                "that was trained with a compressor of these features, such as 'pool'."
            )
        own = self.compressor
        if compressor is not own and not hasattr(own, "pooled") and any(True for _ in own.parameters()):
            raise ValueError(
                f"{type(compressor).__name__} chooses among visual tokens, and the language model of this checkpoint "
                f"learned to read those of {type(own).__name__}. Take a checkpoint that was trained with 'pool'."
            )


@contextmanager
def hidden(module: nn.Module, chosen: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Leave chosen parts out of a module's tree for a while: nothing moves, saves or wraps them; they can be called."""
    before: list[tuple[nn.Module, dict[str, Any], list[str]]] = []

    def hide(parent: nn.Module) -> None:
        children = dict(parent._modules)
        names = [name for name, child in children.items() if child is not None and chosen(child)]
        if names:
            before.append((parent, children, names))
        for name, child in children.items():
            if name in names:
                del parent._modules[name]
                parent.__dict__[name] = child
            elif child is not None:
                hide(child)

    hide(module)
    try:
        yield
    finally:
        for parent, children, names in before:
            for name in names:
                del parent.__dict__[name]
            parent._modules.clear()
            parent._modules.update(children)


def is_absent(module: nn.Module) -> bool:
    """Whether a module was left on the meta device, because nothing needs its weights."""
    parameters = list(module.parameters())
    return bool(parameters) and all(parameter.is_meta for parameter in parameters)


def build_compressor(config: MemberConfig, backbone: Backbone) -> TokenCompressor:
    """Build a compressor; the backbone gives width, streams and frames_per_segment where the class asks for them.

    Compressors in its settings, such as the members of a chain, get them too.
    """
    steps = backbone.frames_per_segment // backbone.frames_per_step
    known = {"width": backbone.width, "streams": backbone.stream_widths, "frames_per_segment": steps}
    return compressors.build(config.name, **_filled(config.name, config.settings, known))


def build_training_free(config: MemberConfig, backbone: Backbone) -> TokenCompressor:
    """As `build_compressor`, for a model that was trained with another one; ValueError for one that has weights."""
    learned = "width" in inspect.signature(compressors.get(config.name)).parameters  # said before what it lacks
    compressor = None if learned else build_compressor(config, backbone)
    if compressor is None or any(True for _ in compressor.parameters()):
        raise ValueError(
            f"The compressor {config.name!r} has weights of its own, which this model does not hold: they would be "
            "random. Give the checkpoint that it was trained in, without a compressor."
        )
    return compressor


def _filled(name: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(compressors.get(name)).parameters
    inner = {key: _filled_below(value, known) for key, value in settings.items()}
    return {**{key: value for key, value in known.items() if key in parameters}, **inner}


def _filled_below(value: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_filled_below(each, known) for each in value]
    if isinstance(value, Mapping) and value.get("name") in compressors.names():
        return _filled(value["name"], value, known)
    return value
