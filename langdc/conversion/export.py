"""A checkpoint as plain Hugging Face directories, which together are a checkpoint of this project all the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from langdc import adapters, checkpoint, jsonl
from langdc.compressors.langdc import LangDC
from langdc.config import LoraConfig, ModelConfig, check
from langdc.conversion import internvideo2, parts
from langdc.encoders.image import ImageEncoder
from langdc.encoders.video import VideoEncoder
from langdc.hashing import tensor_hash
from langdc.model import VideoModel
from langdc.sources import resolve
from langdc.verify import Fingerprint, fingerprint

ADAPTER = "adapter"
LANGUAGE_PREFIX = "backbone.language_model."
CAPTIONER_PREFIX = "compressor.captioner.language_model."
IMAGE_PREFIX, VIDEO_PREFIX = "backbone.encoders.image.", "backbone.encoders.video."


@dataclass
class Exported:
    """What was written: `hashes` as of a conversion, `others` directories that load by themselves, `notes` to tell."""

    hashes: dict[str, str] = field(default_factory=dict)
    others: dict[Path, Fingerprint] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def export(source: str | Path, out: Path, adapter: bool = False, dtype: torch.dtype = torch.float32) -> Exported:
    """Write `out`, whole or not at all: parts as directories of their own, the rest beside them, a model card.

    `adapter` keeps the adapter apart, and the language model where it is. ValueError for a checkpoint that has none, or
    whose language model was trained itself.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; give a directory that is yet to be made.")
    card = checkpoint.read_card(checkpoint.locate(source))
    model = checkpoint.load(source)
    if card["model"]["backbone"]["name"] != "videogpt_plus":
        raise ValueError(
            f"{source} has the backbone {card['model']['backbone']['name']!r}, which is a plain directory already."
        )
    lora = check(LoraConfig, card["lora"], "lora") if card["lora"] is not None else None
    if adapter:
        _check_adapter_alone(model, lora, source)
    else:
        adapters.merge(model.backbone.text_model)
    _round(model, dtype)
    made = Exported()
    with jsonl.writing_folder(out) as beside:
        tensors = _write_parts(model, beside, adapter, dtype)
        config = check(ModelConfig, _settings(card["model"], beside, adapter), str(source))
        made.hashes = {
            name: tensor_hash(t, torch.float32) for name, t in _named(model).items() if name not in model.untrained
        }
        info = {key: card[key] for key in ("stage", "phase", "data_sha256", "training") if key in card}
        checkpoint.write(config, beside, tensors=tensors, lora=lora if adapter else None, info=info)
        if adapter and lora is not None:
            base = _write_adapter(model, lora, card["model"]["backbone"]["language_model"], beside / ADAPTER)
            made.others = {out / ADAPTER: _adapter_fingerprint(model)}
            made.notes.append(f"The adapter names the language model as {base}; change that where you publish it.")
        (beside / "README.md").write_text(model_card(out.name, card, adapter))
    return made


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}


def _check_adapter_alone(model: VideoModel, lora: LoraConfig | None, source: str | Path) -> None:
    if lora is None:
        raise ValueError(f"{source} has no adapter; leave out --adapter to write its whole language model.")
    card = checkpoint.read_card(checkpoint.locate(source))
    if not isinstance(card["model"]["backbone"]["language_model"], str):
        raise ValueError(f"{source} has a language model of random weights, which an adapter alone cannot be put on.")
    trained = checkpoint.saved_names(source)
    whole = sorted(name for name in trained if name.startswith(LANGUAGE_PREFIX) and ".lora_" not in name)
    if whole:
        raise ValueError(
            f"{source} trained {len(whole)} tensors of the language model beside the adapter, such as {whole[0]}. "
            "Leave out --adapter, so that they are written too."
        )


def _round(model: nn.Module, dtype: torch.dtype) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))


def _write_parts(model: VideoModel, folder: Path, adapter: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Write every part that has a directory; the tensors of all others."""
    backbone: Any = model.backbone
    image, video = backbone.encoders["image"], backbone.encoders["video"]
    assert isinstance(image, ImageEncoder) and isinstance(video, VideoEncoder)  # what the backbone is made of
    written = [IMAGE_PREFIX, VIDEO_PREFIX]
    internvideo2.write(folder / parts.VIDEO, video.model.config, _as(video.model.state_dict(), dtype))
    _save(image.model, folder / parts.IMAGE, dtype)
    pixels = {"image_mean": image.mean.flatten().tolist(), "image_std": image.std.flatten().tolist()}
    (folder / parts.IMAGE / "preprocessor_config.json").write_text(json.dumps(pixels, indent=1) + "\n")
    if not adapter:
        _save(backbone.language_model, folder / parts.LANGUAGE, dtype)
        backbone.tokenizer.save_pretrained(folder / parts.LANGUAGE)
        written.append(LANGUAGE_PREFIX)
    if isinstance(model.compressor, LangDC):
        captioner = model.compressor.captioner
        _save(captioner.language_model, folder / parts.CAPTIONER, dtype)
        captioner.tokenizer.save_pretrained(folder / parts.CAPTIONER)
        written.append(CAPTIONER_PREFIX)
    rest = {name: tensor for name, tensor in _named(model).items() if not name.startswith(tuple(written))}
    kept = {name: t for name, t in rest.items() if not name.startswith(LANGUAGE_PREFIX) or ".lora_" in name}
    return _as({name: tensor for name, tensor in kept.items() if name not in model.untrained}, dtype)


def _save(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a stock model in a shorter type; what stays in memory keeps its own."""
    model.save_pretrained(folder, state_dict=_as(model.state_dict(), dtype))
    settings = json.loads((folder / "config.json").read_text())
    settings["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")


def _as(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.detach().to(dtype) for name, tensor in tensors.items()}


def _settings(model: dict[str, Any], folder: Path, adapter: bool) -> dict[str, Any]:
    """The settings with every part that was written in place of the one it was trained from."""
    backbone, compressor = dict(model["backbone"]), dict(model["compressor"])
    backbone["image_encoder"] = {**backbone["image_encoder"], "source": str(folder / parts.IMAGE)}
    backbone["video_encoder"] = {**backbone["video_encoder"], "source": str(folder / parts.VIDEO)}
    backbone.pop("quantize", None)
    if not adapter:
        backbone["language_model"] = str(folder / parts.LANGUAGE)
        backbone.pop("tokenizer", None)
    if compressor["name"] == "langdc":
        compressor["captioner"] = str(folder / parts.CAPTIONER)
        compressor.pop("captioner_tokenizer", None)
    return {"backbone": backbone, "compressor": compressor}


def _write_adapter(model: VideoModel, lora: LoraConfig, language_model: str, folder: Path) -> str:
    """Write a PEFT directory; the language model that it names."""
    import peft  # takes seconds, and few who import this module have an adapter
    from safetensors.torch import save_file

    found = _named(model.backbone.language_model)
    tensors = {
        f"base_model.model.{name.replace('.default.', '.')}": tensor.contiguous()
        for name, tensor in found.items()
        if ".lora_" in name
    }
    targets = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in found if ".lora_" in name})
    base = str(Path(resolve(language_model)).resolve())  # pyright: ignore[reportArgumentType]
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    folder.mkdir()
    settings.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return base


def _adapter_fingerprint(model: VideoModel) -> Fingerprint:
    found = fingerprint(model.backbone.language_model)
    return Fingerprint({f"base_model.model.{name}": value for name, value in found.tensors.items()}, found.logits)


def model_card(name: str, card: Mapping[str, Any], adapter: bool) -> str:
    """README.md of an exported directory: what it is, where its parts come from, how it is loaded."""
    base = card["model"]["backbone"]["language_model"]
    named = base if isinstance(base, str) else base.get("config", {}).get("model_type", "random weights")
    record = card.get("training") or {}
    trained = "; ".join(f"{key} {record[key]}" for key in ("steps", "samples", "loss") if key in record)
    folders = [f"| `{parts.IMAGE}/` | image encoder | `AutoModel` |", f"| `{parts.VIDEO}/` | InternVideo2 | `langdc` |"]
    if adapter:
        folders.insert(0, f"| `{ADAPTER}/` | adapter of {named} | `peft.AutoPeftModelForCausalLM` |")
    else:
        folders.insert(0, f"| `{parts.LANGUAGE}/` | language model, adapter merged | `AutoModelForCausalLM` |")
    if card["model"]["compressor"]["name"] == "langdc":
        folders.append(f"| `{parts.CAPTIONER}/` | captioner | `AutoModelForCausalLM` |")
    sources = [f"- `{source}`: `{found}`" for source, found in sorted(card["parts"].items())]
    return "\n".join(
        [
            "---",
            "library_name: langdc",
            "pipeline_tag: video-text-to-text",
            "license: other",
            "---",
            f"# {name}",
            "",
            f"A video language model: `{card['model']['compressor']['name']}` turns videos into tokens of {named}.",
            f"Stage `{card.get('stage', 'converted')}`{f': {trained}' if trained else ''}. Data: sha256 "
            f"`{card.get('data_sha256', 'not recorded')}`.",
            "",
            "```python",
            "from langdc import VideoLM",
            f'VideoLM.from_pretrained("{name}").open("clip.mp4").ask("What happens?")',
            "```",
            "",
            "| directory | what | loads with |",
            "|---|---|---|",
            *folders,
            "| `model.safetensors`, `langdc.json` | projectors and what joins the parts | `langdc` |",
            "",
            "Made of:",
            *(sources or ["- weights that were converted or drawn at random"]),
            "",
            "The licences of these parts and of the training data apply to the whole; name them before publishing.",
            "",
        ]
    )
