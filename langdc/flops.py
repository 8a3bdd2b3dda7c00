"""How many floating-point operations a model's parts take, by closed form.

A multiply-add counts two. Counted: matrix products of encoders, projectors, captioner and language model, attention
included. Not counted: norms, activations, softmax, embedding look-ups, resizing. Letters: T frames, S segments.
"""

from collections.abc import Sequence

from torch import nn
from transformers import PretrainedConfig

from langdc.compressors.langdc import LangDC
from langdc.interfaces import Host, LearnedCompressor, TokenCompressor
from langdc.metering import lm_head_flops, transformer_flops
from langdc.model import VideoModel


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


def project_flops(projectors: nn.ModuleDict, host: Host, frames: int) -> float:
    """One projector per stream over every patch of T frames."""
    return sum(linear_flops(projectors[name], frames * side**2) for name, side in host.stream_sides.items())


def caption_flops(compressor: LangDC, host: Host, frames: int, lengths: list[int], given: bool = False) -> float:
    """Projecting and captioning T frames. `lengths`: caption tokens per segment; `given`: read, not written."""
    config = compressor.captioner.language_model.config
    prompt = len(compressor.captioner.before) + len(compressor.captioner.after)
    total = project_flops(compressor.projectors, host, frames)
    for number, length in enumerate(lengths):
        held = min(compressor.frames_per_segment, frames - number * compressor.frames_per_segment)
        start = prompt + held * sum(side**2 for side in compressor.pool.values())
        if given:
            total += language_model_flops(config, start + length, predictions=length + 1)
            continue
        total += language_model_flops(config, start)
        total += sum(language_model_flops(config, 1, start + done) for done in range(length))
    return total


def compress_flops(
    model: VideoModel, compressor: TokenCompressor, frames: int, captions: list[list[int]] | list[str] | None
) -> float:
    """From encoder grids to tokens in host width, for one video. `captions` as text or as ids, if there are any."""
    if not isinstance(compressor, LangDC):
        patches = {name: side**2 for name, side in model.host.stream_sides.items()}
        own = compressor.flops(frames, patches) if isinstance(compressor, LearnedCompressor) else 0.0
        projects = "main" in compressor.needs
        return own + (project_flops(model.host.projectors, model.host, frames) if projects else 0.0)
    lengths = [len(compressor.captioner.encode(c)) if isinstance(c, str) else len(c) for c in captions or []]
    total = caption_flops(compressor, model.host, frames, lengths)
    total += linear_flops(compressor.post_projector, sum(lengths))
    if compressor.base is not None:
        total += project_flops(model.host.projectors, model.host, frames)
    return total


def answer_flops(host: Host, prompt: int, written: int) -> dict[str, float]:
    """Reading a prompt up to the first token, and writing the rest of the reply."""
    return reading_flops(host, [(prompt, 0)], prompt, written)


def reading_flops(host: Host, calls: Sequence[tuple[int, float]], held: float, written: int) -> dict[str, float]:
    """As `answer_flops`, for a prompt read in `calls` (tokens, keys before them) that left `held` keys per layer."""
    config = host.language_model.config.get_text_config()
    read = sum(language_model_flops(config, new, past, predictions=0) for new, past in calls)
    rest = sum(language_model_flops(config, 1, held + done) for done in range(written))
    return {"prefill": read + language_model_flops(config, 0), "generate": rest}
