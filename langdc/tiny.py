"""Tiny models with random weights, made on the spot from a seed: sources such as "tiny:qwen2_5_vl".

Each is a checkpoint directory like a published one of its family: config, weights, tokenizer with a chat template,
processors. Tests, the recipes in `configs/tiny` and the guide use them in place of billions of parameters.
"""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from langdc import __version__, devices
from langdc.hashing import text_hash
from langdc.jsonl import sync_folder, user_cache

_FORMAT = 1
"""Raised whenever this file makes other checkpoints than before."""
_WORDS = """a and answer are at ball blue box by camera cat circle color count describe dog does down first fast few
gray green helpful how in is it large left many more move moves no object of on one or orange picture pink purple
question red right ring scene second seconds segment shape short slow small square static the them then there this
three to top triangle two up video was what where which white with words yellow yes you user system assistant"""
_MEDIA = ("image", "video")
_MARKS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_INTERNVL_MARKS = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}  # fmt: skip
_TEMPLATE = """\
{%- macro content(given) -%}
{%- if given is string -%}{{ given }}
{%- else -%}
{%- for part in given -%}
{%- if part.type == 'text' -%}{{ part.text }}
{%- else -%}{{ {'video': 'VIDEO', 'image': 'IMAGE'}[part.type] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if 'SYSTEM' and messages and messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nSYSTEM<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ content(message.content) ~ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
# fmt: off
_TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8192, "initializer_range": 0.1, "tie_word_embeddings": False,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}  # of the 8 pairs in a head
_PATCHES = {"patch_size": 4, "temporal_patch_size": 2}
_SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "vision_use_head": False,
}


def _qwen_vl(kind: str, rope: dict[str, Any] | None = None, head: dict[str, Any] | None = None, **vision: Any) -> dict:
    text = {**_TEXT, **(head or {}), "model_type": f"{kind}_text", "rope_parameters": {**_ROPE, **(rope or {})}}
    sizes = {
        "depth": 3, "hidden_size": 32, "num_heads": 2, "spatial_merge_size": 2, "initializer_range": 0.1, **_PATCHES,
        "model_type": kind, "intermediate_size": 64, "out_hidden_size": 64, **vision,
    }
    return {"model_type": kind, "text_config": text, "vision_config": sizes, "tie_word_embeddings": False}


_LLAVA = {
    "model_type": "llava_onevision", "text_config": {**_TEXT, "model_type": "qwen2"}, "vision_config": _SIGLIP,
    "vision_feature_layer": -1, "vision_feature_select_strategy": "full", "image_grid_pinpoints": [[32, 32]],
    "tie_word_embeddings": False,
}
_INTERNVL = {
    "model_type": "internvl", "text_config": {**_TEXT, "model_type": "qwen3", "head_dim": 16}, "downsample_ratio": 0.5,
    "vision_config": {
        "model_type": "internvl_vision", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 4, "layer_scale_init_value": 1.0,
    },
    "image_seq_length": 16, "tie_word_embeddings": False,
}
_VIDEO_LLAMA = {
    "model_type": "video_llama_3", "text_config": {**_TEXT, "model_type": "qwen2"}, "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "video_llama_3_vision", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 2, "patch_size": 4,
    },
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {**_TEXT, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_vl": _qwen_vl("qwen2_vl", embed_dim=32, mlp_ratio=2, hidden_size=64),
    "qwen2_5_vl": _qwen_vl("qwen2_5_vl", fullatt_block_indexes=[2], window_size=16, tokens_per_second=2),
    "qwen3_vl": _qwen_vl(
        "qwen3_vl", {"mrope_interleaved": True}, {"head_dim": 16},
        deepstack_visual_indexes=[0, 1], num_position_embeddings=64,
    ),
    "qwen3_5": _qwen_vl(
        "qwen3_5", {"mrope_interleaved": True, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]},
        {"head_dim": 16, "layer_types": [*["linear_attention"] * 2, "full_attention"], "linear_num_key_heads": 2,
         "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 16},
        num_position_embeddings=64,
    ),
    "llava_onevision": _LLAVA,
    "llava_video": _LLAVA,
    "internvl": _INTERNVL,
    "video_llama_3": _VIDEO_LLAMA,
}
_PROCESSORS = {  # classes of transformers: the processor, and its parts for images and videos
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"),
    "qwen3_5": ("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"),
    "llava_onevision": ("LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor", "LlavaOnevisionVideoProcessor"),
    "internvl": ("InternVLProcessor", "GotOcr2ImageProcessor", "InternVLVideoProcessor"),
    "video_llama_3": ("VideoLlama3Processor", "VideoLlama3ImageProcessor", "VideoLlama3VideoProcessor"),
}
_PROCESSORS["llava_video"] = _PROCESSORS["llava_onevision"]
# fmt: on


def folder(name: str) -> Path:
    """The checkpoint directory of "NAME" or "NAME:SEED", made now or taken from the user's cache.

    The cache is $XDG_CACHE_HOME/langdc (~/.cache/langdc by default), or the directory of temporary files where that
    cannot be written. A checkpoint appears whole or not at all, also where several processes make it at once.
    ValueError for an unknown name or a seed that is no number.
    """
    model, _, seed = name.partition(":")
    if model not in _CONFIGS or not (seed or "0").isdecimal():
        raise ValueError(
            f"There is no model 'tiny:{name}'. Give tiny:NAME or tiny:NAME:SEED; the names are {', '.join(_CONFIGS)}."
        )
    versions = (__version__, torch.__version__, transformers.__version__, tokenizers.__version__)
    key = text_hash(json.dumps([_FORMAT, versions, _CONFIGS[model], _TEMPLATE, _WORDS]))[:12]
    target = user_cache("tiny") / f"{model}-{int(seed or 0)}-{key}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="partial-", ignore_cleanup_errors=True) as partial:
            _write(model, int(seed or 0), Path(partial) / "model")
            sync_folder(Path(partial) / "model")
            try:
                (Path(partial) / "model").rename(target)
            except OSError:  # another process was first
                if not target.is_dir():
                    raise
    return target


def _write(name: str, seed: int, directory: Path) -> None:
    tokenizer, model_class = _tokenizer(name), "Qwen2ForCausalLM"
    if name in _PROCESSORS:
        model_class = _PROCESSORS[name][0].replace("Processor", "ForConditionalGeneration")
        model_class = model_class.replace("Qwen3VL", "Qwen3_5") if name == "qwen3_5" else model_class
    # on a CPU, drawn and in float32, whatever is being made by whoever asks for it
    whole = torch._C.DisableTorchFunction()
    with whole, devices.making(None, torch.float32), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # not through an Auto class, which would partition the model where ZeRO-3 is on
        model = getattr(transformers, model_class)(_config(name, tokenizer))
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = transformers.GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(directory)
    (tokenizer if name == "qwen2" else _processor(name, tokenizer)).save_pretrained(directory)


def _config(name: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The model's settings, with the ids that the tokenizer gives to its marks."""
    ids: Any = tokenizer.convert_tokens_to_ids
    settings = copy.deepcopy(_CONFIGS[name])  # the classes of settings change what they are given
    text = {"vocab_size": -(-len(tokenizer) // 64) * 64, "bos_token_id": None}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if name == "qwen2":
        return transformers.AutoConfig.for_model(**settings, **text)
    settings["text_config"] = {**settings["text_config"], **text}
    if name == "internvl":
        marks = {"image_token_id": ids("<IMG_CONTEXT>")}
    elif name.startswith("llava"):
        marks = {f"{kind}_token_index": ids(f"<{kind}>") for kind in _MEDIA}
    else:
        around = () if name == "video_llama_3" else ("vision_start", "vision_end")
        marks = {f"{mark}_token_id": ids(f"<|{mark}|>") for mark in around}
        marks |= {f"{mark}_token_id": ids(f"<|{mark}_pad|>") for mark in _MEDIA}
    return transformers.AutoConfig.for_model(**settings, **marks)


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of Qwen2's class: byte-level BPE in which each listed word is one token, with or without a space."""
    trained = tokenizers.Tokenizer(BPE())
    trained.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=2048, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)  # pyright: ignore[reportCallIssue]
    trained.train_from_iterator([form for word in _WORDS.split() for form in (word, f" {word}")], trainer)
    model = json.loads(trained.to_str())["model"]
    llava = name.startswith("llava")
    system = "you are helpful" if name in ("qwen2", "qwen2_vl", "qwen2_5_vl") else ""
    image, video = (f"<{kind}>" if llava else f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in _MEDIA)
    marks: Any = [*_MARKS, *(f"<{kind}>" for kind in _MEDIA if llava)]
    if name == "internvl":
        image, video, marks = "<IMG_CONTEXT>\\n", "<video>\\n", _INTERNVL_MARKS
    elif name == "video_llama_3":
        image, video = "<|image_pad|>\\n", "<|video_pad|>\\n"
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],  # pyright: ignore[reportArgumentType]
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=marks,
        chat_template=_TEMPLATE.replace("VIDEO", video).replace("IMAGE", image).replace("SYSTEM", system),
    )


def _processor(name: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    processor, image, video = (getattr(transformers, kind) for kind in _PROCESSORS[name])
    template = tokenizer.chat_template
    if name == "internvl":
        settings = {"size": {"height": 32, "width": 32}}
        return processor(image(**settings, max_patches=4), tokenizer, video(**settings), 16, template)
    if name == "video_llama_3":
        settings = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 16384}}
        return processor(image(**settings), tokenizer, video(**settings), chat_template=template)
    if not name.startswith("llava"):
        settings = {**_PATCHES, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 8192}}
        return processor(image(**settings), tokenizer, video(**settings), chat_template=template)
    side = _SIGLIP["image_size"]
    size = {"height": side, "width": side}
    image_processor = image(size=size, image_grid_pinpoints=_LLAVA["image_grid_pinpoints"])
    counted = {"num_image_tokens": (side // _SIGLIP["patch_size"]) ** 2, "vision_feature_select_strategy": "full"}
    return processor(image_processor, tokenizer, video(size=size), chat_template=template, **counted)
