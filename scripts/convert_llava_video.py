"""python scripts/convert_llava_video.py LLaVA-Video-7B-Qwen2 llava-video-7b --vision siglip-so400m-patch14-384

Turns a checkpoint in the layout of LLaVA-NeXT (LlavaQwenForCausalLM) into a LLaVA-OneVision directory that
transformers and the backbones llava_video and llava_onevision load. The two parts it is built from, a Qwen2 and a
SigLIP directory, stand in for what the checkpoint itself does not hold: all weights of the part, or the tokenizer.
Weights are read tensor by tensor and written file by file, in safetensors only; conversion.json in the new directory
says what became of each.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AddedToken, AutoTokenizer, LlavaOnevisionProcessor, PreTrainedTokenizerBase
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

from langdc import jsonl
from langdc.backbones.llava_next import (
    INDEX,
    Plan,
    Stored,
    check_layout,
    check_plan,
    plan_names,
    read_json,
    shape_of,
    stock_config,
    trained_as,
)

REPORT = "conversion.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json",
)  # fmt: skip
# The authors' layout of a conversation, qwen_1_5; each video stands on a line of its own.
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<' + part['type'] + '>\n' }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the new directory; 0 when it worked, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    parser.add_argument("checkpoint", type=Path, help="directory of the published checkpoint")
    parser.add_argument("out", type=Path, help="directory to make")
    parser.add_argument("--language", type=Path, help="Qwen2 directory, for the tokenizer and weights it lacks")
    parser.add_argument("--vision", type=Path, help="SigLIP directory, for the sizes and weights it lacks")
    parser.add_argument("--shard-gb", type=float, default=2.0, help="size of a weights file, and of the memory used")
    options = parser.parse_args(argv)
    console = Console()
    try:
        plan = convert(options.checkpoint, options.out, options.language, options.vision, options.shard_gb)
    except ValueError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        return 2
    reasons = sorted(set(plan.dropped.values()))
    console.print(f"{options.out}: {len(plan.taken)} tensors taken, {len(plan.dropped)} dropped, none missing")
    for reason in reasons:
        console.print(f"  dropped {list(plan.dropped.values()).count(reason)}: {reason}")
    console.print(f"Its own rule for videos is that of the backbone {trained_as(read_json(options.checkpoint))}.")
    return 0


def convert(
    checkpoint: Path, out: Path, language: Path | None = None, vision: Path | None = None, shard_gb: float = 2.0
) -> Plan:
    """Write `out`, whole or not at all; ValueError names every tensor that is missing, unknown or misshapen."""
    if out.exists():
        raise ValueError(f"{out} exists already; give a directory that is yet to be made.")
    if shard_gb <= 0:
        raise ValueError(f"--shard-gb {shard_gb}; give more than 0, such as 2.")
    settings = read_json(checkpoint)
    check_layout(checkpoint, settings)
    tokenizer = load_tokenizer([folder for folder in (checkpoint, language) if folder is not None])
    config = stock_config(settings, tokenizer, vision)
    plan = plan_names(checkpoint, language, vision, config)
    check_plan(plan, config)
    with jsonl.writing_folder(out) as beside:
        write_weights(plan, beside, getattr(torch, str(config.dtype).removeprefix("torch.")), int(shard_gb * 1e9))
        config.save_pretrained(beside)
        write_processor(config, tokenizer, beside)
        copy_generation_settings([checkpoint, *([language] if language else [])], beside)
        taken = {
            name: f"{stored.file.parent.name}/{stored.file.name}: {stored.name}" for name, stored in plan.taken.items()
        }
        jsonl.write_json(beside / REPORT, {"taken": taken, "dropped": plan.dropped})
    return plan


def write_weights(plan: Plan, folder: Path, dtype: torch.dtype, limit: int) -> None:
    """Write files of at most `limit` bytes (or of one tensor), each read tensor by tensor, and their index."""
    shards: list[list[str]] = [[]]
    sizes = [0]
    for name, stored in plan.taken.items():
        size = torch.Size(shape_of(stored)).numel() * dtype.itemsize
        if shards[-1] and sizes[-1] + size > limit:
            shards.append([])
            sizes.append(0)
        shards[-1].append(name)
        sizes[-1] += size
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file, names in track(list(zip(files, shards, strict=True)), "writing", console=Console(stderr=True)):
        save_file({name: _read(plan.taken[name]).to(dtype) for name in names}, folder / file, {"format": "pt"})
    if len(shards) > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _read(stored: Stored) -> torch.Tensor:
    with safe_open(stored.file, "pt") as opened:
        return opened.get_tensor(stored.name)


def load_tokenizer(folders: Sequence[Path]) -> PreTrainedTokenizerBase:
    """The tokenizer of the first directory that holds one, with the two marks added; ValueError if none does."""
    folder = next((one for one in folders if (one / "tokenizer_config.json").is_file()), None)
    if folder is None:
        raise ValueError("The checkpoint holds no tokenizer; give the directory of its Qwen2: --language DIR.")
    with tempfile.TemporaryDirectory() as bare:  # away from config.json, whose model type transformers does not know
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copy(folder / name, bare)
        tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in ("<image>", "<video>")])
    return tokenizer


def write_processor(config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write tokenizer, chat template and processors; pixels go from -1 to 1, as SigLIP takes them."""
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    how: dict[str, Any] = {"size": {"height": side, "width": side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    tokenizer.chat_template = TEMPLATE
    LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(**how, image_grid_pinpoints=config.image_grid_pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(**how),
        num_image_tokens=(side // patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
        vision_aspect_ratio=config.vision_aspect_ratio,
    ).save_pretrained(folder)


def copy_generation_settings(folders: Sequence[Path], out: Path) -> None:
    """Copy generation_config.json, which says where replies end, from the first directory that has one."""
    file = next((one / "generation_config.json" for one in folders if (one / "generation_config.json").is_file()), None)
    if file is not None:
        shutil.copy(file, out)


if __name__ == "__main__":
    sys.exit(main())
