"""The flags with which vLLM 0.33.0 does as a checkpoint that was tuned with one of its own compressors."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from langdc.backbones.qwen2_vl import Qwen2VL
from langdc.compressors.base import GridCompressor
from langdc.model import VideoModel
from langdc.modelfiles import reading

_METHODS = {"evs": ("released", ("qwen2_5_vl", "qwen3_vl")), "vidcom2": ("vllm", ("qwen3_vl",))}
"""Compressors that are in vLLM: the variant that keeps its tokens, and the models in which it has them."""
MODELS = frozenset(model for _, models in _METHODS.values() for model in models)
"""The models whose videos vLLM compresses."""
_MOST_FRAMES, _MOST_FPS = 768, 30  # of its readers of videos
_INSTEAD = (
    "Where tokens are numbered one after the other, its language model can be served all the same: export without "
    "--for vllm, serve that folder with --enable-prompt-embeds, and send it what langdc embed --for vllm writes."
)


def served(model: VideoModel) -> tuple[list[str], list[str]]:
    """Arguments of `vllm serve` after the folder, and what is to be known; ValueError for what vLLM does not do."""
    backbone, compressor, name = model.backbone, model.compressor, model.config.compressor.name
    if name not in _METHODS or not isinstance(compressor, GridCompressor):
        raise ValueError(f"vLLM compresses videos by {' and '.join(_METHODS)} alone, not by {name!r}. {_INSTEAD}")
    variant, models = _METHODS[name]
    kind = backbone.language_model.config.model_type
    if kind not in models or not isinstance(backbone, Qwen2VL):
        allowed = "; ".join(f"{method} in {' and '.join(each)}" for method, (_, each) in _METHODS.items())
        raise ValueError(f"vLLM does not compress videos of {kind} by {name!r}; it has {allowed}. {_INSTEAD}")
    keep = compressor.allowed.keep
    if compressor.variant != variant or keep is None:
        given = f"variant {compressor.variant!r} with keep={keep}, tokens={compressor.allowed.tokens}"
        raise ValueError(
            f"It was tuned with {name}, {given}. vLLM keeps what variant {variant!r} keeps of a fraction. "
            f"Start a run from it with compressor: {{name: {name}, keep: 0.25, variant: {variant}}}, and export that."
        )
    if kind == "qwen3_vl" and compressor.frames_per_segment != 1:
        raise ValueError(
            f"This checkpoint was tuned with one time before {compressor.frames_per_segment} steps; vLLM writes one "
            "before each. Start a run from it without the compressor's frames_per_segment, and export that."
        )
    if not isinstance(backbone.source, str):
        raise ValueError(
            "The model began with random weights, so no files of a processor belong to it; vLLM needs them."
        )
    if model.config.backbone.settings.get("tokenizer") is not None:
        raise ValueError(
            "The backbone's tokenizer is not that of its source, and vLLM reads one folder. Copy the tokenizer's files "
            "into the model's folder, and start a run from this checkpoint with that as source, without `tokenizer`."
        )
    step = backbone.frames_per_step
    most = -(-backbone.frames // step) * step
    if most > _MOST_FRAMES or (backbone.fps or 0) > _MOST_FPS:
        raise ValueError(
            f"vLLM reads {_MOST_FRAMES} frames of a video at most, and {_MOST_FPS} a second; this checkpoint was tuned "
            f"with frames: {backbone.frames}, fps: {backbone.fps}. Start a run from it with fewer, and export that."
        )
    read: dict[str, Any] = {"min_frames": most, "max_frames": most}
    if backbone.fps is not None:
        read = {"fps": backbone.fps, "min_frames": step, "max_frames": most}
    seen: dict[str, Any] = {"videos_kwargs": {"do_sample_frames": False, "cap_pixels_per_frame": True}}
    if backbone.pixels:
        seen["size"] = dict(zip(("shortest_edge", "longest_edge"), backbone.pixels, strict=True))
    flags = {
        "dtype": str(backbone.language_model.dtype).removeprefix("torch."),
        "video-pruning-rate": str(round(1 - keep, 10)),
        "video-pruning-method": name,
        "media-io-kwargs": json.dumps({"video": read}),
        "mm-processor-kwargs": json.dumps(seen),
    }
    notes = ["vLLM reads as many frames as langdc, at other times. How to send it the same ones: docs/serving.md."]
    if backbone.numbering == "trained":
        notes.append(
            "vLLM writes and numbers what stands around a compressed video as the backbone's setting positions: "
            "transformers does; this checkpoint was tuned with positions: trained. See docs/serving.md."
        )
    return [part for flag, value in flags.items() for part in (f"--{flag}", value)], notes


def check_processor(folder: Path) -> None:
    """ValueError if a folder lacks what vLLM makes a processor of."""
    with reading(folder, "a processor"):
        AutoProcessor.from_pretrained(folder, trust_remote_code=False)
