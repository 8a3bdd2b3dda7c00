"""Causal language models and their tokenizers, loaded from a source."""

import importlib.util
import re
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import Environment, TemplateSyntaxError, nodes
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_logging

from langdc.hashing import mark_read
from langdc.log import get_logger
from langdc.modelfiles import read_config, read_settings, reading, refuse_tensors, weight_files
from langdc.sources import Architecture, Source, resolve

logger = get_logger(__name__)

Quantize = Literal["nf4"]
FLASH = "flash_attention_2"
_LARGEST = 10_000_000
"""Limit for the characters of a prompt and for numbers in a chat template, far above what any model reads."""
VIDEO_MARK = "\ue000"  # a private-use character: stands for a video while a chat template lays out the text
TEXT_MARK = "\ue001"  # and this one stands inside what is written like a control token and is text


def load_language_model(
    source: Source, attention: str = "sdpa", dtype: torch.dtype | None = None, quantize: Quantize | None = None
) -> PreTrainedModel:
    """Load a causal language model of transformers; random init draws from torch's seed. `quantize`: "nf4" keeps linear
    layers in 4 bits, to train adapters (QLoRA, arXiv 2305.14314); ValueError where bitsandbytes is missing.
    """
    found = resolve(source, weights=True)
    settings: dict[str, Any] = {"attn_implementation": attention, "dtype": dtype or torch.get_default_dtype()}
    settings |= four_bits(quantize, found) if quantize is not None else {}
    model = mark_published(load_pretrained(AutoModelForCausalLM, found, **settings), source, found)
    return model if quantize is None else mark_four_bits(model)


def load_pretrained(kind: Any, found: Path | Architecture, unread: tuple[str, ...] = (), **settings: Any) -> Any:
    """The model by `kind.from_pretrained`, or with random weights by `kind.from_config`.

    ValueError names all tensors that are missing, of another shape, or of more layers than the settings state. Other
    tensors left over are named in a warning. Those that begin as `unread` may be missing or left over. With torch's
    default device "meta" no weights are read.
    """
    kernel = settings.get("attn_implementation", "eager")
    if kernel not in (allowed := ["eager", *ALL_ATTENTION_FUNCTIONS]):
        raise ValueError(
            f"attention={kernel!r}; allowed are {', '.join(n for n in allowed if not re.match('paged|langdc', n))}."
        )
    config = settings.pop("config", None) or (read_config(found) if isinstance(found, Path) else found.sizes())
    make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    dtype = None if settings.get("dtype") == "auto" else settings.get("dtype")
    if not isinstance(found, Path) or torch.get_default_device().type == "meta":
        with reading(found if isinstance(found, Path) else "{config: ..., init: random}", "a model"):
            return make(config, **{**settings, "dtype": dtype})
    if not is_deepspeed_zero3_enabled():  # ZeRO-3 partitions every module, on meta too
        with reading(found, "a model"), torch.device("meta"):
            values = sum(parameter.numel() for parameter in make(deepcopy(config), dtype=dtype).parameters())
        if values > 2 * (held := sum(file.stat().st_size for file in weight_files(found))):  # 4 bits are the fewest
            raise ValueError(
                f"{found}: config.json describes a model of {values:,} values, which its weights of {held:,} bytes "
                "cannot hold. Copy both from one published model."
            )
    settings |= {"trust_remote_code": False, "ignore_mismatched_sizes": True, "output_loading_info": True}
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # reported below
    try:
        with reading(found, "a model"):
            model, report = kind.from_pretrained(found, config=config, **settings)
    finally:
        transformers_logging.set_verbosity(before)
    extra = sorted(name for name in report["unexpected_keys"] if not name.startswith(unread))
    layerless = {re.sub(r"\d+", "#", name) for name in model.state_dict()}
    problems = {
        "missing": sorted(name for name in report["missing_keys"] if not name.startswith(unread)),
        "of layers that config.json does not state": [n for n in extra if re.sub(r"\d+", "#", n) in layerless],
        "of another shape": sorted(
            f"{name}: {tuple(there)}, not {tuple(stated)}" for name, there, stated in report["mismatched_keys"]
        ),
    }
    refuse_tensors(f"the model in {found}", problems, "Copy the whole checkpoint again, or convert it first.")
    if extra:
        logger.warning(
            "%s holds %d tensors that the model does not have; they are not read: %s", found, len(extra), extra
        )
    return model


def mark_published(module: Any, source: Source, found: Path | Architecture) -> Any:
    """The module, with the source of all its weights as `published`, so that no checkpoint repeats them.

    `found`: the folder that the source names. Random weights get no mark.
    """
    if isinstance(found, Path):
        module.published = source
        mark_read(module.state_dict(keep_vars=True), found)
    return module


def four_bits(quantize: str, found: Path | Architecture, skipped: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of `from_pretrained` for linear layers in 4 bits, but in `skipped` modules; ValueError if unable."""
    if quantize != "nf4":
        raise ValueError(f"quantize is {quantize!r}; allowed is 'nf4', or leave it out for whole weights.")
    if not isinstance(found, Path):
        raise ValueError("quantize: nf4 needs a checkpoint directory; random weights are of no use in 4 bits.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("quantize: nf4 needs the package bitsandbytes (pip install 'langdc[qlora]'), or leave it out.")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        # patterns are compared with whole names, such as model.visual.blocks.0.attn.qkv
        llm_int8_skip_modules=[*(rf"(.*\.)?{name}" for name in skipped), "lm_head"] if skipped else None,
    )
    return {
        "dtype": torch.get_default_dtype(),  # of embeddings and norms; products are in bfloat16
        "quantization_config": settings,
        "device_map": {"": torch.get_default_device()},
    }


def mark_four_bits(model: PreTrainedModel, text_model: nn.Module | None = None) -> PreTrainedModel:
    """The model, with the mark that PEFT looks for on the module that it is given: the model without its head."""
    marked: Any = model.base_model if text_model is None else text_model
    marked.is_loaded_in_4bit = True
    return model


def fastest_attention(half: bool, device: torch.device) -> tuple[str, str]:
    """The fastest attention kernel on a device, and why; `half`: whether the model runs in (b)float16."""
    if importlib.util.find_spec("flash_attn") is None:
        return "sdpa", "flash-attn is not installed"
    if device.type != "cuda":
        return "sdpa", "flash-attn needs a CUDA device"
    if not half:
        return "sdpa", "flash-attn knows bfloat16 and float16 only"
    return FLASH, "flash-attn is installed"


def use_liger(model: PreTrainedModel, wanted: bool | Literal["auto"]) -> bool:
    """Give a model's norms and feed-forward layers the fused kernels of liger-kernel; returns whether it was done.

    If impossible where the model is: False with "auto", else ValueError. A model of shapes alone keeps its layers.
    """
    if not wanted or model.device.type == "meta":
        return False
    missing = None
    if importlib.util.find_spec("liger_kernel") is None:
        missing = "the package liger-kernel is not installed (pip install 'langdc[liger]')"
    elif model.device.type != "cuda":
        missing = f"its kernels need a CUDA device, and the model is on the {model.device.type}"
    if missing is not None:
        if wanted != "auto":
            raise ValueError(f"liger: {missing}. Set it to auto or false.")
        logger.info("liger: %s; the model's own layers are used.", missing)
        return False
    from liger_kernel.transformers import _apply_liger_kernel_to_instance  # pyright: ignore[reportMissingImports]

    # rotation and losses are replaced in modules that all models share, so they stay as they are
    _apply_liger_kernel_to_instance(
        model=model, rope=False, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=True, swiglu=True
    )
    logger.info("liger: fused norms and feed-forward layers in %s.", type(model).__name__)
    return True


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, of the class that its own files name; ValueError if its vocabulary is not there."""
    whole = (folder / "tokenizer.json").is_file() or any(folder.glob("*.model"))
    if not whole and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise ValueError(
            f"{folder} holds no tokenizer (no tokenizer.json, nor vocab.json and merges.txt, nor *.model). Copy the "
            "published files again, all of them."
        )
    file = folder / "tokenizer_config.json"
    stated = read_settings(file).get("tokenizer_class") if file.is_file() else None
    # AutoTokenizer takes the class of the model type beside it, even where the files say that they stand for themselves
    kind = PreTrainedTokenizerFast if stated in ("TokenizersBackend", "PreTrainedTokenizerFast") else AutoTokenizer
    with reading(folder, "a tokenizer"):
        found = kind.from_pretrained(folder, trust_remote_code=False)
        if not found.vocab_size:  # transformers makes an empty one of files that it does not read
            raise ValueError("the vocabulary is empty")
        return found


def load_tokenizer(source: Source | Path) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer with a chat template; ValueError if it has none."""
    folder = resolve(source if isinstance(source, dict) else str(source))
    if not isinstance(folder, Path):
        raise ValueError("A model given by its architecture needs the setting 'tokenizer' (a directory).")
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer (no tokenizer_config.json).")
    tokenizer = open_tokenizer(folder)
    tokenizer.chat_template = _chat_template(folder) or tokenizer.chat_template
    if tokenizer.chat_template is None:
        raise ValueError(f"The tokenizer in {folder} has no chat template; use that of an instruction-tuned model.")
    _check_template(str(tokenizer.chat_template), folder)
    return tokenizer


def _check_template(template: str, folder: Path) -> None:
    """ValueError for powers and huge numbers, which jinja would compute for minutes while it compiles."""
    with suppress(TemplateSyntaxError):  # tags that only transformers knows; it reports others itself
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
        huge = [node for node in tree.find_all(nodes.Const) if type(node.value) is int and node.value > _LARGEST]
        if huge or any(tree.find_all(nodes.Pow)):
            raise ValueError(f"{folder}: its chat template computes powers or huge numbers. Copy the published one.")


def _chat_template(folder: Path) -> str | None:
    """The chat template of a folder's processor, which goes before the tokenizer's; None where there is none."""
    for name in ("processor_config.json", "chat_template.json"):
        template = read_settings(folder / name).get("chat_template") if (folder / name).is_file() else None
        template = template.get("default") if isinstance(template, dict) else template
        if template is not None:
            if not isinstance(template, str):
                raise ValueError(f"{folder / name}: chat_template is a {type(template).__name__}, not a text.")
            return template
    return None


def templated(tokenizer: PreTrainedTokenizerBase, messages: list[dict], reply_next: bool) -> str:
    """The text that a tokenizer's chat template makes of messages; ValueError if it fails on them."""
    with reading(f"The chat template of {tokenizer.name_or_path}", "text of these messages"):
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply_next))
        if len(text) > _LARGEST:
            raise ValueError(f"{len(text)} characters of {len(messages)} messages are no prompt")
        return text


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a reply: the tokenizer's, and those of the model's generation settings."""
    stated = (getattr(model, "generation_config", None) or GenerationConfig()).eos_token_id
    found = [tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])]
    return sorted({each for each in found if isinstance(each, int)})


@lru_cache(16)
def control_places(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern of the places after the first letter of each control token: a text that is cut there holds none."""
    tokens = [re.escape(str(token)) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile(rf"(?s)(?<=(?={'|'.join(tokens) or '(?!)'}).)")


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str, laid_out: bool = False) -> Tensor:
    """Token ids of a text, without added special tokens: [n]. What is written like a control token is text, too; in
    what a chat template has `laid_out`, only where U+E001 marks it.
    """
    pieces = text.split(TEXT_MARK) if laid_out else control_places(tokenizer).split(text)
    found = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
    return torch.tensor(list(chain.from_iterable(found)), dtype=torch.long)
