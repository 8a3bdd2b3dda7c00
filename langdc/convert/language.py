"""A causal language model from published tensors, with a release's adapter merged into it.

Weights pass through the type of the release (float16) before and after merging, as in the authors' code, so that the
result is theirs to the last bit; the merging itself is done in float32.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from langdc.convert.files import chat_template
from langdc.convert.names import NameReport, shapes_of
from langdc.language_models import open_tokenizer
from langdc.modelfiles import check_complete, check_depth, read_settings, read_tensors

_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COMPUTED = re.compile(r".*\.(inv_freq|cos_cached|sin_cached)$")


def build(
    what: str, config: PretrainedConfig, published: Mapping[str, Tensor], dtype: torch.dtype, rows: int | None = None
) -> tuple[PreTrainedModel, NameReport]:
    """The model with exactly the published tensors, rounded to `dtype` and held in float32.

    `rows`: how many tokens to keep of the embeddings and the head; None keeps all. ValueError names all tensors that
    are missing, unknown or misshapen.
    """
    if _EMBEDDINGS not in published:
        raise ValueError(
            f"The tensors do not make up {what}: 1 missing: {_EMBEDDINGS}. Copy the published files again."
        )
    there = published[_EMBEDDINGS].shape[0]
    if rows is not None and rows > there:
        raise ValueError(
            f"The tokenizer of {what} has {rows} tokens, but there are embeddings of {there}: the others would be "
            "random. Give the tokenizer that belongs to these weights."
        )
    config = type(config).from_dict({**config.to_dict(), "vocab_size": there if rows is None else rows})
    check_depth(config.to_dict(), len(published), what)
    report, taken = NameReport(), {}
    for name, tensor in published.items():
        if _COMPUTED.match(name):
            report.dropped[name] = "rotary frequencies are computed"
        elif name == _HEAD and config.tie_word_embeddings:
            report.dropped[name] = "the head is tied to the embeddings"
            if not torch.equal(tensor, published[_EMBEDDINGS]):
                raise ValueError(
                    f"The settings of {what} tie its head to the embeddings, but its weights differ. Copy it again."
                )
        else:
            taken[name] = tensor[:rows] if name in (_EMBEDDINGS, _HEAD) else tensor
            report.taken[name] = name
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    expected = shapes_of(lambda: model)
    if config.tie_word_embeddings:
        expected.pop(_HEAD, None)
    check_complete(what, taken, expected, report.unknown)
    # copies, since a parameter of a file that is mapped into memory could not be merged into
    ready = {name: tensor.to(dtype).to(torch.float32, copy=True) for name, tensor in taken.items()}
    model.load_state_dict(ready, strict=False, assign=True)
    model.tie_weights()
    return model, report


def merge_adapter(model: PreTrainedModel, file: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, NameReport]:
    """Merge a PEFT adapter, whose settings lie beside its `file`, into a model held in float32; round it to `dtype`.

    ValueError names the adapter's tensors that fit nothing in the model, and those that it lacks.
    """
    tensors = read_tensors(file)
    read_settings(file.with_name("adapter_config.json"), "to know rank and scale of the adapter")
    settings = peft.PeftConfig.from_pretrained(str(file.parent))
    settings.base_model_name_or_path = None  # where its maker kept the model, which is here by now
    adapted: Any = peft.get_peft_model(model, settings)
    # False, since "auto" would look a resized model up on the network
    states = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in states.items()}
    check_complete("the adapter", tensors, expected, advice="Does the base model belong to this adapter?")
    peft.set_peft_model_state_dict(adapted, {name: tensor.float() for name, tensor in tensors.items()})
    merged: PreTrainedModel = adapted.merge_and_unload()
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.copy_(parameter.to(dtype))
    return merged, NameReport(dropped=dict.fromkeys(tensors, "merged into the language model"))


def load_tokenizer(folder: Path, added: list[str], template: str) -> PreTrainedTokenizerBase:
    """A tokenizer with the marks that a release adds and the chat template of a name; ValueError if there is none."""
    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")):
        raise ValueError(f"{folder} holds no tokenizer. Give the language model's whole directory: --language DIR.")
    tokenizer = open_tokenizer(folder)
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.chat_template = chat_template(template)
    return tokenizer


def write(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path, dtype: torch.dtype
) -> None:
    """Write a plain Hugging Face directory; where replies end is copied from `source`, which states it."""
    stated = source / "generation_config.json"
    stored: Any = model
    stored.to(dtype).save_pretrained(folder)
    if stated.is_file():
        shutil.copyfile(stated, folder / stated.name)
    tokenizer.save_pretrained(folder)
