"""A checkpoint of a training run as plain Hugging Face directories with a model card: all that it needs is inside.

Every part that was loaded from published weights is written as a directory of its own, which transformers loads alone;
the whole is a checkpoint of this project and may be moved. The adapter is merged, or with --adapter written as a PEFT
directory for the published language model. With --for vllm it says how vLLM serves it.
"""

import argparse
import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from langdc import adapters, checkpoint
from langdc.config import LoraConfig, ModelConfig, check
from langdc.convert.commands import add_verify_option, check_place, check_saved, open_output
from langdc.convert.files import write_part
from langdc.convert.vllm import check_processor, served
from langdc.devices import TYPES
from langdc.hashing import tensor_hash
from langdc.log import progress, screen
from langdc.model import VideoModel
from langdc.sources import PREFIXES, resolve
from langdc.text import render

_ADAPTER = "adapter"
_SIDE_FILES = (".json", ".txt", ".model", ".jinja")
_WRITTEN = re.compile(r"config\.json|.*\.index\.json|langdc\.json|card\.json|conversion\.json|adapter_config\.json")
"""Files of a source that are not copied, since they are written anew or describe something else."""


@dataclass
class _Exported:
    """What was written: hashes of all tensors and of the adapter's, by name; `notes` to print."""

    hashes: dict[str, str] = field(default_factory=dict)
    adapter: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Export as the arguments say; 0 when the directory is written."""
    parser = argparse.ArgumentParser(prog="langdc export", description=__doc__)
    parser.add_argument("checkpoint", help="directory of the checkpoint, or sample:langdc")
    parser.add_argument("out", type=Path, help="directory to make")
    parser.add_argument("--adapter", action="store_true", help="write the adapter as it is, for the published model")
    parser.add_argument("--dtype", choices=TYPES, help="type to store (default: that of each part in use)")
    parser.add_argument("--for", dest="server", choices=["vllm"], help="say with which flags vLLM serves it")
    add_verify_option(parser)
    options = parser.parse_args(argv)
    made = export(options.checkpoint, options.out, options.adapter, TYPES.get(options.dtype), options.server)
    console = screen()
    for note in made.notes:
        console.print(note)
    if not options.no_verify_save:
        console.print(check_saved(options.out, made.hashes))
        if made.adapter:
            console.print(f"{check_saved(options.out / _ADAPTER, made.adapter)}, with PEFT alone")
    return 0


def export(
    source: str | Path,
    out: Path,
    adapter: bool = False,
    dtype: torch.dtype | None = None,
    server: Literal["vllm"] | None = None,
) -> _Exported:
    """Write `out`, whole or not at all: parts as directories of their own, the rest beside them, a model card.

    `adapter` keeps the adapter apart, and the language model where it is. `server`: what the card says how to serve it
    with. ValueError for a checkpoint that has no adapter, whose language model was trained itself, or that is not
    served.
    """
    check_place(out)
    if adapter and server:
        raise ValueError("--for vllm serves the whole model, with its adapter merged; leave out --adapter.")
    manifest = checkpoint.read_manifest(checkpoint.locate(source))
    with progress(f"Loading {source}"):
        model = checkpoint.load(source, plain=True)
    lora = check(LoraConfig, manifest["lora"], "lora") if manifest["lora"] is not None else None
    if adapter:
        _check_adapter_alone(model, lora, source)
    else:
        adapters.merge(model.backbone.text_model)
    if dtype is not None:
        _cast(model, dtype)
    made, flags, serving = _Exported(), list[str](), list[str]()
    if server is not None:
        flags, made.notes = served(model)
    left = [_name_of(model.backbone.language_model, model)] if adapter else []
    sizes = [p.nbytes for name, p in model.named_parameters() if not name.startswith(tuple(left))]
    with open_output(out, sum(sizes) / 1e6) as beside:
        parts = {name: where for name, where in checkpoint.published(model).items() if name not in left}
        settings, folders = _placed(manifest["model"], parts, beside)
        for name, folder in folders.items():
            _write_part(model.get_submodule(name), Path(resolve(parts[name])), folder)  # pyright: ignore
        if flags:
            (folder,) = folders.values()
            check_processor(folder)
            serving = [shlex.join(["vllm", "serve", f"./{folder.name}", *flags]), *made.notes]
            made.notes.insert(0, shlex.join(["vllm", "serve", str(out / folder.name), *flags]))
        _copy_tokenizers(settings, beside)
        if not adapter:
            settings["backbone"].pop("quantize", None)
        named = checkpoint.stored(model)
        stored = {name: tensor.detach() for name, tensor in named.items() if name not in model.untrained}
        made.hashes = {name: tensor_hash(tensor, torch.float32) for name, tensor in stored.items()}
        inside = tuple(f"{name}." for name in (*folders, *left))
        own = [name for name in stored if not name.startswith(inside) or ".lora_" in name]
        rest = checkpoint.own_tensors(model, own)
        config = check(ModelConfig, settings, str(source))
        kept = {key: value for key, value in manifest.items() if key not in {*checkpoint.NEEDED, "version"}}
        checkpoint.save(config, beside, tensors=rest, lora=lora if adapter else None, info=kept)
        if adapter and lora is not None:
            _export_adapter(model, lora, beside / _ADAPTER, made)
        classes = {folder.name: type(model.get_submodule(name)).__name__ for name, folder in folders.items()}
        # what the directory is, its parts' origins, how it is loaded
        told = {"title": out.name, "manifest": manifest, "parts": classes, "adapter": adapter, "serving": serving}
        (beside / "README.md").write_text(render("langdc", "convert/card.md", **told))
    return made


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Give all weights the values and the type that are stored."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config.dtype = dtype


def _name_of(part: nn.Module, model: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)


# ---- settings


def _placed(settings: Mapping[str, Any], parts: Mapping[str, str], out: Path) -> tuple[dict, dict[str, Path]]:
    """The settings with a folder in `out` in place of every part's source, and the folder of each part by its name."""
    placed: dict[str, Any] = json.loads(json.dumps(settings))
    folders: dict[str, Path] = {}
    for name, source in parts.items():
        member = placed[name.partition(".")[0]]
        paths = [path for path, value in checkpoint.texts(member) if value == source]
        if not paths:
            raise ValueError(f"The checkpoint's settings do not name {source}, which {name} was loaded from.")
        own = next((path for path in paths if "tokenizer" not in path[-1]), paths[0])
        folder = out / next((key for key in reversed(own) if key != "source"), name.partition(".")[0])
        folders[name] = folder
        for path in [own, *(path for path in paths if "tokenizer" in path[-1])]:
            reduce(getitem, path[:-1], member)[path[-1]] = str(folder)
    return placed, folders


# ---- parts


def _write_part(part: nn.Module, source: Path, folder: Path) -> None:
    """Write a part's weights and settings, and what lies beside its published weights, such as a tokenizer."""
    folder.mkdir(parents=True)
    if isinstance(part, PreTrainedModel):
        part.save_pretrained(folder, max_shard_size="5GB")
    else:
        write_part(folder, part.state_dict(), part.config.model_dump())  # pyright: ignore
    _copy_side_files(source, folder)


def _copy_side_files(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if file.suffix in _SIDE_FILES and not _WRITTEN.fullmatch(file.name):
            shutil.copyfile(file, folder / file.name)


def _copy_tokenizers(settings: dict, out: Path) -> None:
    """Copy tokenizers that settings name apart from a model; packaged ones stay where they are."""
    for path, source in list(checkpoint.texts(settings)):
        if "tokenizer" in str(path[-1]) and not _is_packaged(source) and not source.startswith(f"{out}/"):
            folder = out / str(path[-1])
            folder.mkdir(exist_ok=True)
            _copy_side_files(Path(resolve(source)), folder)  # pyright: ignore[reportArgumentType]
            reduce(getitem, path[:-1], settings)[path[-1]] = str(folder)


# ---- the adapter


def _check_adapter_alone(model: VideoModel, lora: LoraConfig | None, source: str | Path) -> None:
    if lora is None:
        raise ValueError(f"{source} has no adapter; leave out --adapter to write its whole language model.")
    prefix = _name_of(model.backbone.language_model, model)
    if prefix not in checkpoint.published(model):
        raise ValueError(f"{source} has a language model of random weights, which an adapter alone cannot be put on.")
    saved = checkpoint.saved_names(source)
    whole = sorted(name for name in saved if name.startswith(f"{prefix}.") and ".lora_" not in name)
    if whole:
        raise ValueError(
            f"{source} trained {len(whole)} tensors of the language model beside the adapter, such as {whole[0]}. "
            "Leave out --adapter, so that they are written too."
        )


def _export_adapter(model: VideoModel, lora: LoraConfig, folder: Path, made: _Exported) -> None:
    """Write a PEFT directory beside the parts, and note the hashes of what it gives."""
    import peft  # takes seconds, and most exports have no adapter

    source = checkpoint.published(model)[_name_of(model.backbone.language_model, model)]
    local = _is_packaged(source) or Path(source).is_dir()
    base = str(Path(resolve(source)).resolve()) if local else source  # pyright: ignore[reportArgumentType]
    named = checkpoint.stored(model.backbone.language_model)
    whole = {f"base_model.model.{name}": tensor for name, tensor in named.items()}
    made.adapter = {name: tensor_hash(tensor, torch.float32) for name, tensor in whole.items()}
    made.notes.append(f"The adapter names the language model as {base}; change that where you publish it.")
    tensors = {name.replace(".default.", "."): tensor for name, tensor in whole.items() if ".lora_" in name}
    prefix = _name_of(model.backbone.text_model, model.backbone.language_model)
    leaves = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in tensors})
    # with the prefix, since a vision encoder may have layers of the same names
    targets = rf"{re.escape(prefix)}\..*\.({'|'.join(leaves)})"
    stated: Any = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True}
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, **stated
    )
    folder.mkdir()
    settings.save_pretrained(str(folder))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "adapter_model.safetensors")


def _is_packaged(source: object) -> bool:
    """Whether a source comes with the package, such as "sample:NAME"."""
    return isinstance(source, str) and source.partition(":")[0] in PREFIXES and ":" in source
