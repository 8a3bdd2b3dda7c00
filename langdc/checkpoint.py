"""A trained model as one directory: what was trained, where the rest comes from, and how it was made.

`model.safetensors` holds the tensors that differ from the published parts, `langdc.json` (the manifest) the settings
that build the model, the identity of every part and the training record. Nothing is unpickled.
"""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from langdc import __version__, compat, devices, jsonl
from langdc.adapters import adapt
from langdc.backbones import backbone_of, backbones
from langdc.config import AUTO, LoraConfig, MemberConfig, ModelConfig, check
from langdc.distributed import without_launcher
from langdc.hashing import file_hash, is_part, mark_read, part_identity, seen_hash, tensor_hash, tensors_hash
from langdc.model import VideoModel
from langdc.modelfiles import check_complete, read_settings
from langdc.sources import resolve

WEIGHTS = "model.safetensors"
MANIFEST = "langdc.json"
HERE = "./"  # begins the path of a part that lies in the checkpoint's own directory
PROJECTION = ("backbone.projectors.", "backbone.places.")
"""Begin the names of a backbone's projectors and learned places, which only some compressors use."""
NEEDED = {"model": dict, "lora": dict | None, "parts": dict, "weights_sha256": str}
_DRAWS = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"}
"""Methods of tensors, and functions of `torch.nn.init`, that draw weights."""
_ADVICE = "Give the directory that a training run printed at its end, or 'sample:langdc' for the one that ships."


def stored(model: nn.Module, tied: bool = True) -> dict[str, Tensor]:
    """A model's parameters, with `tied` ones under each name, and persistent buffers, such as a codebook."""
    saved, buffers = model.state_dict(keep_vars=True), dict(model.named_buffers(remove_duplicate=False))
    kept = {name: buffer for name, buffer in buffers.items() if name in saved}
    return {**dict(model.named_parameters(remove_duplicate=not tied)), **kept}


def own_tensors(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The named tensors, each storage once: tied weights appear under their first name."""
    wanted, seen, found = set(names), set(), {}
    for name, tensor in stored(model).items():
        if name in wanted and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor.detach()
    return found


def published(model: nn.Module) -> dict[str, str]:
    """Where published weights are in a model: the source of every module that was loaded from one, by its name.

    Such a module has the attribute `published`; all its parameters came from there.
    """
    found = {name: getattr(module, "published", None) for name, module in model.named_modules()}
    return {name: source for name, source in found.items() if isinstance(source, str)}


def unpublished(model: VideoModel) -> dict[str, Tensor]:
    """The tensors that no published part holds, trained or not: a checkpoint without them would load at random.

    The backbone's projectors and places are left out where the compressor does not use them.
    """
    left_out = [f"{name}." if name else "" for name in published(model)]
    left_out += [] if "projected" in model.compressor.needs else PROJECTION
    found = stored(model, tied=False).items()
    return {name: tensor for name, tensor in found if not name.startswith(tuple(left_out))}


def buffers(model: VideoModel) -> dict[str, Tensor]:
    """The persistent buffers that no published part holds: training may change them as it changes parameters."""
    return {name: tensor for name, tensor in unpublished(model).items() if not isinstance(tensor, nn.Parameter)}


def save(
    model: VideoModel | ModelConfig,
    directory: Path,
    *,
    tensors: dict[str, Tensor],
    lora: LoraConfig | None = None,
    info: dict,
) -> None:
    """Write a checkpoint: `tensors` are those that differ from the published parts of the model.

    Of a model that was never built, given by its settings, every setting that names a folder of weights is a part.
    Parts that lie in the directory itself are found after it moved. `info` joins the manifest: stage, data hash,
    training record. Files of a run that are in the directory already stay. What was written is read back and compared;
    ValueError if it differs.
    """
    built = isinstance(model, VideoModel)
    tree = (model.config if built else model).model_dump(mode="json")
    parts = folders(published(model).values() if built else (text for _, text in texts(tree)))
    jsonl.make_folder(directory)
    # the manifest gets its name last, so that it never describes other weights
    with jsonl.writing(directory / MANIFEST) as manifest, jsonl.writing(directory / WEIGHTS) as weights:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, weights)
        if tensors_hash(load_file(weights)) != tensors_hash(tensors):
            raise ValueError(f"{weights} does not hold what was written to it. Check the disk, and save again.")
        stated = {
            "version": __version__,
            "model": _inside(tree, directory),
            "lora": lora.model_dump(mode="json") if lora else None,
            "weights_sha256": file_hash(weights),
            "parts": {_inside(source, directory): part_identity(folder) for source, folder in parts.items()},
            **info,
        }
        manifest.write_text(json.dumps(stated, indent=1))


def _inside(tree: Any, directory: Path) -> Any:
    """Settings with every path below a directory written as "./..."."""
    if isinstance(tree, dict):
        return {key: _inside(value, directory) for key, value in tree.items()}
    below = isinstance(tree, str) and tree.startswith(f"{directory}/")
    return f"{HERE}{tree.removeprefix(f'{directory}/')}" if below else tree


def _placed(tree: Any, directory: Path) -> Any:
    """The opposite of `_inside`."""
    if isinstance(tree, dict):
        return {_placed(key, directory): _placed(value, directory) for key, value in tree.items()}
    return str(directory / tree) if isinstance(tree, str) and tree.startswith(HERE) else tree


def texts(settings: Any, keys: tuple = ()) -> Iterator[tuple[tuple, str]]:
    """Every text among settings, at any depth, with the keys that lead to it."""
    if isinstance(settings, str):
        yield keys, settings
    elif isinstance(settings, dict | list):
        for key, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
            yield from texts(value, (*keys, key))


def folders(sources: Iterable[str], holding: tuple[str, ...] = ("*.safetensors", "*.bin")) -> dict[str, Path]:
    """The folder of weights of each source; texts that name none are left out. `holding`: patterns of its files."""
    found: dict[str, Path] = {}
    for source in sorted(set(sources)):
        if source.startswith("sample:") or Path(source).is_dir() or "/" in source:
            with suppress(ValueError):
                folder = resolve(source)
                if isinstance(folder, Path) and any(any(folder.glob(pattern)) for pattern in holding):
                    found[source] = folder
    return found


def locate(directory: str | Path) -> Path:
    """The folder of a checkpoint or stock model: a path, a Hugging Face id, "sample:vlm"; ValueError if absent."""
    found = resolve(str(directory))
    assert isinstance(found, Path)  # only settings name an architecture
    return found


def earlier(start: Path) -> Path:
    """The folder of the checkpoint that a run starts from: a directory, or that of "sample:NAME"."""
    return locate(start) if str(start).startswith("sample:") else start


def read_manifest(directory: Path) -> dict:
    """The contents of `langdc.json`; ValueError if the directory holds no checkpoint or that file is damaged."""
    file = Path(directory) / MANIFEST
    if not file.is_file():
        raise ValueError(f"{directory} holds no LangDC checkpoint (no {MANIFEST}). {_ADVICE}")
    manifest = read_settings(file)
    if lacking := [name for name, kind in NEEDED.items() if not isinstance(manifest.get(name, 0), kind)]:
        raise ValueError(
            f"{file} lacks {', '.join(sorted(lacking))}: it was changed, or another version of langdc than this one "
            f"({__version__}) wrote it. Copy or train the checkpoint again."
        )
    model = compat.settings(_placed(manifest["model"], file.parent))
    return {**manifest, "model": model, "parts": _placed(manifest["parts"], file.parent)}


def _read_weights(directory: Path, manifest: dict, model: nn.Module, contents: bool = False) -> dict[str, Tensor]:
    file = directory / WEIGHTS
    if not file.is_file() or (file_hash if contents else seen_hash)(file) != manifest["weights_sha256"]:
        raise ValueError(f"{file} is not the file that {MANIFEST} describes: missing, cut off or replaced. Copy both.")
    return compat.tensors(load_file(file), stored(model))


def saved_names(directory: str | Path) -> list[str]:
    """Names of the tensors that a checkpoint's own file holds."""
    with safe_open(locate(directory) / WEIGHTS, "pt") as opened:
        return list(map(compat.tensor_name, opened.keys()))


class _Undrawn(TorchFunctionMode):
    """New weights are zeros where they would be drawn: a file fills them."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        options = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWS:
            return (args[0] if args else options["tensor"]).detach().zero_()
        return torch.zeros(*args, **options) if func in (torch.randn, torch.rand) else func(*args, **options)


def load(
    directory: str | Path,
    plain: bool = False,
    contents: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> VideoModel:
    """Build the model of a checkpoint with its weights, in evaluation mode.

    `plain`: as any CPU can, whatever the settings say: whole weights instead of 4 bits, attention by sdpa. `contents`:
    compare the frozen parts by what their files hold, which reads all of them. `device`, `dtype`: where and in which
    type weights are made; None is a CPU, and float32 or what the settings say. ValueError names every tensor that is
    missing, unexpected or of another shape, every part that has changed since training, and a weights file that is
    another one.
    """
    folder = locate(directory)
    manifest = read_manifest(folder)
    settings = manifest["model"]
    if plain:
        whole = {"quantize": None, "attention": "sdpa"}
        settings = {member: {key: whole.get(key, v) for key, v in part.items()} for member, part in settings.items()}
    config = named(check(ModelConfig, settings, f"{folder / MANIFEST}"))
    _check_parts(config, manifest, folder, contents)
    with devices.making(device, dtype), _Undrawn():
        model = VideoModel(_of_type(config, dtype))
        if manifest["lora"] is not None:
            adapt(model.backbone.text_model, check(LoraConfig, manifest["lora"], "lora"))
    tensors = _read_weights(folder, manifest, model, contents)
    _load_tensors(model, tensors, folder, {*unpublished(model), *(name for name in stored(model) if ".lora_" in name)})
    parts = tuple(f"{name}." for name in published(model))
    projection = (name for name, _ in model.named_parameters() if name.startswith(PROJECTION))
    model.untrained = frozenset(name for name in projection if not name.startswith(parts)) - set(tensors)
    return model.eval().requires_grad_(False)


def named(config: ModelConfig) -> ModelConfig:
    """The settings with the backbone's name in place of "auto", as the settings beside its weights say."""
    if config.backbone.name != AUTO:
        return config
    found = resolve(config.backbone.settings.get("source", {}))
    if isinstance(found, Path) and (found / MANIFEST).is_file():
        raise ValueError(f"model.backbone: {found} was trained by langdc. Give it as `start`, with the same model.")
    if not isinstance(found, Path):
        raise ValueError("model.backbone: name: auto needs weights in a folder; for random ones give the name.")
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"name": backbone_of(found)})})


def _of_type(config: ModelConfig, dtype: torch.dtype | None) -> ModelConfig:
    """The settings with this type in place of the backbone's own; other parts take the default type."""
    backbone = config.backbone
    if dtype is None or "dtype" not in inspect.signature(backbones.get(backbone.name)).parameters:
        return config
    typed = backbone.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    return config.model_copy(update={"backbone": typed})


def open_model(
    directory: str | Path,
    backbone: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> VideoModel:
    """A checkpoint of a training stage, or a stock vision-language model in Hugging Face layout, ready to be asked.

    `backbone`: settings of a stock model's backbone (frames, fps, ...); its name where the directory serves several.
    `device`, `dtype`: as in `load`.
    """
    folder = locate(directory)
    if (folder / MANIFEST).is_file():
        if backbone:
            raise ValueError(f"{folder} brings its backbone's settings along; leave out {', '.join(backbone)}.")
        return load(directory, device=device, dtype=dtype)
    settings = {"name": backbone_of(folder), "source": str(folder), **(backbone or {})}
    config = ModelConfig(backbone=check(MemberConfig, settings, "backbone"), compressor=MemberConfig(name="identity"))
    with devices.making(device, dtype):
        return VideoModel(_of_type(config, dtype)).eval().requires_grad_(False)


def _load_tensors(model: nn.Module, tensors: dict[str, Tensor], where: Path, needed: Iterable[str]) -> None:
    """Copy tensors into those of the same names; ValueError lists those that do not fit, and missing `needed` ones."""
    there, wanted = stored(model), tensors.keys() | set(needed)
    expected = {name: tuple(tensor.shape) for name, tensor in there.items() if name in wanted}
    advice = f"The checkpoint {where} is of another architecture: load it with the settings it was trained with."
    check_complete("this model", tensors, expected, advice=advice)
    with torch.no_grad():
        for name, tensor in tensors.items():
            there[name].copy_(tensor)
    mark_read({name: there[name] for name in tensors}, where)


def start(
    config: ModelConfig, directory: Path | None, text: bool = True, device: torch.device | None = None
) -> tuple[VideoModel, dict[str, Tensor]]:
    """A model to train: built from its parts, then given the tensors of an earlier run.

    Returns it with those tensors, which a later checkpoint must carry on. Settings may change between runs; tensors
    that fit nothing raise ValueError. Earlier LoRA adapters are attached first. `text`: whether the language model is
    needed; where it is not, its weights are not loaded, unless nothing else holds them. `device`: where weights are
    read to and drawn.
    """
    config, draws = named(config), devices.draws(device)
    state = draws.get_rng_state()
    with devices.making(device, None):
        model = VideoModel(config, text=text)
    if not text and any(tensor.is_meta for tensor in unpublished(model).values()):
        draws.set_rng_state(state)
        return start(config, directory, device=device)
    if directory is None:
        return model, {}
    directory = earlier(directory)
    manifest = read_manifest(directory)
    _check_parts(config, manifest, directory)
    tensors = _read_weights(directory, manifest, model)
    if text and manifest["lora"] is not None:
        adapt(model.backbone.text_model, check(LoraConfig, manifest["lora"], "lora"))
    here = stored(model)
    needed = {n: tensor for n, tensor in tensors.items() if text or n in here or not n.startswith("backbone.")}
    now = config.model_dump(mode="json")
    same = tuple(f"{member}." for member in now if now[member] == manifest["model"].get(member))
    missing = [
        name for name in unpublished(model) if name.startswith(same)
    ]  # new parts of this run keep random weights
    _load_tensors(model, needed, directory, [*missing, *(name for name in here if ".lora_" in name)])
    _check_drawn(manifest["model"], now, directory)
    return model, tensors


def _check_parts(config: ModelConfig, manifest: dict, where: Path, contents: bool = False) -> None:
    """Refuse a checkpoint whose frozen parts are not the ones it was trained on."""
    before = manifest["parts"]
    now = folders(source for _, source in texts(config.model_dump(mode="json")) if source in before)
    changed = [source for source, folder in now.items() if not is_part(folder, before[source], contents)]
    if changed:
        raise ValueError(
            f"{where} was trained on other weights than those now at: {', '.join(changed)}. Bring the former ones "
            "back, or train it again."
        )


def _check_drawn(there: dict, now: dict, where: Path) -> None:
    """Refuse to start if a part drawn at random has other sizes now: a deeper one would stay random, unnoticed."""
    before, after = _drawn(there), _drawn(now)
    lines = [
        f"{path}.{key}: {before[path].get(key)!r} there, {after[path].get(key)!r} now"
        for path in sorted(before.keys() & after.keys())
        for key in sorted(before[path].keys() | after[path].keys())
        if before[path].get(key) != after[path].get(key)
    ]
    if lines:
        advice = "Use its sizes, or start from another"
        raise ValueError(f"The checkpoint {where} is of another architecture. {advice}:\n  " + "\n  ".join(lines))


def _drawn(settings: dict, path: str = "") -> dict[str, dict]:
    """The sizes of every part drawn at random, by where the settings name it."""
    if settings.get("init") == "random":
        return {f"{path}config": settings["config"]}
    below = ((f"{path}{key}.", value) for key, value in settings.items() if isinstance(value, dict))
    return {name: sizes for inner, value in below for name, sizes in _drawn(value, inner).items()}


def verify_saved(directory: Path, hashes: Mapping[str, str]) -> int:
    """Load a saved directory in a fresh process and compare tensors by name; returns how many were equal.

    `hashes`: of the values of each, in float32. ValueError names those that are missing or differ.
    """
    code = f"from langdc.checkpoint import _print_hashes; _print_hashes({str(directory)!r})"
    environment = {**without_launcher(os.environ), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        message = "\n  ".join(done.stderr.strip().splitlines()[-12:])
        raise ValueError(f"{directory} was saved, but a fresh process cannot load it:\n  {message}")
    found = json.loads(done.stdout.splitlines()[-1])
    wrong = [name for name, expected in hashes.items() if found.get(name) != expected]
    if wrong:
        raise ValueError(
            f"{directory} was saved, but a fresh process loads {len(wrong)} tensors with other values or not at all; "
            f"do not use it. First of them: {', '.join(wrong[:8])}."
        )
    return len(hashes)


def _print_hashes(directory: str) -> None:
    """Load a checkpoint, and print a hash of each tensor's float32 values as JSON."""
    tensors = stored(load(directory, plain=True, contents=True))
    found = {name: tensor_hash(tensor, torch.float32) for name, tensor in tensors.items()}
    sys.stdout.write(json.dumps(found) + "\n")
