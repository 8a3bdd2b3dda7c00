"""How many floating-point operations a model's parts take, by closed form.

A multiply-add counts two. Counted: matrix products and convolutions of encoders, projectors, compressors, captioner and
language model, attention included. Not counted: norms, activations, softmax, rotations, similarities made of
element-wise products, sums of rows, embedding look-ups, resizing. docs/flops.md has the list by stage.

Letters: S segments, n tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn
from transformers import PretrainedConfig

from langdc.compressors.langdc import LangDC
from langdc.decoding import CHECK_EVERY
from langdc.interfaces import Backbone, TokenCompressor
from langdc.metering import lm_head_flops, transformer_flops
from langdc.types import FeatureGrid, VideoFeatures


def language_model_flops(config: PretrainedConfig, new: int, past: float = 0, predictions: int = 1) -> float:
    """Reading `new` tokens after `past` ones (on average over layers), with the head at `predictions` positions."""
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    blocks = transformer_flops(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=head_width,
        mlp_width=config.intermediate_size,
        new_tokens=new,
        past_tokens=past,
    )
    return blocks + lm_head_flops(config.hidden_size, config.vocab_size, predictions)


def linear_flops(module: nn.Module, rows: int) -> float:
    """All linear layers of a module, each applied to `rows` vectors."""
    return sum(2.0 * rows * m.in_features * m.out_features for m in module.modules() if isinstance(m, nn.Linear))


def project_flops(projectors: nn.ModuleDict, encoded: Mapping[str, FeatureGrid]) -> float:
    """One projector per stream over every place of a video's encoded grids; streams without one cost nothing."""
    return sum(
        linear_flops(projector, encoded[name].tokens) for name, projector in projectors.items() if name in encoded
    )


def caption_flops(
    compressor: LangDC,
    encoded: Mapping[str, FeatureGrid],
    lengths: Sequence[int],
    given: Literal["scored", "read"] | None = None,
) -> float:
    """Projecting and captioning a video. `lengths`: caption tokens of each segment.

    `given` captions are not written but "scored", every token of them predicted, or only "read" up to their states.
    """
    config = compressor.captioner.language_model.config
    frames = len(next(iter(encoded.values())).values)
    prompt = len(compressor.captioner.before) + len(compressor.captioner.after)
    of_frame = sum(side**2 for side in compressor.pool.values())
    size = compressor.frames_per_segment
    starts = [prompt + of_frame * min(size, frames - number * size) for number in range(len(lengths))]
    total = project_flops(compressor.projectors, encoded)
    if given is None:
        return total + writing_flops(config, max(starts), lengths, compressor.captioner.max_soft_tokens)
    whole = sum(
        language_model_flops(config, start + length, predictions=0)
        for start, length in zip(starts, lengths, strict=True)
    )
    if given == "read":
        return total + whole * compressor.captioner.depth / config.num_hidden_layers
    return total + whole + language_model_flops(config, 0, predictions=sum(lengths) + len(lengths))


def writing_flops(config: PretrainedConfig, start: int, lengths: Sequence[int], most: int) -> float:
    """Writing S captions of `lengths` tokens greedily, all after `start` others.

    All go on until the longest has ended and that was noticed, which it is every few steps; at most `most` are kept.
    """
    noticed = -(-(max(lengths) + 1) // CHECK_EVERY) * CHECK_EVERY
    later = min(most + 1, noticed) - 1
    each = language_model_flops(config, start)
    each += sum(language_model_flops(config, 1, start + done) for done in range(later))
    return len(lengths) * each


def compress_flops(
    backbone: Backbone, compressor: TokenCompressor, video: VideoFeatures, written: Sequence[int] = ()
) -> float:
    """From encoder grids to tokens in backbone width, for one video. `written`: caption tokens of each segment, if
    any.
    """
    total = project_flops(backbone.projectors, video.encoder) if video.projected else 0.0
    if not isinstance(compressor, LangDC):
        return total + compressor.flops(video)
    total += caption_flops(compressor, video.encoder, written)
    total += linear_flops(compressor.post_projector, sum(written))
    return total + (compressor.base.flops(video) if compressor.base is not None else 0.0)


def answer_flops(backbone: Backbone, prompt: int, steps: int) -> dict[str, float]:
    """Reading a prompt up to the first token, and `steps` more calls of the model for the rest of the reply."""
    return reading_flops(backbone, [(prompt, 0)], prompt, steps)


def reading_flops(
    backbone: Backbone, calls: Sequence[tuple[int, float]], held: float, steps: int, scoring: float = 0.0
) -> dict[str, float]:
    """As `answer_flops`, for a prompt read in `calls` (tokens, keys before them) that left `held` keys per layer.

    `scoring`: what a KV compressor took to say which.
    """
    config = backbone.language_model.config.get_text_config()
    read = sum(language_model_flops(config, new, past, predictions=0) for new, past in calls)
    rest = steps * language_model_flops(config, 1, held + (steps - 1) / 2)  # linear in the past, so the mean will do
    return {"prefill": read + language_model_flops(config, 0) + scoring, "generate": rest}
