"""What a model directory says about itself without being loaded: its own compressor, its weights, its training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from langdc import jsonl
from langdc.checkpoint import MANIFEST, WEIGHTS, folders, locate, read_manifest, saved_names, texts
from langdc.compressors import compressors
from langdc.hashing import folder_files, json_hash
from langdc.interfaces import TokenCompressor
from langdc.jsonl import read_json

TRAINING = ("samples", "steps", "flops", "seconds")


@dataclass(frozen=True)
class OwnCompressor:
    """The compressor that a checkpoint was trained with; `name` is None for a stock model.

    `learned`: it has weights. `grid`: its tokens still lie on a grid per frame, so that other methods can choose among
    them. `writes`: it writes text.
    """

    name: str | None = None
    learned: bool = False
    grid: bool = False
    writes: bool = False

    @classmethod
    def of(cls, directory: str | Path) -> "OwnCompressor":
        """What a directory says of its compressor; nothing for a stock model, or if no directory is there."""
        try:
            folder = locate(directory)
            if not (folder / MANIFEST).is_file():
                return cls()
            name = read_manifest(folder)["model"]["compressor"]["name"]
            learned = any(tensor.startswith("compressor.") for tensor in saved_names(folder))
            kind = compressors.get(name)
        except (ValueError, OSError):
            return cls()  # the reason is given when the model is loaded
        return cls(name, learned, hasattr(kind, "pooled"), cls.writes_text(kind))

    @staticmethod
    def writes_text(compressor: Any) -> bool:
        """Whether a compressor, or its class, has a `text` of its own."""
        kind = compressor if isinstance(compressor, type) else type(compressor)
        return getattr(kind, "text", TokenCompressor.text) is not TokenCompressor.text


def weights_identity(directory: str | Path) -> str:
    """The sha256 of everything that makes a model, its `model_files`."""
    return json_hash(model_files(directory))


def model_files(directory: str | Path) -> dict[str, str]:
    """The hash of each file that makes a model: of a checkpoint its tensors, its settings, and the files of the folders
    that these name; of another folder all its files. Of large ones the published hash, or that of a sample.
    """
    folder = locate(directory)
    if not (folder / MANIFEST).is_file():
        return folder_files(folder)
    manifest, stated = read_manifest(folder), read_json(folder / MANIFEST)
    size = (folder / WEIGHTS).stat().st_size if (folder / WEIGHTS).is_file() else 0
    hashes = {MANIFEST: json_hash([stated[name] for name in ("model", "lora", "parts")])}
    hashes[WEIGHTS] = f"{manifest['weights_sha256']} {size}"
    for source, files in named_files(manifest["model"]).items():
        hashes |= {f"{source.removeprefix(f'{folder}/')}/{name}": content for name, content in files.items()}
    return hashes


def named_files(settings: Any) -> dict[str, dict[str, str]]:
    """The `folder_files` of each folder of weights or of a tokenizer that settings name, by how they name it."""
    named = (text for keys, text in texts(settings) if keys[-1:] != ("name",))  # which is a member's
    return {
        source: folder_files(place) for source, place in folders(named, ("*.safetensors", "*.bin", "*.json")).items()
    }


def training_record(directory: str | Path) -> dict[str, Any]:
    """What went into a checkpoint: {"samples", "steps", "flops", "seconds"} over its runs, each listed in "stages".

    Follows each run's `start` to the one before; "sample:NAME" counts nothing, like other published weights. "complete"
    is false where an earlier run's directory is gone, or leads back to a later one, so that the sums lack it.
    """
    stages: list[dict] = []
    place: Path | None = locate(directory)
    seen: set[Path] = set()
    while place is not None and (place / MANIFEST).is_file() and place.resolve() not in seen:
        seen.add(place.resolve())
        manifest, finished, settings = read_manifest(place), place / "finished.json", place / "config.yaml"
        figures = jsonl.read_json(finished) if finished.is_file() else manifest.get("training") or {}
        stages.append({"stage": manifest.get("stage"), **{name: figures.get(name) for name in TRAINING}})
        start = (yaml.safe_load(settings.read_text()) or {}).get("start") if settings.is_file() else None
        place = None if start is None or start.startswith("sample:") else Path(start)
    sums = {name: sum(stage[name] or 0 for stage in stages) for name in TRAINING}
    return {**sums, "stages": stages[::-1], "complete": place is None}
