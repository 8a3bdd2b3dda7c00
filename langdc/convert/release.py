"""The layout in which VideoGPT+ and LangDC are published: its files, and the names of its tensors.

A release is a directory with config.json and non_lora_trainables.bin beside an adapter of the language model, or with
all weights in one. The parts it is built on lie elsewhere: its files name them, relative to themselves or to the
directory above.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from langdc.convert.files import read_folder
from langdc.modelfiles import read_settings, read_tensors

EXTRA = "non_lora_trainables.bin"
PROJECTORS = "mm_projector.bin"
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_TRAINER = re.compile(r"^(base_model\.model\.|model\.(?=model\.))")
"""What trainers put before names."""
_PROJECTOR = re.compile(
    r"(?:model\.)?((?:cap_)?(?:image_)?mm_projector\.\d*\.?(?:weight|bias)$"
    r"|llm_projector\.(?:\d+\.)?(?:weight|bias)$)"
)
_GROUPS = {
    "captioner": "model.cap_light_llm.",
    "video": "model.vision_tower.",
    "image": "model.image_vision_tower.vision_tower.",
}
"""Parts that a release with all weights in one holds under these names; the rest is the language model's."""


@dataclass(frozen=True)
class Release:
    """A published directory: its settings, and its tensors by part under the names that the part alone has."""

    folder: Path
    settings: dict[str, Any]
    adapter: Path | None
    parts: dict[str, dict[str, Tensor]]

    def locate(self, named: str | None, given: Path | None, option: str, what: str) -> Path:
        """Where a part lies: the path given, else what the release names; ValueError that says which option to use.

        A name is looked for beside the release, in it and above it, then by its last word alone.
        """
        if given is not None:
            if not given.exists():
                raise ValueError(f"{option} {given}: there is no such path.")
            return given
        around = (self.folder.parent, self.folder, self.folder.parent.parent, Path())
        tried = (base / name for name in (named, Path(named or "").name) if name for base in around)
        if found := next((path for path in tried if path.exists()), None):
            return found
        called = f", which the release calls {named!r}," if named else ""
        raise ValueError(f"{what}{called} was not found around {self.folder}. Say where it is: {option} PATH.")


def open_release(folder: Path, model_type: str) -> Release:
    """Read a release's own files, or those of the one release in the directories right below."""
    if not folder.is_dir():
        raise ValueError(f"There is no directory {folder}; give a local copy of a release (nothing is downloaded).")
    place = folder if (folder / "config.json").is_file() else _below(folder, model_type)
    settings = read_settings(place / "config.json", "to know how the release was trained")
    if settings.get("model_type") != model_type:
        raise ValueError(f"{place} is a {settings.get('model_type')!r} model; a {model_type!r} one is converted here.")
    adapter = next((place / name for name in _ADAPTER if (place / name).is_file()), None)
    if adapter is not None and not (place / EXTRA).is_file():
        raise ValueError(f"{place} lacks {EXTRA}, which holds its projectors. Copy the release again.")
    found = read_folder(place) if adapter is None else {}
    if (place / EXTRA).is_file():
        found |= read_tensors(place / EXTRA)
    return Release(place, settings, adapter, _by_part(found))


def _below(folder: Path, model_type: str) -> Path:
    configs = sorted(folder.glob("*/config.json"))
    fitting = [file.parent for file in configs if read_settings(file).get("model_type") == model_type]
    if len(fitting) != 1:
        names = ", ".join(path.name for path in fitting) or "none"
        raise ValueError(f"{folder} has no config.json; releases of type {model_type!r} below it: {names}. Name one.")
    return fitting[0]


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort tensors into "projectors", the groups, and "language"; the prefixes of trainers are taken off."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in ("projectors", "language", *_GROUPS)}
    for name, tensor in tensors.items():
        plain = _TRAINER.sub("", name)
        if projector := _PROJECTOR.match(plain):
            parts["projectors"][projector[1]] = tensor
        else:
            part = next((part for part, prefix in _GROUPS.items() if plain.startswith(prefix)), "language")
            parts[part][plain.removeprefix(_GROUPS.get(part, ""))] = tensor
    return parts


def projectors_of(file: Path) -> dict[str, Tensor]:
    """The projectors in a file of them; ValueError if it holds anything else."""
    parts = _by_part(read_tensors(file))
    others = [name for part, tensors in parts.items() if part != "projectors" for name in tensors]
    if others:
        raise ValueError(f"{file} holds more than projectors: {', '.join(others[:8])}.")
    return parts["projectors"]
