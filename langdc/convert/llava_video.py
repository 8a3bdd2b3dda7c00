"""A checkpoint in the layout of LLaVA-NeXT (LlavaQwenForCausalLM) as a LLaVA-OneVision directory of transformers.

The backbones llava_video and llava_onevision load the result. Weights are read tensor by tensor and written file by
file, in safetensors only; conversion.json in the new directory says what became of each.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from transformers import AddedToken, AutoTokenizer, LlavaOnevisionProcessor, PreTrainedTokenizerBase
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

from langdc.convert import llava_next
from langdc.convert.commands import open_output, write_report
from langdc.convert.llava_next import Stored
from langdc.convert.names import NameReport
from langdc.log import screen

_ENDS = "generation_config.json"
_TOKENIZER_FILES = (
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
    """Convert as the arguments say; 0 when the directory is written."""
    parser = argparse.ArgumentParser(prog="langdc convert llava_video", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="directory of the published checkpoint")
    parser.add_argument("out", type=Path, help="directory to make")
    parser.add_argument("--language", type=Path, help="Qwen2 directory, for a tokenizer and weights it lacks")
    parser.add_argument("--vision", type=Path, help="SigLIP directory, for sizes and weights it lacks")
    parser.add_argument("--shard-gb", type=float, default=2.0, help="size of a weights file, and of the memory used")
    options = parser.parse_args(argv)
    report = convert(options.checkpoint, options.out, options.language, options.vision, options.shard_gb)
    console = screen()
    first, *others = report.lines()
    console.print(f"{options.out}: {first}", *others, sep="\n")
    trained_as = llava_next.trained_as(llava_next.read_config(options.checkpoint))
    console.print(f"Its own rule for videos is that of the backbone {trained_as}.")
    return 0


def convert(checkpoint: Path, out: Path, language: Path | None, vision: Path | None, shard_gb: float) -> NameReport:
    """Write `out`, whole or not at all; ValueError names every tensor that is missing, unknown or misshapen."""
    if shard_gb <= 0:
        raise ValueError(f"--shard-gb {shard_gb}; give more than 0, such as 2.")
    with open_output(out) as beside:
        settings = llava_next.read_config(checkpoint)
        llava_next.check_layout(checkpoint, settings)
        folders = [checkpoint] if language is None else [checkpoint, language]
        tokenizer = _load_tokenizer(folders)
        config = llava_next.stock_config(settings, tokenizer, vision)
        found = llava_next.published_tensors(checkpoint, language, vision)
        report = llava_next.sort_names(found, config)
        taken = {new: found[old] for new, old in report.taken.items()}
        _write_weights(taken, beside, getattr(torch, str(config.dtype).removeprefix("torch.")), int(shard_gb * 1e9))
        config.save_pretrained(beside)
        _write_processor(config, tokenizer, beside)
        # where replies end
        if file := next((one / _ENDS for one in folders if (one / _ENDS).is_file()), None):
            shutil.copy(file, beside)
        places = {new: f"{s.file.parent.name}/{s.file.name}: {s.name}" for new, s in taken.items()}
        write_report(beside, NameReport(places, report.dropped))
    return report


def _write_weights(tensors: Mapping[str, Stored], folder: Path, dtype: torch.dtype, limit: int) -> None:
    """Write files of at most `limit` bytes (or of one tensor), each read tensor by tensor, and their index."""
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda stored: torch.Size(stored.shape).numel() * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    for file, names in track(split.filename_to_tensors.items(), "writing", console=Console(stderr=True)):
        save_file({name: tensors[name].read().to(dtype) for name in names}, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / llava_next.INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _load_tokenizer(folders: Sequence[Path]) -> PreTrainedTokenizerBase:
    """The tokenizer of the first directory that holds one, with the two marks added; ValueError if none does."""
    folder = next((one for one in folders if (one / "tokenizer_config.json").is_file()), None)
    if folder is None:
        raise ValueError("The checkpoint holds no tokenizer; give the directory of its Qwen2: --language DIR.")
    with tempfile.TemporaryDirectory() as bare:  # away from config.json, whose model type transformers does not know
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copy(folder / name, bare)
        tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in ("<image>", "<video>")])
    return tokenizer


def _write_processor(config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
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
